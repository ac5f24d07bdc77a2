/* team.h: the threads of one call, and how they wait for each other.
 *
 * The pool is the binding's. One call takes a team from it: the threads are woken once, and then wait for the rounds of
 * the one that leads, since waking a thread takes longer than packing a batch. */
#ifndef CORE_TEAM_H
#define CORE_TEAM_H

#include <stdatomic.h>

#include "../hex.h"

/* Threads of the pool, at least 1. It is not to be asked within a team: a pool may have another number for what it
 * already runs. */
int core_threads(void);

typedef struct core_team core_team;

/* The work of a call, on the thread that leads. */
typedef hex_status (*core_lead)(core_team *team, void *context);

/* Runs lead(team, context) on a team of so many threads. Returns its status, or HEX_INTERRUPTED. */
hex_status core_with_team(int threads, core_lead lead, void *context);

int core_team_threads(const core_team *team);

/* Runs body for the tasks 0 to `tasks`, for the leader. Returns when all are done, or when the team is stopped and
 * nobody is at one any more. */
void core_team_round(core_team *team, int64_t tasks, hex_body body, void *context);

/* True if the caller was interrupted. From then on no task begins, what was computed is worth nothing, and the call
 * returns HEX_INTERRUPTED. It is to be asked before every piece of work that takes long: before every tile. */
bool core_team_stopped(core_team *team);

/* Waits within a task until another task tells that *value is `number`. False: the team is stopped, and it may never
 * be. */
bool core_team_wait(core_team *team, const atomic_int *value, int number);
void core_team_tell(core_team *team, atomic_int *value, int number);

/* Nanoseconds between two questions whether the caller was interrupted; a variable for tests, which ask at every
 * occasion. */
extern int64_t core_ask_every;

#endif
