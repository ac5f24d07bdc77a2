/* steps.h: pools that start threads late or one after another, and whole steps of the core on small problems. */
#ifndef STEPS_H
#define STEPS_H

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../csrc/core/team.h"

/* Sizes for which every call takes a team: of rows in five blocks and six, the last of few, and columns that fill no panel. */
enum { MOST_THREADS = 5, M = 270, N = 330, D = 70 };

extern int threads;
int thread_count(void);

/* The caller takes the first task; the others come at any time, some after all is over. */
void late(int64_t tasks, hex_body body, void *context);
/* All on the caller's thread: by themselves, or as one range. */
void in_turn(int64_t tasks, hex_body body, void *context);
void at_once(int64_t tasks, hex_body body, void *context);

typedef struct {
    double loss, batch_stats[2 * HEX_BATCH_STATS], row_state[(M + N) * HEX_ROW_STATE], temperature;
    float anchors[M * D], keys[N * D];
} result;

enum problem { VIEWS, KEYS, BOTH_WAYS, RELATED, PROBLEMS };

/* Of the cosines, thresholds that leave few hierarchical negatives, and little else. */
extern const double thresholds[2];

void draw_embeddings(void);
/* one_call: gradients with the loss, and not in a call of their own. */
hex_status step(enum problem which, double threshold, bool one_call, result *out);
/* Rows' statistics, into out->row_state. */
hex_status measured(enum problem which, double quantile, result *out);

/* The other files' checks; each returns how many failed. */
int check_waiting(void);
int check_interruption(void);

#endif
