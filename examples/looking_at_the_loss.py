# %% [markdown]
# # Looking at what the loss sees
#
# Run in Jupyter (`jupytext`, or an editor that knows `# %%` cells), or as a script, which writes `runs/looking.png`.
# NumPy only: no model is trained. Embeddings with a known hierarchy stand in for one: 4 superclasses of 5 classes.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from hexssl import arrays

rng = np.random.default_rng(0)
SUPERCLASSES, CLASSES, SAMPLES, COLUMNS = 4, 5, 16, 32
superclass_centres = rng.standard_normal((SUPERCLASSES, 1, 1, COLUMNS))
class_centres = superclass_centres + 0.6 * rng.standard_normal((1, CLASSES, 1, COLUMNS))
samples = class_centres + 0.4 * rng.standard_normal((SUPERCLASSES, CLASSES, SAMPLES, COLUMNS))
samples = samples.reshape(-1, COLUMNS)
views = np.concatenate([samples, samples + 0.2 * rng.standard_normal(samples.shape)])  # two stacked views

# %% [markdown]
# The adaptive threshold is the mean over anchors of a quantile of their cosines. A lower quantile takes in the rest of
# the class, then the superclass.

# %%
unit = views / np.linalg.norm(views, axis=1, keepdims=True)
index = np.arange(len(views)) % len(samples)
of_class = index // SAMPLES
of_superclass = of_class // CLASSES
pairs = np.triu_indices(len(views), 1)
cosines = (unit @ unit.T)[pairs]
same_sample, same_class, same_superclass = (
    (ids[:, None] == ids)[pairs] for ids in (index, of_class, of_superclass)
)
parts = {
    "same class": cosines[same_class & ~same_sample],
    "same superclass": cosines[same_superclass & ~same_class],
    "other": cosines[~same_superclass],
}

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
for name, values in parts.items():
    left.hist(values, np.linspace(-1, 1, 81), density=True, histtype="stepfilled", alpha=0.5, label=name)
for quantile, style in ((0.99, "-"), (0.95, "--"), (0.8, ":")):
    threshold = arrays.similarity_stats(views, quantile=quantile).quantile.mean()
    left.axvline(threshold, color="black", linestyle=style, label=f"threshold, quantile {quantile}")
left.set(xlabel="cosine of two rows", ylabel="density")
left.legend()

# %% [markdown]
# What the threshold does to the loss and its gradient, both relative to InfoNCE, and the share of negatives above it.

# %%
thresholds = np.linspace(-0.2, 1, 61)
pair = np.split(views, 2)
results = [arrays.hex_loss(*pair, threshold=float(threshold)) for threshold in thresholds]
info_nce = arrays.info_nce(*pair)
norms = np.array([np.linalg.norm(result.gradients.views) for result in results])
right.plot(thresholds, [result.loss / info_nce.loss for result in results], label="loss / InfoNCE")
right.plot(thresholds, norms / np.linalg.norm(info_nce.gradients.views), label="gradient / InfoNCE, norms")
right.plot(thresholds, [result.stats.hierarchical_fraction for result in results], label="share of the negatives above")
right.axhline(1, color="grey", linestyle="--", linewidth=1)
right.set(xlabel="threshold on the cosine", ylim=(0, None))
right.legend()

# %%
output = Path("runs/looking.png")
output.parent.mkdir(exist_ok=True)
figure.savefig(output, dpi=120)
