/* test_slabs: the pool of kept memory by itself. A slab has one owner at a time and is found under its own tag alone; what
 * rests is given back in time, and what is given back has left the process. Under the thread sanitizer: without a race. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../../csrc/core/workspace.h"

static int failures;

#define CHECK(condition, ...) \
    do { \
        if (condition) break; \
        failures++; \
        printf(__VA_ARGS__); \
        printf(" (%s)\n", #condition); \
    } while (0)

static core_tag tag_of(uint64_t token) { return (core_tag){.token = token, .m = 10, .n = 20, .d = 30, .block_m = 64}; }

static void keep(int64_t bytes, core_tag tag) {
    core_slab *slab = core_slab_take(bytes);
    if (!slab) abort();
    memset(core_slab_memory(slab), 1, (size_t)bytes);
    core_slab_put(slab, &tag, true);
}

/* Found and put back as it was? */
static bool is_kept(core_tag tag) {
    core_slab *slab = core_slab_find(&tag);
    if (slab) core_slab_put(slab, &tag, true);
    return slab != NULL;
}

/* Bytes of address space. */
static int64_t mapped(void) {
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%ld", &pages) != 1) abort();
    fclose(file);
    return pages * sysconf(_SC_PAGESIZE);
}

static void test_tags(void) {
    const core_tag own = tag_of(7);
    keep(1000, own);
    CHECK(is_kept(own), "what was kept is not found");
    for (size_t word = 0; word < sizeof own / sizeof(int64_t); word++) {
        core_tag other = own;
        ((int64_t *)&other)[word] += 1;
        CHECK(!is_kept(other), "found under a tag that differs in number %zu", word);
    }
    keep(1000, (core_tag){.token = 7});   /* two of one token: neither in the way of the other */
    CHECK(is_kept(own) && is_kept((core_tag){.token = 7}), "one of two of one token is gone");
    hex_release_workspace();
    CHECK(!is_kept(own), "found after its release");
}

static void wait_milliseconds(int milliseconds) {
    nanosleep(&(struct timespec){milliseconds / 1000, milliseconds % 1000 * 1000000}, NULL);
}

static void test_rest(void) {
    const int64_t usual = atomic_load(&core_rest_nanoseconds), large = (int64_t)64 << 20;
    const core_tag held = tag_of(1);
    CHECK(usual == (int64_t)HEX_REST_SECONDS * 1000000000, "%lld ns of rest", (long long)usual);
    hex_release_workspace();
    const int64_t before = mapped();
    keep(large, held);
    core_slab *slab = core_slab_take(large);
    core_slab_put(slab, NULL, false);
    CHECK(mapped() >= before + 2 * large, "less is mapped than rests");
    core_slab_put(core_slab_take(64), NULL, false);
    CHECK(is_kept(held) && mapped() >= before + 2 * large, "given back before its time");
    atomic_store(&core_rest_nanoseconds, 100 * 1000000);
    wait_milliseconds(150);
    core_slab_put(core_slab_take(64), NULL, false);   /* any call */
    CHECK(!is_kept(held), "held beyond its time");
    CHECK(mapped() < before + large, "mapped beyond its time");
    atomic_store(&core_rest_nanoseconds, usual);
    keep(large, held);
    hex_release_workspace();
    CHECK(mapped() < before + large, "released and still mapped");
}

/* A call may take longer than what was short is remembered for. What it puts back then must not rest. */
static void test_taken_while_memory_was_short(void) {
    const int64_t usual = atomic_load(&core_rest_nanoseconds), large = (int64_t)64 << 20;
    hex_release_workspace();
    const int64_t before = mapped();
    atomic_store(&core_rest_nanoseconds, 50 * 1000000);
    CHECK(!core_slab_take((int64_t)1 << 60), "an exbibyte was there");
    core_slab *slab = core_slab_take(large);
    const core_tag held = tag_of(1);
    wait_milliseconds(100);
    atomic_store(&core_rest_nanoseconds, usual);
    core_slab_put(slab, &held, true);
    slab = core_slab_find(&held);
    CHECK(slab, "what is held for a later step is gone");
    if (slab) core_slab_put(slab, NULL, false);
    CHECK(mapped() < before + large, "rests, though memory was short when it was taken");
    core_slab_put(core_slab_take(large), NULL, false);
    CHECK(mapped() >= before + large, "does not rest, though memory is no longer short");
    hex_release_workspace();
}

