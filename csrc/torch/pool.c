/* pool.c: the core's threads are torch's, so torch.set_num_threads rules both. */
#include <stdio.h>
#include <stdlib.h>

#include "../hex.h"
#include "stable_abi.h"

static void parallel_for(int64_t tasks, hex_body body, void *context) {
    if (hex_torch.torch_parallel_for(0, tasks, 1, body, context) != 0) {
        /* Nothing in body can throw, so the pool itself broke half-way and the results are undefined. */
        fputs("hexssl: torch's thread pool failed\n", stderr);
        abort();
    }
}

int hex_torch_threads(void) {
    uint32_t count = 1;
    return hex_torch.torch_get_num_threads(&count) == 0 && count > 0 ? (int)count : 1;
}

void hex_torch_install_pool(void) {
    hex_set_pool(parallel_for, hex_torch_threads);
}
