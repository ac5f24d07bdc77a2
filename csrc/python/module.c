/* module.c: the module hexssl._C: its initialisation, the CPU report and the workspace. */
#include "python.h"

#include "../hex.h"
#include "../torch/stable_abi.h"

/* [{"name", "compiled", "supported", "chosen"}, ...]; *chosen is borrowed from the table. */
static PyObject *tier_list(const char **chosen) {
    const hex_tier *tiers;
    int count = hex_tiers(&tiers);
    PyObject *list = PyList_New(0);
    *chosen = NULL;
    for (int i = 0; list && i < count; i++) {
        if (tiers[i].chosen)
            *chosen = tiers[i].name;
        PyObject *tier =
            Py_BuildValue("{sssNsNsN}", "name", tiers[i].name, "compiled", PyBool_FromLong(tiers[i].compiled),
                          "supported", PyBool_FromLong(tiers[i].supported), "chosen", PyBool_FromLong(tiers[i].chosen));
        if (!tier || PyList_Append(list, tier) < 0)
            Py_CLEAR(list);
        Py_XDECREF(tier);
    }
    return list;
}

static PyObject *cpu_report(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    const char *chosen;
    PyObject *tiers = tier_list(&chosen);
    if (!tiers)
        return NULL;
    uint64_t abi = hex_torch.aoti_torch_abi_version();
    return Py_BuildValue("{sNszsssssis(iii)}", "tiers", tiers, "chosen", chosen, "reason", hex_cpu_reason(), "features",
                         hex_cpu_features(), "threads", hex_torch_threads(), "torch_abi", (int)(abi >> 56),
                         (int)(abi >> 48 & 255), (int)(abi >> 40 & 255));
}

/* Gigabytes may be given back, which takes its time: without the GIL. */
static void set_budget(void (*set)(int64_t bytes), int64_t bytes) {
    Py_BEGIN_ALLOW_THREADS set(bytes);
    Py_END_ALLOW_THREADS
}

/* An int >= 0, or -1 with an exception set. */
static int64_t bytes_of(PyObject *value, const char *accepted) {
    long long bytes = PyLong_AsLongLong(value);
    if (bytes < 0 && !PyErr_Occurred())
        PyErr_Format(PyExc_ValueError, "bytes: got %lld; accepted: %s", bytes, accepted);
    return bytes < 0 ? -1 : bytes;
}

static PyObject *set_workspace_budget(PyObject *module, PyObject *value) {
    (void)module;
    int64_t bytes = value == Py_None ? -1 : bytes_of(value, "an int >= 0, or None");
    if (PyErr_Occurred())
        return NULL;
    set_budget(hex_set_workspace_budget, bytes);
    Py_RETURN_NONE;
}

static PyObject *set_default_budget(PyObject *module, PyObject *value) {
    (void)module;
    int64_t bytes = bytes_of(value, "an int >= 0");
    if (bytes < 0)
        return NULL;
    set_budget(hex_set_default_budget, bytes);
    Py_RETURN_NONE;
}

static PyObject *workspace_budget(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyLong_FromLongLong(hex_workspace_budget());
}

