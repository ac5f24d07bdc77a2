"""InfoNCE, HEX weighted and HEX released, trained from the same seed: a table and a picture.

    python examples/demo.py                          # scikit-learn's digits, about a minute
    python examples/demo.py --data fashion-mnist     # a few minutes

The projections of the test pictures are kept, too, for a page on what each loss has made of the classes:

    python -m hexssl inspect runs/demo.npz --key hex --labels labels --superclass superclass
"""

import argparse
import os
import platform
import statistics
import sys
from pathlib import Path

# Threads that wait sleep instead of spinning: several times faster where other work runs beside this. Read by
# OpenMP when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cli  # noqa: E402
import numpy as np  # noqa: E402
import simclr  # noqa: E402
import torch  # noqa: E402
import training  # noqa: E402
from data import Images, load  # noqa: E402
from evaluate import ROWS, cosines_by_relation, embed, knn_accuracy, linear_accuracy  # noqa: E402
from figure import NAMES, draw  # noqa: E402
from tqdm import tqdm  # noqa: E402


def train(loss: str, options: argparse.Namespace, images: Images) -> training.Run:
    """Train one variant as simclr.py does, k-NN accuracy after every epoch."""
    arguments = ["--loss", loss, "--data", options.data, "--epochs", str(options.epochs), "--seed", str(options.seed)]
    run = simclr.start(simclr.parse(arguments), images)
    with tqdm(total=options.epochs, desc=f"{NAMES[loss]:<12}", unit="epoch") as progress:
        while run.epoch < options.epochs:
            record = training.train_epoch(run, images)
            record["knn"] = knn_accuracy(run.model.encoder, images)
            progress.set_postfix_str(f"loss {record['loss']:.3f}, k-NN {record['knn']:.1%}")
            progress.update()
    return run


def table(runs: dict[str, training.Run], untrained: training.Run, images: Images) -> tuple[str, dict[str, float]]:
    """A Markdown table of all variants, and their k-NN accuracies."""
    lines = [
        "| loss | final value | k-NN | linear | in the loss | per step | share |",
        "|---|---:|---:|---:|---:|---:|---:|",
        f"| untrained encoder | | {knn_accuracy(untrained.model.encoder, images):.1%} "
        f"| {linear_accuracy(untrained.model.encoder, images):.1%} | | | |",
    ]
    accuracies = {}
    for loss, run in runs.items():
        last = run.history[-1]
        accuracies[loss] = last["knn"]
        settled = run.history[len(run.history) // 2 :]  # past the warm-up, which is cheaper
        in_loss, per_step = (statistics.median(record[key] for record in settled) for key in ("loss_ms", "step_ms"))
        linear = linear_accuracy(run.model.encoder, images)
        lines.append(
            f"| {NAMES[loss]} | {last['loss']:.3f} | {last['knn']:.1%} | {linear:.1%} "
            f"| {in_loss:.1f} ms | {per_step:.1f} ms | {in_loss / per_step:.1%} |"
        )
    return "\n".join(lines), accuracies


def machine() -> str:
    """Where the numbers were measured."""
    processor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        processor = names[0] if names else processor
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{torch.get_num_threads()} threads of {processor}, {versions}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", choices=tuple(cli.EPOCHS), default="digits")
    add("--data-dir", help="directory with Fashion-MNIST's four .gz files")
    add("--epochs", type=int, help="default: 20 on digits, 8 on Fashion-MNIST")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("runs"), help="directory of demo.png, demo.md and demo.npz")
    add("--check", action="store_true", help="fail unless every variant beats the untrained encoder's k-NN")
    options = parser.parse_args()
    if options.epochs is None:
        options.epochs = cli.EPOCHS[options.data]
    if options.epochs < 1:
        parser.error("--epochs must be at least 1")
    return options


def main() -> None:
    options = parse()
    images = load(options.data, options.data_dir, cli.TRAIN_ROWS[options.data])
    untrained = simclr.start(simclr.parse(["--data", options.data, "--seed", str(options.seed)]), images)
    baseline = knn_accuracy(untrained.model.encoder, images)
    runs = {loss: train(loss, options, images) for loss in cli.LOSSES}

    summary, accuracies = table(runs, untrained, images)
    command = f"python examples/demo.py --data {options.data} --epochs {options.epochs} --seed {options.seed}"
    text = f"{summary}\n\n`{command}`, {machine()}.\n"
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "demo.md").write_text(text)

    pictures = images.test[: min(ROWS, 1000)]
    projections = {
        loss: embed(torch.nn.Sequential(run.model.encoder, run.model.projector), pictures) for loss, run in runs.items()
    }
    labels = images.test_labels[: len(pictures)]
    np.savez(options.output / "demo.npz", labels=labels.numpy(), superclass=images.superclass_of[labels].numpy(),
             **{loss: rows.numpy() for loss, rows in projections.items()})
    cosines = {loss: cosines_by_relation(rows, images) for loss, rows in projections.items()}
    title = f"{images.name}, {len(images.train):,} pictures, {options.epochs} epochs, seed {options.seed}"
    picture = options.output / "demo.png"
    draw({loss: run.history for loss, run in runs.items()}, baseline, cosines, title, picture)
    print(f"\n{text}\npicture: {picture}")

    if options.check:
        check(accuracies, baseline)


def check(accuracies: dict[str, float], baseline: float) -> None:
    winners = [loss for loss, accuracy in accuracies.items() if accuracy > baseline]
    losers = [f"{NAMES[loss]} ({accuracies[loss]:.1%})" for loss in accuracies if loss not in winners]
    if losers:
        sys.exit(f"not above the untrained encoder's k-NN accuracy of {baseline:.1%}: {', '.join(losers)}")
    print(f"every variant beats the untrained encoder's k-NN accuracy of {baseline:.1%}")


if __name__ == "__main__":
    main()
