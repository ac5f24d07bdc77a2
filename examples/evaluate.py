"""What frozen features are worth with few labels, measured with scikit-learn, and how the classes lie on the sphere.

Few labels, since that is what learning without labels is for: with all of them the digits are too easy to tell
an encoder that learned from one that did not.
"""

import numpy as np
import torch
from data import Images
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

ROWS = 5_000  # pictures of either part that are looked at, at most
LABELLED = 10  # labelled pictures per class
DRAWS = 20  # draws of the labelled pictures; accuracies are means over them


@torch.no_grad()
def embed(network: nn.Module, images: Tensor, batch_size: int = 1000) -> Tensor:
    """``network(images)`` in evaluation mode, ``(rows, features)``; the mode is put back afterwards."""
    training = network.training
    network.eval()
    features = torch.cat([network(batch) for batch in images.split(batch_size)])
    network.train(training)
    return features


def knn_accuracy(encoder: nn.Module, images: Images) -> float:
    """Share of test pictures that the 5 nearest labelled pictures (by cosine) name correctly."""
    return few_label_accuracy(encoder, images, make_pipeline(Normalizer(), KNeighborsClassifier(5)))


def linear_accuracy(encoder: nn.Module, images: Images) -> float:
    """Share of test pictures that logistic regression on the features names correctly."""
    return few_label_accuracy(encoder, images, make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)))


def few_label_accuracy(encoder: nn.Module, images: Images, classifier: Pipeline) -> float:
    """Mean accuracy of a classifier of the frozen features that is shown few labels, over fixed draws of these."""
    labels, test_labels = images.train_labels[:ROWS].numpy(), images.test_labels[:ROWS].numpy()
    features, test_features = (embed(encoder, part[:ROWS]).numpy() for part in (images.train, images.test))
    draws = StratifiedShuffleSplit(DRAWS, train_size=LABELLED * len(images.superclass_of), random_state=0)
    scores = []
    with threadpool_limits(1):  # the problems are tiny: a second thread costs more than it brings
        for labelled, _ in draws.split(features, labels):
            classifier.fit(features[labelled], labels[labelled])
            scores.append(classifier.score(test_features, test_labels))
    return float(np.mean(scores))


def cosines_by_relation(projections: Tensor, images: Images) -> dict[str, Tensor]:
    """Cosines of all pairs of the first test pictures, given their projections: same class, same superclass, other."""
    rows = len(projections)
    projections = nn.functional.normalize(projections)
    labels = images.test_labels[:rows]
    groups = images.superclass_of[labels]
    above = torch.triu(torch.ones(len(labels), len(labels), dtype=torch.bool), diagonal=1)  # every pair once
    same_class = labels.unsqueeze(1) == labels
    same_group = groups.unsqueeze(1) == groups
    cosines = projections @ projections.T
    return {
        "same class": cosines[above & same_class],
        "same superclass": cosines[above & same_group & ~same_class],
        "other": cosines[above & ~same_group],
    }
