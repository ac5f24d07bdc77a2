"""Barlow Twins and VICReg, which have no negatives, with HEX added as a regulariser.

    python examples/barlow_vicreg.py                          # Barlow Twins, a few minutes on Fashion-MNIST
    python examples/barlow_vicreg.py --base vicreg            # VICReg
    python examples/barlow_vicreg.py --loss hex               # 0.1 HEX + 0.9 Barlow Twins
    python examples/barlow_vicreg.py --swap                   # the sum written out and ours: one curve
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import cli
import training
from data import load
from peer_formulas import barlow_loss_func, simclr_loss_func, vicreg_loss_func
from simclr import SimCLR, stacked
from swapping import swap
from torch import Tensor

from hexssl import HEXRegularized
from hexssl.regularizers import VICREG_WEIGHTS

BASES = {"barlow": barlow_loss_func, "vicreg": partial(vicreg_loss_func, **VICREG_WEIGHTS)}


def main(arguments: Sequence[str] | None = None) -> Any:
    parser = cli.make_parser(__doc__, losses=("alone", *cli.LOSSES))
    parser.add_argument("--base", choices=tuple(BASES), default="barlow")
    parser.add_argument("--alpha", type=float, default=0.1, help="share of the contrastive loss, in [0, 1]")
    options = cli.parse(parser, arguments)
    images = load(options.data, options.data_dir, options.train_rows)
    base = BASES[options.base]
    if options.swap:
        contrast = stacked(simclr_loss_func, options.temperature)

        def written_out(view_one: Tensor, view_two: Tensor) -> Tensor:
            return options.alpha * contrast(view_one, view_two) + (1 - options.alpha) * base(view_one, view_two)

        ours = HEXRegularized(base, options.alpha, temperature=options.temperature, threshold=None)
        return swap(options, images, SimCLR, {"written out": written_out, "hexssl.HEXRegularized": ours})
    if options.loss == "alone":
        criterion = base
    else:
        criterion = HEXRegularized(base, options.alpha, temperature=options.temperature, **cli.hex_arguments(options))
    return training.fit(training.start(options, images, SimCLR, criterion), images, options.base)


if __name__ == "__main__":
    main()
