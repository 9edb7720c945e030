"""How good a set of images is: functions of features and class probabilities, the bound, and their intervals."""

from __future__ import annotations

from .intervals import Interval, bootstrap, proportion, share_difference
from .quality import (
    bits_per_dim,
    class_accuracy,
    class_scatter,
    frechet_distance,
    hits,
    inception_score,
    kernel_distance,
    precision,
    precision_recall,
    recall,
)

__all__ = [
    "Interval",
    "bits_per_dim",
    "bootstrap",
    "class_accuracy",
    "class_scatter",
    "frechet_distance",
    "hits",
    "inception_score",
    "kernel_distance",
    "precision",
    "precision_recall",
    "proportion",
    "recall",
    "share_difference",
]
