"""Supervised contrastive learning: all views of all pictures of a class are each other's positives.

    python examples/supcon.py                 # SupCon, a few minutes on Fashion-MNIST
    python examples/supcon.py --loss hex      # with hierarchical negatives
    python examples/supcon.py --swap          # pytorch-metric-learning's formula and ours: one curve
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import cli
import peer_formulas
import training
from data import load
from networks import TwoViews
from swapping import swap
from torch import Tensor

from hexssl.compat.metric_learning import SupConLoss


class SupCon(TwoViews):
    def forward(self, pictures: Tensor, labels: Tensor) -> Tensor:
        return self.criterion(self.project_views(pictures), labels.repeat(2))


def main(arguments: Sequence[str] | None = None) -> Any:
    parser = cli.make_parser(__doc__)
    parser.set_defaults(rows="negatives")  # of all cosines of a row, the largest hundredth are those of its class
    options = cli.parse(parser, arguments)
    images = load(options.data, options.data_dir, options.train_rows)
    if options.swap:
        return swap(options, images, SupCon, {
            "metric-learning's": partial(peer_formulas.sup_con_loss, temperature=options.temperature),
            "hexssl.compat": SupConLoss(options.temperature),
        })
    criterion = SupConLoss(options.temperature, **cli.hex_arguments(options))
    return training.fit(training.start(options, images, SupCon, criterion), images, "supcon")


if __name__ == "__main__":
    main()
