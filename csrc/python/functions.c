/* functions.c: measure, contrast and counts of pairs on NumPy arrays, by the core or by the naive reference.
 *
 * Enums are the ints of hex.h and None is an absent argument. Arrays may have any strides; the GIL is released while
 * computing. hexssl/arrays.py puts names and defaults on top. */
#include "python.h"

#include <numpy/arrayobject.h>
#include <stdlib.h>

#include "../hex.h"

int hex_python_import_numpy(void) {
    return PyArray_ImportNumPyAPI();
}

enum { MAX_HELD = 12 };

/* One call: its arguments in the core's terms and the arrays they point into. */
typedef struct {
    hex_problem problem;
    hex_settings settings;
    PyObject *held[MAX_HELD];
    int held_count;
} numpy_call;

/* Positional and keyword arguments as Python gave them. */
typedef struct {
    PyObject *anchors, *keys, *paired, *labels, *key_labels, *relation, *threshold, *grad;
    long long period, self_offset;
    int normalize, formulation, positives, denominator, reduction;
} arguments;

static void drop_references(numpy_call *c) {
    for (int i = 0; i < c->held_count; i++)
        Py_DECREF(c->held[i]);
}

/* The object as an array of a type and rank, held until the call ends; type NPY_NOTYPE: as it is. NULL: exception. */
static PyArrayObject *hold(numpy_call *c, PyObject *object, const char *name, int type, int dim, int requirements) {
    if (c->held_count == MAX_HELD) {
        PyErr_Format(PyExc_SystemError, "%s: a call holds up to %d arrays", name, MAX_HELD);
        return NULL;
    }
    PyArray_Descr *descr = type == NPY_NOTYPE ? NULL : PyArray_DescrFromType(type);
    requirements |= NPY_ARRAY_NOTSWAPPED | NPY_ARRAY_ALIGNED;
    PyArrayObject *array = (PyArrayObject *)PyArray_CheckFromAny(object, descr, 0, 0, requirements, NULL);
    if (!array)
        return NULL;
    c->held[c->held_count++] = (PyObject *)array;
    if (dim >= 0 && PyArray_NDIM(array) != dim) {
        PyErr_Format(PyExc_ValueError, "%s: got %d dimensions; accepted: %d", name, PyArray_NDIM(array), dim);
        return NULL;
    }
    return array;
}

static bool read_dtype(PyArrayObject *array, hex_dtype *dtype) {
    switch (PyArray_TYPE(array)) {
    case NPY_FLOAT:
        *dtype = HEX_F32;
        return true;
    case NPY_DOUBLE:
        *dtype = HEX_F64;
        return true;
    case NPY_HALF:
        *dtype = HEX_F16;
        return true;
    default:
        return false;
    }
}

/* An embedding matrix of float32, float64 or float16; first: its dtype becomes the problem's. */
static bool read_matrix(numpy_call *c, PyObject *object, const char *name, bool first, hex_matrix *out) {
    if (!object || object == Py_None)
        return true;
    PyArrayObject *array = hold(c, object, name, NPY_NOTYPE, 2, 0);
    hex_dtype dtype;
    if (!array)
        return false;
    npy_intp size = PyArray_ITEMSIZE(array);
    if (!read_dtype(array, &dtype) || (!first && dtype != c->problem.dtype)) {
        PyErr_Format(PyExc_TypeError, "%s: accepted: float32, float64 or float16, the same as the anchors'", name);
        return false;
    }
    c->problem.dtype = dtype;
    if (PyArray_STRIDE(array, 0) % size != 0 || PyArray_STRIDE(array, 1) % size != 0) {
        /* A field of a packed record: strides that cannot be counted in elements. */
        array = hold(c, (PyObject *)array, name, NPY_NOTYPE, 2, NPY_ARRAY_C_CONTIGUOUS);
        if (!array)
            return false;
    }
    *out = (hex_matrix){PyArray_DATA(array), PyArray_DIM(array, 0), PyArray_DIM(array, 1),
                        PyArray_STRIDE(array, 0) / size, PyArray_STRIDE(array, 1) / size};
    return true;
}

