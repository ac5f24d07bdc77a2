"""What a loss sees in embeddings, as data and as figures.

    from hexssl import diagnostics
    diagnostics.cosine_histogram(z1, z2, labels=y, threshold="adaptive").plot()

Every function takes torch tensors on the CPU or NumPy arrays and returns a named tuple, whose ``plot(ax=None)`` draws
it with matplotlib and returns the axes. Cosines are never held as an N x N array: the compiled core goes through them
tile by tile and counts.
"""

from hexssl.diagnostics.hierarchy import ClassHierarchy, HierarchyTrace, class_hierarchy, hierarchy_trace
from hexssl.diagnostics.histogram import CosineHistogram, cosine_histogram
from hexssl.diagnostics.negatives import (
    ConfusedClasses,
    HierarchicalNegatives,
    LevelNegatives,
    hierarchical_negatives,
)
from hexssl.diagnostics.spectrum import Collapse, LocalCollapse, collapse, effective_rank, participation_ratio
from hexssl.diagnostics.sweep import ThresholdSweep, threshold_sweep
from hexssl.diagnostics.trace import ThresholdTrace
from hexssl.diagnostics.uniformity import AlignmentUniformity, alignment_uniformity

__all__ = ["AlignmentUniformity", "ClassHierarchy", "Collapse", "ConfusedClasses", "CosineHistogram",
           "HierarchicalNegatives", "HierarchyTrace", "LevelNegatives", "LocalCollapse", "ThresholdSweep",
           "ThresholdTrace", "alignment_uniformity", "class_hierarchy", "collapse", "cosine_histogram",
           "effective_rank", "hierarchical_negatives", "hierarchy_trace", "participation_ratio", "threshold_sweep"]
