/* interrupt.c: Ctrl-C, and other signals that have a handler in Python, during a long call.
 *
 * Such handlers run when the main thread asks for them, with the GIL. The core asks here from time to time. If a
 * handler raises, the core gives the call up, and the exception waits here until the caller can raise it. The functions
 * on NumPy arrays do so themselves. An operator can end in nothing but torch's RuntimeError: hexssl/operators.py raises
 * the exception in its place, and where operators are called by others (torch.compile) the interpreter does as soon as
 * it runs Python again. */
#define _GNU_SOURCE /* syscall */
#include "python.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../hex.h"

/* Type, value and traceback. The main thread's alone, so there is no lock. */
static PyObject *waiting[3];

/* Where Python runs in a process of its own its main thread is the process's, also after a fork. An application that
 * embeds it in another thread waits for the end of a call, as all other threads do. */
static bool is_main_thread(void) {
    return syscall(SYS_gettid) == getpid();
}

bool hex_python_raise_interrupt(void) {
    if (!is_main_thread() || !waiting[0])
        return false;
    PyErr_Restore(waiting[0], waiting[1], waiting[2]);
    waiting[0] = waiting[1] = waiting[2] = NULL;
    return true;
}

static int raise_later(void *unused) {
    (void)unused;
    return hex_python_raise_interrupt() ? -1 : 0;
}

/* Runs the handlers of the signals that have come; true: one of them has raised. */
static bool run_handlers(void) {
    pid_t process = getpid();
    bool raised = PyErr_CheckSignals() != 0;
    if (getpid() != process) {
        fputs("hexssl: a signal handler forked within a call and came back in the child, which has none of the call's "
              "threads\n",
              stderr);
        abort();
    }
    if (!raised)
        return false;
    PyObject *raised_now[3];
    PyErr_Fetch(&raised_now[0], &raised_now[1], &raised_now[2]);
    for (int i = 0; i < 3; i++) {
        PyObject *before =
            waiting[i]; /* of an earlier call, which nobody has asked for: the later exception stands for both */
        waiting[i] = raised_now[i];
        Py_XDECREF(before);
    }
    Py_AddPendingCall(raise_later, NULL); /* -1 if too many wait: operators.py needs none of them */
    return true;
}

bool hex_python_interrupted(void) {
    if (!is_main_thread() || !Py_IsInitialized())
        return false;
    PyGILState_STATE state = PyGILState_Ensure();
    bool raised = !PyErr_Occurred() && run_handlers(); /* handlers must not run on top of another exception */
    PyGILState_Release(state);
    return raised;
}

PyObject *hex_python_interrupt(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    if (hex_python_raise_interrupt())
        return NULL;
    Py_RETURN_NONE;
}