/* A contiguous array of one type and shape (rows,) or (rows, cols); cols < 0: one dimension. */
static bool read_exactly(numpy_call *c, PyObject *object, const char *name, int type, int64_t rows, int64_t cols,
                         const void **out) {
    if (!object || object == Py_None)
        return true;
    PyArrayObject *array = hold(c, object, name, type, cols < 0 ? 1 : 2, NPY_ARRAY_C_CONTIGUOUS);
    if (!array)
        return false;
    if (PyArray_DIM(array, 0) != rows || (cols >= 0 && PyArray_DIM(array, 1) != cols)) {
        if (cols < 0)
            PyErr_Format(PyExc_ValueError, "%s: accepted: shape (%lld,)", name, (long long)rows);
        else
            PyErr_Format(PyExc_ValueError, "%s: accepted: shape (%lld, %lld)", name, (long long)rows, (long long)cols);
        return false;
    }
    *out = PyArray_DATA(array);
    return true;
}

static bool read_problem(numpy_call *c, const arguments *a) {
    hex_problem *p = &c->problem;
    const void *labels = NULL, *key_labels = NULL, *relation = NULL;
    if (!read_matrix(c, a->anchors, "anchors", true, &p->anchors) ||
        !read_matrix(c, a->keys, "keys", false, &p->keys) || !read_matrix(c, a->paired, "paired", false, &p->paired))
        return false;
    int64_t rows = p->anchors.rows, cols = p->keys.data ? p->keys.rows : rows;
    if (!read_exactly(c, a->labels, "labels", NPY_INT64, rows, -1, &labels) ||
        !read_exactly(c, a->key_labels, "key_labels", NPY_INT64, cols, -1, &key_labels) ||
        !read_exactly(c, a->relation, "relation", NPY_INT8, rows, cols, &relation))
        return false;
    p->labels = labels, p->key_labels = key_labels, p->relation = relation;
    p->period = a->period, p->self_offset = a->self_offset;
    p->normalize = p->normalize_keys = a->normalize;
    return true;
}

static bool choice(const char *name, int value, int highest) {
    if (value >= 0 && value <= highest)
        return true;
    PyErr_Format(PyExc_ValueError, "%s: got %d; accepted: 0 to %d", name, value, highest);
    return false;
}

/* The enums and the threshold; the plain numbers are in place. */
static bool read_settings(numpy_call *c, const arguments *a) {
    hex_settings *s = &c->settings;
    if (!choice("formulation", a->formulation, HEX_RELEASED) ||
        !choice("positives", a->positives, HEX_POSITIVES_MEAN) ||
        !choice("denominator", a->denominator, HEX_DENOMINATOR_NEGATIVES) ||
        !choice("reduction", a->reduction, HEX_REDUCTION_SUM))
        return false;
    s->formulation = (hex_formulation)a->formulation, s->positives = (hex_positives)a->positives;
    s->denominator = (hex_denominator)a->denominator, s->reduction = (hex_reduction)a->reduction;
    if (!a->threshold || a->threshold == Py_None)
        return true;
    PyArrayObject *array = hold(c, a->threshold, "threshold", NPY_DOUBLE, -1, NPY_ARRAY_C_CONTIGUOUS);
    if (!array)
        return false;
    long long count = PyArray_SIZE(array), rows = c->problem.anchors.rows;
    if (PyArray_NDIM(array) > 1 || (count != 1 && count != rows)) {
        PyErr_Format(PyExc_ValueError, "threshold: accepted: a number or shape (%lld,)", rows);
        return false;
    }
    s->threshold = PyArray_DATA(array), s->threshold_count = count;
    return true;
}

static bool check(const numpy_call *c, bool with_settings, bool reference) {
    const char *error = hex_cpu_error();
    if (error) {
        PyErr_SetString(PyExc_RuntimeError, error);
        return false;
    }
    const hex_settings *settings = with_settings ? &c->settings : NULL;
    error = reference ? hex_reference_check(&c->problem, settings) : hex_check(&c->problem, settings);
    if (error)
        PyErr_SetString(PyExc_ValueError, error);
    return !error;
}

/* A new array of up to two dimensions. What only waits in the workspace goes before it fails. */
static PyObject *new_array(int dim, npy_intp rows, npy_intp cols, int type) {
    PyObject *array = PyArray_SimpleNew(dim, ((npy_intp[]){rows, cols}), type);
    if (array || !PyErr_ExceptionMatches(PyExc_MemoryError))
        return array;
    PyErr_Clear();
    Py_BEGIN_ALLOW_THREADS hex_release_workspace();
    Py_END_ALLOW_THREADS return PyArray_SimpleNew(dim, ((npy_intp[]){rows, cols}), type);
}

