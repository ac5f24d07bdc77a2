"""These tests run Triton's kernels in its interpreter, which is chosen when triton is imported: in a process of their
own, `TRITON_INTERPRET=1 OPENBLAS_NUM_THREADS=1 python -m pytest tests/triton_kernels` (`make test-triton`). Elsewhere they are
left out."""

import importlib.util

from hexssl.backends.triton.refusals import interpreted

collect_ignore_glob = [] if interpreted() and importlib.util.find_spec("triton") else ["test_*.py"]
