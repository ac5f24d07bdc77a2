/* schedule.c: in which order tiles are visited. */
#include "schedule.h"

static void add_task(const core_geometry *g, core_task *task, int64_t *count, int32_t *turns, int64_t i, int64_t j) {
    int32_t *turn_i = turns + i, *turn_j = g->symmetric ? turns + j : turns + g->mb + j;
    core_task *t = task + (*count)++;
    t->i = (int32_t)i;
    t->j = (int32_t)j;
    t->turn_i = (*turn_i)++;
    t->turn_j = turn_j == turn_i ? t->turn_i : (*turn_j)++;
}

/* First the diagonal, then a round-robin tournament (the circle method), in which every block meets every other once
 * and the pairs of a round share no block. */
static int64_t add_symmetric(const core_geometry *g, core_task *task, int32_t *turns) {
    int64_t count = 0;
    const int64_t seats = g->mb + (g->mb & 1); /* with an odd number, one block sits out each round */
    for (int64_t b = 0; b < g->mb; b++)
        add_task(g, task, &count, turns, b, b);
    for (int64_t round = 0; round + 1 < seats; round++)
        for (int64_t pair = 0; pair < seats / 2; pair++) {
            const int64_t x = pair == 0 ? seats - 1 : (round + pair) % (seats - 1);
            const int64_t y = (round + seats - 1 - pair) % (seats - 1);
            if (x >= g->mb || y >= g->mb)
                continue;
            add_task(g, task, &count, turns, x < y ? x : y, x < y ? y : x);
        }
    return count;
}

static int64_t add_rectangle(const core_geometry *g, core_task *task, int32_t *turns) {
    int64_t count = 0;
    for (int64_t i = 0; i < g->mb; i++)
        for (int64_t j = 0; j < g->nb; j++)
            add_task(g, task, &count, turns, i, j);
    return count;
}

void core_schedule(const core_geometry *g, core_task *task, int32_t *turns) {
    for (int64_t b = 0; b < g->mb + g->nb; b++)
        turns[b] = 0;
    const int64_t count = g->symmetric ? add_symmetric(g, task, turns) : add_rectangle(g, task, turns);
    for (int64_t b = 0; b < g->mb + g->nb; b++)
        turns[b] = 0;
    for (int64_t t = 0; t < count; t++) {
        const bool diagonal = g->symmetric && task[t].i == task[t].j; /* its rows' product is the whole gradient */
        task[t].first_row = turns[task[t].i]++ == 0;
        task[t].first_col = !diagonal && turns[g->mb + task[t].j]++ == 0;
    }
}