static PyObject *doubles(int dim, npy_intp rows, npy_intp cols) {
    return new_array(dim, rows, cols, NPY_DOUBLE);
}

static void *data_of(PyObject *array) {
    return array ? PyArray_DATA((PyArrayObject *)array) : NULL;
}

/* Sets the exception of a status other than HEX_OK, on the thread that was told it; NULL. */
static PyObject *failed(hex_status status, bool reference) {
    if (status == HEX_NO_MEMORY && reference)
        return PyErr_NoMemory();
    if (status == HEX_NO_MEMORY)
        return PyErr_Format(PyExc_MemoryError,
                            "out of memory: %lld bytes were wanted, with nothing kept that could be given back",
                            (long long)hex_bytes_wanted());
    hex_python_raise_interrupt(); /* this thread was asked, so it is the one for which the exception waits */
    return NULL;
}

static PyObject *measure_arrays(numpy_call *c, double quantile, bool negatives_only, int want, bool keep,
                                bool reference) {
    double mean = 0;
    int64_t token = 0;
    hex_status status = HEX_OK;
    if (!hex_is_quantile(quantile)) {
        PyErr_SetString(PyExc_ValueError, "quantile: accepted: a number in [0, 1]");
        return NULL;
    }
    if (!choice("want", want, HEX_WANT_QUANTILE | HEX_WANT_MOMENTS) || !check(c, false, reference))
        return NULL;
    PyObject *rows = doubles(2, c->problem.anchors.rows, HEX_ROW_STATS);
    if (!rows)
        return NULL;
    double *out = data_of(rows);
    Py_BEGIN_ALLOW_THREADS if (reference) status =
        hex_reference_measure(&c->problem, quantile, negatives_only, out, &mean);
    else status = hex_measure(&c->problem, quantile, negatives_only, want, keep, out, &mean, &token);
    Py_END_ALLOW_THREADS if (status != HEX_OK) {
        Py_DECREF(rows);
        return failed(status, reference);
    }
    return Py_BuildValue("NdL", rows, mean, (long long)token);
}

static PyObject *measure(PyObject *args, PyObject *kwargs, bool reference) {
    static char *names[] = {"anchors", "keys",        "labels",    "key_labels", "relation",
                            "period",  "self_offset", "normalize", "quantile",   "negatives_only",
                            "want",    "keep",        NULL};
    arguments a = {.self_offset = -1, .normalize = 1};
    double quantile = 0.99;
    int negatives_only = 0, want = HEX_WANT_QUANTILE | HEX_WANT_MOMENTS, keep = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|OOOOLLpdpip", names, &a.anchors, &a.keys, &a.labels,
                                     &a.key_labels, &a.relation, &a.period, &a.self_offset, &a.normalize, &quantile,
                                     &negatives_only, &want, &keep))
        return NULL;
    numpy_call c = {0};
    PyObject *result = NULL;
    if (read_problem(&c, &a))
        result = measure_arrays(&c, quantile, negatives_only, want, keep, reference);
    drop_references(&c);
    return result;
}

/* Everything contrast returns; gradients are NULL where there is none. */
typedef struct {
    PyObject *losses, *batch_stats, *anchors, *keys, *paired;
    double temperature;
} results;

/* Memory for the gradient of a matrix, or nothing where that is absent. */
static bool like(const hex_problem *problem, const hex_matrix *matrix, PyObject **out) {
    static const int types[] = {
        [HEX_F32] = NPY_FLOAT, [HEX_F64] = NPY_DOUBLE, [HEX_F16] = NPY_HALF}; /* those of read_dtype */
    if (!matrix->data)
        return true;
    *out = new_array(2, matrix->rows, matrix->cols, types[problem->dtype]);
    return *out != NULL;
}

static bool allocate(const numpy_call *c, bool backward, results *r) {
    const hex_problem *p = &c->problem;
    bool per_anchor = c->settings.reduction == HEX_REDUCTION_NONE;
    r->losses = doubles(per_anchor, p->anchors.rows, 0);
    r->batch_stats = doubles(1, HEX_BATCH_STATS, 0);
    if (!r->losses || !r->batch_stats)
        return false;
    return !backward ||
           (like(p, &p->anchors, &r->anchors) && like(p, &p->keys, &r->keys) && like(p, &p->paired, &r->paired));
}

