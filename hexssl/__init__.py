"""HEX and InfoNCE losses for self-supervised learning, with a compiled core for the CPU.

    measure the cosines  -->  decide a threshold  -->  contrast

See `hex_loss` for the loss as a function and `HEXLoss` for the module.
"""

_NEEDED = "hexssl needs torch 2.10 or later"

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError(f"{_NEEDED}, which is not installed; see https://pytorch.org/get-started") from error

if tuple(int("".join(filter(str.isdigit, part)) or 0) for part in torch.__version__.split(".")[:2]) < (2, 10):
    raise ImportError(f"{_NEEDED}; found torch {torch.__version__}")

from hexssl import arrays, diagnostics, thresholds, workspace  # noqa: E402
from hexssl.functional import (  # noqa: E402
    HEXStats,
    RowStats,
    cross_hex_loss,
    cross_info_nce,
    hex_loss,
    info_nce,
    similarity_stats,
)
from hexssl.losses import CrossHEXLoss, CrossInfoNCELoss, HEXLoss, InfoNCELoss  # noqa: E402
from hexssl.profiling import from_environment as _profile_from_environment  # noqa: E402
from hexssl.queues import FeatureQueue  # noqa: E402
from hexssl.regularizers import HEXRegularized  # noqa: E402
from hexssl.temperature import LogTemperature  # noqa: E402
from hexssl.warming import warm_up  # noqa: E402

_profile_from_environment()
workspace.from_environment()

__version__ = "0.1.0"
__all__ = ["CrossHEXLoss", "CrossInfoNCELoss", "FeatureQueue", "HEXLoss", "HEXRegularized", "HEXStats", "InfoNCELoss",
           "LogTemperature", "RowStats", "arrays", "cross_hex_loss", "cross_info_nce", "diagnostics", "hex_loss",
           "info_nce", "similarity_stats", "thresholds", "warm_up", "workspace"]
