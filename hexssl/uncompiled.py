"""What ``torch.compile`` leaves out of its graphs: a ring, which sends from one rank to another.

Imported where it is called, and nowhere else: torch's compiler comes with the mark, and takes seconds to import.
"""

from __future__ import annotations

import torch

from hexssl import gathered

evaluate_gathered = torch.compiler.disable(gathered.evaluate_gathered)
gathered_statistics = torch.compiler.disable(gathered.gathered_statistics)