/* Without the GIL. grad == NULL: forward only. */
static hex_status compute(const numpy_call *c, const double *grad, int64_t token, bool reference, results *r) {
    hex_gradients gradients = {data_of(r->anchors), data_of(r->keys), data_of(r->paired), &r->temperature};
    double *losses = data_of(r->losses), *batch_stats = data_of(r->batch_stats);
    if (reference)
        return hex_reference_contrast(&c->problem, &c->settings, grad, losses, batch_stats, grad ? &gradients : NULL);
    return hex_contrast(&c->problem, &c->settings, grad ? HEX_NEED_ALL : 0, grad, grad ? &gradients : NULL, losses,
                        batch_stats, NULL, &token);
}

static PyObject *or_none(PyObject *array) {
    return array ? array : Py_None;
}

static PyObject *contrast_arrays(numpy_call *c, const arguments *a, int64_t token, bool reference) {
    int64_t losses = c->settings.reduction == HEX_REDUCTION_NONE ? c->problem.anchors.rows : 1;
    results r = {0};
    PyObject *result = NULL;
    const void *grad = NULL;
    if (a->grad && a->grad != Py_None) {
        PyArrayObject *array = hold(c, a->grad, "grad", NPY_DOUBLE, -1, NPY_ARRAY_C_CONTIGUOUS);
        if (!array)
            return NULL;
        if (PyArray_NDIM(array) > 1 || PyArray_SIZE(array) != losses) {
            PyErr_Format(PyExc_ValueError, "grad: accepted: %lld number(s), one per loss", (long long)losses);
            return NULL;
        }
        grad = PyArray_DATA(array);
    }
    if (check(c, true, reference) && allocate(c, grad != NULL, &r)) {
        hex_status status;
        Py_BEGIN_ALLOW_THREADS status = compute(c, grad, token, reference, &r);
        Py_END_ALLOW_THREADS if (status != HEX_OK) failed(status, reference);
        else if (grad) result = Py_BuildValue("OO(OOOd)", r.losses, r.batch_stats, or_none(r.anchors), or_none(r.keys),
                                              or_none(r.paired), r.temperature);
        else result = Py_BuildValue("OOO", r.losses, r.batch_stats, Py_None);
    }
    Py_XDECREF(r.losses);
    Py_XDECREF(r.batch_stats);
    Py_XDECREF(r.anchors);
    Py_XDECREF(r.keys);
    Py_XDECREF(r.paired);
    return result;
}

static PyObject *contrast(PyObject *args, PyObject *kwargs, bool reference) {
    static char *names[] = {"anchors",   "keys",         "paired",      "labels",      "key_labels",  "relation",
                            "threshold", "temperature",  "period",      "self_offset", "normalize",   "beta",
                            "tau_plus",  "local_weight", "formulation", "positives",   "denominator", "reduction",
                            "grad",      "token",        NULL};
    arguments a = {.self_offset = -1, .normalize = 1, .reduction = HEX_REDUCTION_MEAN};
    numpy_call c = {.settings = {.temperature = 0.1, .beta = 1, .tau_plus = 0.1, .local_weight = 1}};
    hex_settings *s = &c.settings;
    long long token = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|OOOOOOdLLpdddiiiiOL", names, &a.anchors, &a.keys, &a.paired,
                                     &a.labels, &a.key_labels, &a.relation, &a.threshold, &s->temperature, &a.period,
                                     &a.self_offset, &a.normalize, &s->beta, &s->tau_plus, &s->local_weight,
                                     &a.formulation, &a.positives, &a.denominator, &a.reduction, &a.grad, &token))
        return NULL;
    PyObject *result = read_problem(&c, &a) && read_settings(&c, &a) ? contrast_arrays(&c, &a, token, reference) : NULL;
    drop_references(&c);
    return result;
}

/* Results of count_pairs; NULL where they are not wanted. */
typedef struct {
    PyObject *histogram, *hierarchical, *confusions;
} pair_arrays;

