"""What a trained encoder's frozen features are worth, and how their classes lie in space."""

from __future__ import annotations

import numpy as np
import torch
from data import Images  # of examples/
from evaluate import embed  # of examples/
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from torch import nn

from hexssl import diagnostics

NEIGHBOURS = 20
DRAWS = 3  # of the labelled 1 % and 10 %; the accuracy is the mean over them


def effective_rank(rows: np.ndarray) -> float:
    """RankMe of the rows as they are, not centred."""
    return diagnostics.effective_rank(np.linalg.svd(rows, compute_uv=False))


def measure(encoder: nn.Module, projector: nn.Module, images: Images) -> dict[str, float]:
    """All measures of the study. Accuracies are in percent, of the test part, by features before the projector."""
    train, test = (embed(encoder, part).numpy() for part in (images.train, images.test))
    labels, test_labels = images.train_labels.numpy(), images.test_labels.numpy()
    superclass = images.superclass_of.numpy()
    neighbours = make_pipeline(Normalizer(), KNeighborsClassifier(NEIGHBOURS)).fit(train, labels).predict(test)
    probed = probe().fit(train, labels).predict(test)

    def percent(right: np.ndarray) -> float:
        return 100 * float(right.mean())

    found = {
        "knn": percent(neighbours == test_labels),
        "knn_balanced": 100 * float(balanced_accuracy_score(test_labels, neighbours)),
        "linear": percent(probed == test_labels),
        "superclass": percent(superclass[probed] == superclass[test_labels]),
    }
    for name, share in (("labels_1", 0.01), ("labels_10", 0.1)):
        found[name] = 100 * few_labels(train, labels, test, test_labels, share)
    spaces = {"features": test, "projections": normalised(projector, test)}
    for name, rows in spaces.items():
        found[f"rank_{name}"] = effective_rank(rows)
        within = [effective_rank(rows[test_labels == label]) for label in np.unique(test_labels)]
        found[f"rank_{name}_within"] = float(np.mean(within))
    return found


def probe() -> Pipeline:
    """Logistic regression, by at most 200 steps of L-BFGS: on all 60,000 rows they end before it has converged."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))


def few_labels(train: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, share: float) -> float:
    """Mean accuracy of logistic regression that is shown the labels of a share of the training part."""
    draws = StratifiedShuffleSplit(DRAWS, train_size=max(share, len(np.unique(labels)) / len(labels)), random_state=0)
    return float(np.mean([probe().fit(train[shown], labels[shown]).score(test, test_labels)
                          for shown, _ in draws.split(train, labels)]))


@torch.no_grad()
def normalised(projector: nn.Module, features: np.ndarray) -> np.ndarray:
    """What the loss compares: projections of length 1."""
    projector.eval()
    return nn.functional.normalize(projector(torch.from_numpy(features))).numpy()
