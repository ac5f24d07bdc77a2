/* python.h: what the files of this room share. */
#ifndef HEX_PYTHON_H
#define HEX_PYTHON_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* functions.c, the functions on NumPy arrays. import_numpy: 0, or -1 with an exception set. */
int hex_python_import_numpy(void);
PyObject *hex_python_measure(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *hex_python_contrast(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *hex_python_reference_measure(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *hex_python_reference_contrast(PyObject *module, PyObject *args, PyObject *kwargs);

#endif
