"""GPUs that Triton compiles for: fused kernels, tiles of cosines streamed, nothing of M x N in memory.

Triton comes with every CUDA and ROCm build of torch. It is imported at the first loss, so that this package can be
imported where there is none. The kernels pass their tests in Triton's interpreter and are compiled ahead for the
targets of `blocks.TABLE`; they were never run or timed on silicon.
"""

from __future__ import annotations

from hexssl.backends.triton import operators
from hexssl.backends.triton.adapter import loss, row_statistics
from hexssl.backends.triton.refusals import installed, refuses

__all__ = ["installed", "loss", "operators", "refuses", "row_statistics"]
