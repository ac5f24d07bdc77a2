"""Thresholds on the cosine: the *decide* step between measure and contrast.

A negative whose cosine lies above the threshold is a hierarchical (local) negative of its anchor. The estimators
follow HEX (Kokilepersaud et al., WACV 2025, arXiv 2410.23200) and its published code.

Every threshold is an ``nn.Module`` that says what must be measured (`Threshold.measures`) and turns it into a
number (`Threshold.decide`). Its running values, its epoch and its step are in ``state_dict``, so that a resumed
run continues with the same threshold.

In training, which is training mode with gradients on, a threshold may also agree with the other ranks of
``torch.distributed`` on what was measured (`Threshold.pool`) and remember it (`Threshold.follow`). Nothing of that
happens in evaluation mode or under ``torch.no_grad()``.
"""

from hexssl.thresholds.adaptive import AdaptiveThreshold
from hexssl.thresholds.base import COUNT, MAX, MEAN, MIN, QUANTILE, VARIANCE, Measurement, Threshold
from hexssl.thresholds.choice import WORDS, named, warn_of_positives
from hexssl.thresholds.moments import MeanStdThreshold
from hexssl.thresholds.scheduled import FixedThreshold, RowRangeThreshold
from hexssl.thresholds.schedules import CosineSchedule, LinearSchedule, Schedule, StepSchedule

__all__ = ["COUNT", "MAX", "MEAN", "MIN", "QUANTILE", "VARIANCE", "WORDS", "AdaptiveThreshold", "CosineSchedule",
           "FixedThreshold", "LinearSchedule", "Measurement", "MeanStdThreshold", "RowRangeThreshold", "Schedule",
           "StepSchedule", "Threshold", "named", "warn_of_positives"]
