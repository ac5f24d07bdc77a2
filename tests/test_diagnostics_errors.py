"""What diagnostics refuse: before any work, naming the argument, what was given and what is accepted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hexssl import diagnostics

Z = np.ones((4, 2))


@pytest.mark.parametrize(("call", "words"), [
    (lambda: diagnostics.cosine_histogram(), "views: got none"),
    (lambda: diagnostics.cosine_histogram([[1.0], [2.0, 3.0]]), r"views\[0\]"),
    (lambda: diagnostics.cosine_histogram(np.ones(4)), r"views\[0\]: got an array of shape \(4,\)"),
    (lambda: diagnostics.cosine_histogram(np.ones((4, 0))), r"views\[0\]"),
    (lambda: diagnostics.cosine_histogram(np.ones((0, 4))), r"views\[0\]"),
    (lambda: diagnostics.cosine_histogram(np.ones((4, 2), int)), r"views\[0\]"),
    (lambda: diagnostics.cosine_histogram(np.ones((4, 2), complex)), r"views\[0\]"),
    (lambda: diagnostics.cosine_histogram(torch.ones(4, 2, dtype=torch.int32)), r"views\[0\]"),
    (lambda: diagnostics.cosine_histogram(torch.empty(4, 2, device="meta")), r"\.cpu\(\)"),
    (lambda: diagnostics.cosine_histogram(np.ma.masked_equal(Z, 1.0)), "masked"),
    (lambda: diagnostics.cosine_histogram(Z, np.ones((5, 2))), r"views\[1\]"),
    (lambda: diagnostics.cosine_histogram(Z, Z.astype(np.float32)), r"views\[1\]"),
    (lambda: diagnostics.cosine_histogram(Z[:1]), "1 finite rows of 1"),
    (lambda: diagnostics.cosine_histogram(Z * np.nan), "0 finite rows of 4"),
    (lambda: diagnostics.collapse(Z * np.inf), "0 finite rows of 4"),
    (lambda: diagnostics.cosine_histogram(Z, labels=[]), "labels: got"),
    (lambda: diagnostics.cosine_histogram(Z, labels=()), "labels: got"),
    (lambda: diagnostics.cosine_histogram(Z, labels=np.zeros((4, 0), int)), "labels: got"),
    (lambda: diagnostics.cosine_histogram(Z, labels=np.zeros((4, 2, 2), int)), "labels: got"),
    (lambda: diagnostics.cosine_histogram(Z, labels=[0, 1, 2]), "labels: got"),
    (lambda: diagnostics.cosine_histogram(Z, labels=np.zeros((2, 4), int)), "labels: got"),
    (lambda: diagnostics.cosine_histogram(Z, labels=[0.5, 1.0, 2.0, 3.0]), "labels"),
    (lambda: diagnostics.cosine_histogram(Z, labels=[[0, 1, 2, 3], [0, 1]]), "labels"),
    (lambda: diagnostics.cosine_histogram(Z, labels=np.array([0, 1, np.nan, 2])), "labels"),
    (lambda: diagnostics.cosine_histogram(Z, labels=([0, 0, 1, 1], [0, 1, 1, 1])), "class 0 in more than one superc"),
    (lambda: diagnostics.cosine_histogram(Z, labels=[0] * 4, names=("a", "b")), "names"),
    (lambda: diagnostics.cosine_histogram(Z, supervised=True), "supervised"),
    (lambda: diagnostics.cosine_histogram(Z, supervised=1), "supervised"),
    (lambda: diagnostics.cosine_histogram(Z, bins=0), "bins"),
    (lambda: diagnostics.cosine_histogram(Z, bins=2**16 + 1), "bins"),
    (lambda: diagnostics.cosine_histogram(Z, bins=2.0), "bins"),
    (lambda: diagnostics.cosine_histogram(Z, threshold="other"), "threshold"),
    (lambda: diagnostics.cosine_histogram(Z, threshold=float("nan")), "threshold"),
    (lambda: diagnostics.cosine_histogram(Z, threshold=np.zeros(3)), "threshold"),
    (lambda: diagnostics.cosine_histogram(Z, threshold=np.array([0, np.nan, 0, 0])), "threshold"),
    (lambda: diagnostics.hierarchical_negatives(Z, labels=None), "labels: got None"),
    (lambda: diagnostics.hierarchical_negatives(Z, labels=[0] * 4, confused_level=1), "confused_level"),
    (lambda: diagnostics.hierarchical_negatives(Z, labels=[0] * 4, most=-1), "most"),
    (lambda: diagnostics.hierarchical_negatives(np.ones((3000, 1)), labels=np.arange(3000)), "3000 classes"),
    (lambda: diagnostics.alignment_uniformity(Z, t=0.0), "t: got"),
    (lambda: diagnostics.alignment_uniformity(Z, t=173.0), "t: got"),
    (lambda: diagnostics.alignment_uniformity(Z.astype(np.float32), t=21.0), "t: got"),
    (lambda: diagnostics.alignment_uniformity(Z, alpha=0.0), "alpha: got"),
    (lambda: diagnostics.collapse(Z, seed=-1), "seed"),
    (lambda: diagnostics.collapse(Z, center=1), "center"),
    (lambda: diagnostics.effective_rank([-1.0]), "singular_values"),
    (lambda: diagnostics.participation_ratio([[1.0]]), "singular_values"),
    (lambda: diagnostics.class_hierarchy(Z, labels=[0] * 4), "got 1 classes"),
    (lambda: diagnostics.class_hierarchy(Z, labels=None), "labels: got None"),
    (lambda: diagnostics.class_hierarchy(Z, labels=[0, 0, 1, 1], linkage="ward"), "linkage"),
    (lambda: diagnostics.class_hierarchy([[1.0], [-1.0], [1.0], [1.0]], labels=[7, 7, 1, 1]), "7 whose mean is 0"),
    (lambda: diagnostics.class_hierarchy(np.ones((2049, 1)), labels=np.arange(2049)), "got 2049 classes"),
    (lambda: diagnostics.hierarchy_trace([], labels=[0] * 4), "checkpoints"),
])
def test_wrong_arguments(call: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        call()
