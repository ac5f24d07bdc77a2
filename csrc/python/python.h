/* python.h: what the files of this room share. */
#ifndef HEX_PYTHON_H
#define HEX_PYTHON_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>

/* functions.c, the functions on NumPy arrays. import_numpy: 0, or -1 with an exception set. */
int hex_python_import_numpy(void);
PyObject *hex_python_measure(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *hex_python_contrast(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *hex_python_reference_measure(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *hex_python_reference_contrast(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *hex_python_count_pairs(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *hex_python_reference_count_pairs(PyObject *module, PyObject *args, PyObject *kwargs);

/* interrupt.c. interrupted: a hex_interrupted of hex.h, for which the GIL may be held or not. raise_interrupt: sets the
 * exception for which it said yes; false: none waits, or another thread's. */
bool hex_python_interrupted(void);
bool hex_python_raise_interrupt(void);
PyObject *hex_python_interrupt(PyObject *module, PyObject *unused);

#endif