static bool allocate_pairs(const numpy_call *c, const hex_pairs *pairs, pair_arrays *r) {
    const npy_intp kinds = pairs->levels + 1, bins = pairs->bins;
    if (bins == 0)
        return true;
    r->histogram = PyArray_SimpleNew(3, ((npy_intp[]){kinds, 2, bins}), NPY_INT64);
    r->hierarchical = new_array(2, c->problem.anchors.rows, pairs->levels, NPY_INT64);
    if (pairs->classes > 0)
        r->confusions = new_array(2, pairs->classes, pairs->classes, NPY_INT64);
    return r->histogram && r->hierarchical && (r->confusions || pairs->classes == 0);
}

static PyObject *pairs_of_arrays(numpy_call *c, const hex_pairs *pairs, bool reference) {
    const char *wrong = hex_check_pairs(&c->problem, pairs);
    if (wrong) {
        PyErr_SetString(PyExc_ValueError, wrong);
        return NULL;
    }
    pair_arrays r = {0};
    PyObject *result = NULL;
    if (allocate_pairs(c, pairs, &r)) {
        hex_pair_counts counts = {data_of(r.histogram), data_of(r.hierarchical), data_of(r.confusions), 0, 0};
        hex_status status;
        Py_BEGIN_ALLOW_THREADS status = reference ? hex_reference_count_pairs(&c->problem, pairs, &counts)
                                                  : hex_count_pairs(&c->problem, pairs, &counts);
        Py_END_ALLOW_THREADS if (status != HEX_OK) failed(status, reference);
        else result = Py_BuildValue("OOOdL", or_none(r.histogram), or_none(r.hierarchical), or_none(r.confusions),
                                    counts.potential, (long long)counts.broken);
    }
    Py_XDECREF(r.histogram);
    Py_XDECREF(r.hierarchical);
    Py_XDECREF(r.confusions);
    return result;
}

static PyObject *count_pairs(PyObject *args, PyObject *kwargs, bool reference) {
    static char *names[] = {"anchors", "groups", "threshold", "bins", "classes", "class_level", "exponent", NULL};
    arguments a = {.self_offset = 0, .normalize = 1};
    PyObject *groups = NULL;
    long long bins = 0, classes = 0, class_level = 0;
    hex_pairs pairs = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|OLLLd", names, &a.anchors, &groups, &a.threshold, &bins,
                                     &classes, &class_level, &pairs.exponent))
        return NULL;
    numpy_call c = {0};
    PyObject *result = NULL;
    PyArrayObject *array = NULL;
    if (read_problem(&c, &a) && read_settings(&c, &a) && check(&c, false, reference))
        array = hold(&c, groups, "groups", NPY_INT32, 2, NPY_ARRAY_C_CONTIGUOUS);
    if (array && PyArray_DIM(array, 1) != c.problem.anchors.rows) {
        PyErr_Format(PyExc_ValueError, "groups: accepted: shape (levels, %lld)", (long long)c.problem.anchors.rows);
    } else if (array) {
        pairs.groups = PyArray_DATA(array), pairs.levels = PyArray_DIM(array, 0);
        pairs.threshold = c.settings.threshold, pairs.threshold_count = c.settings.threshold_count;
        pairs.bins = bins, pairs.classes = classes, pairs.class_level = class_level;
        result = pairs_of_arrays(&c, &pairs, reference);
    }
    drop_references(&c);
    return result;
}

PyObject *hex_python_measure(PyObject *module, PyObject *args, PyObject *kwargs) {
    (void)module;
    return measure(args, kwargs, false);
}

PyObject *hex_python_contrast(PyObject *module, PyObject *args, PyObject *kwargs) {
    (void)module;
    return contrast(args, kwargs, false);
}

PyObject *hex_python_reference_measure(PyObject *module, PyObject *args, PyObject *kwargs) {
    (void)module;
    return measure(args, kwargs, true);
}

PyObject *hex_python_reference_contrast(PyObject *module, PyObject *args, PyObject *kwargs) {
    (void)module;
    return contrast(args, kwargs, true);
}

PyObject *hex_python_count_pairs(PyObject *module, PyObject *args, PyObject *kwargs) {
    (void)module;
    return count_pairs(args, kwargs, false);
}

PyObject *hex_python_reference_count_pairs(PyObject *module, PyObject *args, PyObject *kwargs) {
    (void)module;
    return count_pairs(args, kwargs, true);
}