static void test_more_than_the_table_holds(void) {
    core_slab *slabs[50];
    for (int s = 0; s < 50; s++) {
        slabs[s] = core_slab_take(4096);
        memset(core_slab_memory(slabs[s]), s, 4096);
    }
    for (int s = 0; s < 50; s++) {
        const core_tag tag = tag_of(100 + (uint64_t)s);
        CHECK(core_slab_memory(slabs[s])[0] == s && core_slab_memory(slabs[s])[4095] == s, "slab %d is another's, too", s);
        core_slab_put(slabs[s], &tag, false);
    }
    hex_release_workspace();
}

static void test_budget(void) {
    hex_set_workspace_budget(-1);
    CHECK(hex_workspace_budget() == HEX_DEFAULT_BUDGET && !core_budget_was_set(), "another default");
    hex_set_default_budget(1 << 20);
    CHECK(hex_workspace_budget() == 1 << 20 && !core_budget_was_set(), "the default was not set");
    hex_set_workspace_budget(4096);
    CHECK(hex_workspace_budget() == 4096 && core_budget_was_set(), "the budget was not set");
    keep(4096, tag_of(1));
    CHECK(is_kept(tag_of(1)), "what fits is not kept");
    keep(64, tag_of(2));
    CHECK(!is_kept(tag_of(1)) && is_kept(tag_of(2)), "not the oldest is given back");
    keep(8192, tag_of(3));
    CHECK(!is_kept(tag_of(3)), "more is kept than the budget");
    hex_set_workspace_budget(-1);
    hex_set_default_budget(HEX_DEFAULT_BUDGET);
}

enum { THREADS = 6, TURNS = 3000 };

/* Everything at once; whoever finds another's bytes in a slab of its own says so. */
static void *work(void *context) {
    uint32_t seed = (uint32_t)(uintptr_t)context;
    intptr_t wrong = 0;
    for (int turn = 0; turn < TURNS; turn++) {
        seed = seed * 1664525 + 1013904223;
        const core_tag tag = tag_of(1 + (seed >> 20) % 5);
        const int64_t bytes = seed % 97 == 0 ? (int64_t)5 << 20 : 64 + seed % 4096;
        core_slab *slab = seed & 1 << 10 ? core_slab_find(&tag) : core_slab_take(bytes);
        if (slab) {
            memset(core_slab_memory(slab), (int)(uintptr_t)context, 64);
            for (int b = 0; b < 64; b++) wrong += core_slab_memory(slab)[b] != (char)(uintptr_t)context;
            core_slab_put(slab, &tag, seed & 1 << 11);
        }
        if (seed % 211 == 0) hex_release_workspace();
        if (seed % 307 == 0) hex_set_workspace_budget(seed & 1 << 12 ? 8192 : -1);
        if (seed % 401 == 0) atomic_store(&core_rest_nanoseconds, seed & 1 << 13 ? 1000 : 1000000000);
    }
    return (void *)wrong;
}

static void test_threads(void) {
    const int64_t usual = atomic_load(&core_rest_nanoseconds);
    pthread_t thread[THREADS];
    for (intptr_t t = 0; t < THREADS; t++)
        if (pthread_create(&thread[t], NULL, work, (void *)(t + 1)) != 0) abort();
    for (int t = 0; t < THREADS; t++) {
        void *wrong;
        pthread_join(thread[t], &wrong);
        CHECK(wrong == NULL, "thread %d had slabs that were another's, too", t);
    }
    atomic_store(&core_rest_nanoseconds, usual);
    hex_set_workspace_budget(-1);
    hex_release_workspace();
}

static void test_no_memory(void) {
    const core_tag held = tag_of(1);
    keep(4096, held);
    CHECK(core_slab_take((int64_t)1 << 60) == NULL && hex_bytes_wanted() == (int64_t)1 << 60, "an exbibyte was there");
    CHECK(!is_kept(held), "an allocation failed with something left to give back");
    CHECK(core_allocate((int64_t)1 << 59) == NULL && hex_bytes_wanted() == (int64_t)1 << 59, "half an exbibyte was there");
    core_slab *slab = core_slab_take(1 << 20);
    const core_tag free = tag_of(2);
    core_slab_put(slab, &free, false);
    CHECK(!is_kept(free), "memory is short, and some rests that nobody waits for");
    keep(4096, held);
    CHECK(is_kept(held), "memory is short, and what is waited for is gone");
    hex_release_workspace();
}

int main(void) {
    test_tags();
    test_rest();
    test_taken_while_memory_was_short();
    test_more_than_the_table_holds();
    test_budget();
    test_threads();
    test_no_memory();
    printf("%d failures\n", failures);
    return failures != 0;
}
