"""These tests run Triton's kernels in its interpreter, which is chosen when triton is imported: in a process of their
own (`make test-triton`). Elsewhere they are left out."""

import importlib.util

from hexssl.backends.triton.refusals import interpreted

collect_ignore_glob = [] if interpreted() and importlib.util.find_spec("triton") else ["test_*.py"]
