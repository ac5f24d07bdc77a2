"""The arguments of the training scripts."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hexssl.thresholds import AdaptiveThreshold, FixedThreshold

LOSSES = ("infonce", "hex", "hex-released")
EPOCHS = {"digits": 20, "fashion-mnist": 8}
TRAIN_ROWS = {"digits": None, "fashion-mnist": 6000}
SHORT_EPOCHS = 8
SWAP_EPOCHS, SWAP_ROWS = 3, 1500  # enough to see that two curves are one; float64 is slow


def make_parser(description: str | None, losses: tuple[str, ...] = LOSSES, **defaults: Any) -> argparse.ArgumentParser:
    """The options of all scripts; `losses` are the choices of ``--loss``, the first is the default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--loss", choices=losses, default=losses[0])
    add("--swap", action="store_true", help="train with the other library's formula and with its replacement; compare")
    add("--short", action="store_true", help=f"{SHORT_EPOCHS} epochs on digits, which come with scikit-learn")
    add("--data", choices=tuple(EPOCHS), help="default: fashion-mnist")
    add("--data-dir", help="directory with Fashion-MNIST's four .gz files")
    add("--train-rows", type=int, help="train on the first so many pictures only; default: "
                                       f"{TRAIN_ROWS['fashion-mnist']} of Fashion-MNIST, {SWAP_ROWS} with --swap")
    add("--epochs", type=int, help=f"default: {EPOCHS['fashion-mnist']} on Fashion-MNIST, {EPOCHS['digits']} on "
                                   f"digits, {SWAP_EPOCHS} with --swap")
    add("--batch-size", type=int, help="default: 128, or 64 with --short: more steps in as many epochs")
    add("--learning-rate", type=float, default=2e-3)
    add("--seed", type=int, default=0)
    add("--temperature", type=float, default=0.1)
    add("--output", type=Path, default=Path("runs"), help="directory of the checkpoint")
    add("--resume", type=Path, help="checkpoint to continue from")
    add = parser.add_argument_group("HEX").add_argument
    add("--quantile", type=float, default=0.99, help="adaptive threshold: mean over rows of this quantile")
    add("--rows", choices=("all", "negatives"), default="all", help="which cosines of a row the quantile is of")
    add("--warmup", type=int, help="epochs 0 to this one have no adaptive threshold; default: a fifth of the epochs")
    add("--momentum", type=float, help="average the adaptive threshold over steps, in [0, 1)")
    add("--monotone", action="store_true", help="never let the adaptive threshold rise")
    add("--threshold", type=float, help="a fixed threshold on the cosine instead of the adaptive one")
    add("--beta", type=float, default=1.0, help="concentration of the hard-negative weights")
    add("--tau-plus", type=float, default=0.1, help="class prior of the debiasing")
    add("--local-weight", type=float, default=1.0, help="weight of the hierarchical negatives")
    parser.set_defaults(**defaults)
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, those not given filled in from the ones given."""
    options = parser.parse_args(arguments)
    if options.swap and options.resume:
        parser.error("--swap starts anew: it goes without --resume")
    if options.swap and options.loss != parser.get_default("loss"):
        parser.error(f"--swap compares losses of its own: it goes without --loss {options.loss}")
    if options.data is None:
        options.data = "digits" if options.short else "fashion-mnist"
    if options.epochs is None:
        options.epochs = SWAP_EPOCHS if options.swap else SHORT_EPOCHS if options.short else EPOCHS[options.data]
    if options.train_rows is None:
        options.train_rows = SWAP_ROWS if options.swap else TRAIN_ROWS[options.data]
    if options.batch_size is None:
        options.batch_size = 64 if options.short else 128
    if options.warmup is None:
        # The paper's 10 epochs are for runs of 100 to 1000; of a short run they would leave little.
        options.warmup = max(options.epochs // 5 - 1, 0)
    return options


def hex_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The one argument that turns HEX on, ``threshold``, and those that go with it; every loss of hexssl takes them."""
    if options.loss == "infonce":
        return {"threshold": None}
    if options.threshold is not None:
        threshold: nn.Module = FixedThreshold(options.threshold)
    else:
        threshold = AdaptiveThreshold(
            options.quantile, options.rows, warmup=options.warmup, momentum=options.momentum, monotone=options.monotone
        )
    if options.loss == "hex-released":
        return {"threshold": threshold, "formulation": "released"}
    return {"threshold": threshold, "beta": options.beta, "tau_plus": options.tau_plus,
            "local_weight": options.local_weight}