static PyObject *release_workspace(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    Py_BEGIN_ALLOW_THREADS hex_release_workspace();
    Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

static PyObject *plan(PyObject *module, PyObject *arguments) {
    (void)module;
    long long anchors, keys, columns;
    int dtype, adaptive;
    if (!PyArg_ParseTuple(arguments, "LLLip", &anchors, &keys, &columns, &dtype, &adaptive))
        return NULL;
    hex_problem problem = {.dtype = (hex_dtype)dtype, .anchors = {&problem, anchors, columns, columns, 1}};
    if (keys > 0)
        problem.keys = (hex_matrix){&problem, keys, columns, columns, 1};
    hex_plan found;
    hex_plan_of(&problem, adaptive, &found);
    return Py_BuildValue("LLLLLLNL", (long long)found.anchor_rows, (long long)found.key_rows, (long long)found.tiles,
                         (long long)found.tile_bytes, (long long)found.kept_tiles, (long long)found.kept_bytes,
                         PyBool_FromLong(found.fused), (long long)found.cache);
}

static PyObject *profile(PyObject *module, PyObject *on) {
    (void)module;
    int value = PyObject_IsTrue(on);
    if (value < 0)
        return NULL;
    hex_profile(value);
    Py_RETURN_NONE;
}

static PyObject *profile_lines(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    hex_profile_line line;
    PyObject *list = PyList_New(0);
    for (int phase = 0; list && hex_profile_read(phase, &line); phase++) {
        PyObject *entry = Py_BuildValue("(sddL)", line.name, line.seconds, line.operations, (long long)line.calls);
        if (!entry || PyList_Append(list, entry) < 0)
            Py_CLEAR(list);
        Py_XDECREF(entry);
    }
    return list;
}

#define WITH_KEYWORDS(function) (PyCFunction)(void (*)(void)) function, METH_VARARGS | METH_KEYWORDS

static PyMethodDef methods[] = {
    {"measure", WITH_KEYWORDS(hex_python_measure), "Row statistics of the cosines."},
    {"contrast", WITH_KEYWORDS(hex_python_contrast), "The loss, its statistics and, given grad, its gradients."},
    {"reference_measure", WITH_KEYWORDS(hex_python_reference_measure), "measure in double loops, float64 only."},
    {"reference_contrast", WITH_KEYWORDS(hex_python_reference_contrast), "contrast in double loops, float64 only."},
    {"count_pairs", WITH_KEYWORDS(hex_python_count_pairs), "Pairs by what their rows have in common and by cosine."},
    {"reference_count_pairs", WITH_KEYWORDS(hex_python_reference_count_pairs),
     "count_pairs in double loops, float64 only."},
    {"raise_interrupt", hex_python_interrupt, METH_NOARGS,
     "Raises what a signal's handler raised during the last call, if it did."},
    {"cpu_report", cpu_report, METH_NOARGS, "What was detected and chosen, and why."},
    {"set_workspace_budget", set_workspace_budget, METH_O,
     "Bytes that may be kept between the steps of a loss; None: the default."},
    {"set_default_budget", set_default_budget, METH_O, "Bytes that are the budget as long as none is set."},
    {"workspace_budget", workspace_budget, METH_NOARGS, "The budget in bytes."},
    {"release_workspace", release_workspace, METH_NOARGS, "Gives back what is kept and not in use."},
    {"plan", plan, METH_VARARGS, "How (anchors, keys or 0, columns, dtype of csrc/hex.h) is cut into tiles."},
    {"profile", profile, METH_O, "Switches the profile on, from zero, or off."},
    {"profile_lines", profile_lines, METH_NOARGS, "(phase, seconds over threads, operations, calls) for every phase."},
    {NULL, NULL, 0, NULL},
};

/* Numbers of hex.h that Python needs, too. */
static int add_numbers(PyObject *module) {
    static const struct {
        const char *name;
        long value;
    } numbers[] = {{"ROW_STATS", HEX_ROW_STATS},       {"BATCH_STATS", HEX_BATCH_STATS},
                   {"ROW_STATE", HEX_ROW_STATE},       {"WANT_QUANTILE", HEX_WANT_QUANTILE},
                   {"WANT_MOMENTS", HEX_WANT_MOMENTS}, {"DEFAULT_BUDGET", HEX_DEFAULT_BUDGET},
                   {"REST_SECONDS", HEX_REST_SECONDS}, {"MOST_LEVELS", HEX_MOST_LEVELS},
                   {"MOST_BINS", HEX_MOST_BINS},       {"PART_ROW", HEX_PART_ROW},
                   {"PART_BATCH", HEX_PART_BATCH}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (PyModule_AddIntConstant(module, numbers[i].name, numbers[i].value) < 0)
            return -1;
    return 0;
}

/* All that is static is found once per process, so a second import of the module changes nothing. */
static int initialise(PyObject *module) {
    if (add_numbers(module) < 0 || hex_python_import_numpy() < 0)
        return -1;
    const char *error = hex_cpu_error();
    if (!error)
        error = hex_torch_find();
    if (!error)
        error = hex_torch_register_operators();
    if (error) {
        PyErr_SetString(PyExc_ImportError, error);
        return -1;
    }
    hex_torch_install_pool();
    hex_set_interrupted(hex_python_interrupted);
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, initialise},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "hexssl._C", .m_doc = "The C core of hexssl.",
    .m_methods = methods,  .m_slots = slots,
};

PyMODINIT_FUNC PyInit__C(void);

PyMODINIT_FUNC PyInit__C(void) {
    return PyModuleDef_Init(&definition);
}
