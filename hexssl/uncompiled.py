"""What ``torch.compile`` leaves out of its graphs.

Imported where it is called, and nowhere else: torch's compiler comes with the mark, and takes seconds to import.
"""

from __future__ import annotations

import torch

from hexssl import ring

evaluate_ring = torch.compiler.disable(ring.evaluate)
