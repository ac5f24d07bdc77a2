# make demo     train on real images and compare the losses (DATA=digits or fashion-mnist, DATA_DIR=..., EPOCHS=n)
# make test     the test suite and the examples in the documentation (PYTEST='-x tests/test_losses.py': pytest's arguments)
# make test-gpu what is tested on an accelerator (CUDA, MPS, XPU), where there is one: TORCH=torch installs that torch
# make test-triton  the Triton kernels' tests, in Triton's interpreter on the CPU
# make aot      compiles the Triton kernels for their targets, without a GPU, and compares with docs/triton_aot.csv: nine
#               minutes on one core (AOT='--columns 64 --jobs 2': some of them)
# make docs     the documentation site, in build/site, with every warning an error; then the tests of its pages
# make sanitize what a compiler's sanitizers find as the tests run: memory, undefined behaviour, leaks, races
# make bench    the speed that is promised, line by line, and the pictures: about 40 minutes (PRESETS=quick: fewer)
# make profile  where the time of a step goes, phase by phase
# make wheel    a wheel and an sdist in dist/, checked
# make clean    remove what was built (make distclean: the environment too)
#
# The first call creates .venv with everything in it. PYTHON=... chooses the interpreter, TORCH=... the torch to
# install.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
TORCH ?= torch==2.13.0
DATA ?= digits
DATA_DIR ?=
EPOCHS ?=
PRESETS ?= quick acceptance drop-ins
PYTEST ?= -q --durations=20
AOT ?=
# Libraries whose loss files alone are wanted, by the tests of the drop-ins: what they require is not (torchvision, ...).
LOSS_FILES := lightly==1.6.0 open-clip-torch==3.3.0 solo-learn==1.0.2

VENV := .venv
BIN := $(VENV)/bin
BUILT := $(VENV)/.built
C_SOURCES := $(shell find csrc -name '*.[ch]')

.PHONY: demo test test-gpu test-triton aot docs sanitize bench profile wheel environment tools clean distclean

demo: $(BUILT)
	$(BIN)/python examples/demo.py --data $(DATA) $(if $(DATA_DIR),--data-dir $(DATA_DIR)) $(if $(EPOCHS),--epochs $(EPOCHS))

# A file at a time on every core, most problems being too small for threads. Those that wait do so without spinning.
# Bytecode is kept, whatever the environment says: many tests start processes, and torch without it takes 2.4 s more of
# each to import, torch's compiler 6 s (on one core of an AVX-512 server). Files keep the order of tests/conftest.py,
# which has those first that take longest.
test: tools
	PYTHONDONTWRITEBYTECODE= OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n auto --dist loadfile \
		--no-loadscope-reorder $(PYTEST)

test-gpu: tools
	$(BIN)/python -c 'import torch; assert torch.accelerator.is_available(), "torch finds no accelerator here"'
	$(BIN)/python -m pytest -q tests/test_devices.py tests/test_thresholds.py tests/test_temperature.py \
		-k "cuda or mps or xpu"
	$(BIN)/python -m hexssl bench --device $$($(BIN)/python -c \
		'import torch; print(torch.accelerator.current_accelerator().type)') --output build/bench.csv

# The interpreter is chosen when triton is imported, and compilers need it unset: processes of their own. The torch that
# is installed need not have brought triton.
test-triton: tools $(VENV)/.triton
	TRITON_INTERPRET=1 OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/triton_kernels

aot: tools $(VENV)/.triton
	$(BIN)/python tools/triton_aot.py --check $(AOT)

docs: tools $(VENV)/.docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d build/doctrees docs build/site
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q tests/test_docs.py tests/test_readme.py
	@echo "the site: build/site/index.html"

sanitize: tools
	$(BIN)/python tools/sanitize.py address,undefined
	$(BIN)/python tools/sanitize.py thread

# Every preset runs, whatever the one before it found; a promise that is not kept fails in the end.
bench: tools
	failed=; for preset in $(PRESETS); do \
		$(BIN)/python benchmarks/bench.py --preset $$preset || failed="$$failed $$preset"; done; \
		test -z "$$failed" || { echo "not all that is promised was measured:$$failed"; exit 1; }

profile: tools
	$(BIN)/python benchmarks/phases.py

wheel: tools
	$(BIN)/python tools/check_wheel.py

environment: $(BUILT)

tools: $(BUILT) $(VENV)/.tools

# The requirements of the named extras, one per line.
requirements = $(PYTHON) -c 'import sys, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print("\n".join(line for extra in sys.argv[1:] for line in project["optional-dependencies"][extra]))'

# Dependencies change with pyproject.toml; the extension with the C sources and its build.
$(VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || \
		{ echo "hexssl needs Python 3.11 or newer: none found on PATH; use make PYTHON=/path/to/python"; exit 1; }
	@echo "python: $(PYTHON) ($$($(PYTHON) --version))"
	@echo "cc:     $$($${CC:-cc} --version | head -1)"
	@echo "cpu:    $$(uname -m), $$($(PYTHON) -c 'import os; print(os.cpu_count())') cores"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(requirements) examples | \
		$(BIN)/python -m pip install -q --no-compile "$(TORCH)" "numpy>=2" "setuptools>=77" -r /dev/stdin
	@touch $@

$(BUILT): $(VENV)/.installed setup.py MANIFEST.in $(C_SOURCES)
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q --no-build-isolation --no-deps -e .
	@$(BIN)/python -m hexssl
	@touch $@

$(VENV)/.tools: $(VENV)/.installed
	$(requirements) test bench studies dev | $(BIN)/python -m pip install -q "$(TORCH)" -r /dev/stdin
	$(BIN)/python -m pip install -q --no-deps $(LOSS_FILES)
	@touch $@

$(VENV)/.triton: $(VENV)/.installed
	$(requirements) test-triton | $(BIN)/python -m pip install -q --no-deps -r /dev/stdin
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(requirements) docs | $(BIN)/python -m pip install -q -r /dev/stdin
	@touch $@

clean:
	rm -rf build dist *.egg-info hexssl/_C*.so $(BUILT) .pytest_cache .mypy_cache .ruff_cache

distclean: clean
	rm -rf $(VENV)
