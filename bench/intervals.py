# SPDX-License-Identifier: BSD-3-Clause
"""Confidence intervals of a mean difference between two learners under repeated cross-validation.

The trainings of a repeated ``k``-fold cross-validation are no independent samples: any two of their training sets
share most images. The variance of the mean of their ``J`` differences is therefore larger than ``s**2 / J``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Estimate:
    """A mean with the two ends of its confidence interval."""

    mean: float
    low: float
    high: float

    def within(self, band: float) -> bool:
        """Is the whole interval inside ``[-band, band]``?"""
        return -band <= self.low and self.high <= band


def corrected_t(differences: Sequence[float], test_over_train: float, level: float = 0.95) -> Estimate:
    """``mean +- t_{J-1} s sqrt(1/J + n_test/n_train)``, the corrected resampled t interval.

    Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52, 2003, section 3; for repeated
    cross-validation Bouckaert and Frank 2004. It speaks of another training set and other test images of this size;
    ``n_test/n_train`` stands for the unknown correlation of the trainings, so more repetitions do not make
    the interval arbitrarily short.

    Parameters
    ----------
    differences : ``J`` values, one per training and fold
    test_over_train : ``n_test / n_train``; 0 gives :func:`naive_t`
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"differences: got shape {values.shape}, expected at least two values")
    if not 0 <= test_over_train < float("inf"):
        raise ValueError(f"test_over_train: got {test_over_train}, expected 0 or more")
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}, expected a number between 0 and 1")
    error = values.std(ddof=1) * math.sqrt(1 / len(values) + test_over_train)
    return _around(float(values.mean()), float(error), len(values) - 1, level)


def naive_t(differences: Sequence[float], level: float = 0.95) -> Estimate:
    """``mean +- t_{J-1} s / sqrt(J)``: as if the trainings were independent, hence too short."""
    return corrected_t(differences, 0.0, level)


def per_image(differences: NDArray[np.float64], level: float = 0.95) -> Estimate:
    """Interval over images, ``differences [repetitions, images]`` in -1, 0, 1: what other images would have given.

    The unit is the image, with the mean of its paired differences over the repetitions. It speaks of these
    trained networks: how much another training set or seed moves the accuracy is counted only so far as the
    repetitions differ.
    """
    if differences.ndim != 2 or differences.shape[1] < 2:
        raise ValueError(f"differences: got shape {differences.shape}, expected [repetitions, images]")
    return naive_t([float(value) for value in differences.mean(0)], level)


def _around(mean: float, error: float, freedom: int, level: float) -> Estimate:
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, freedom)) * error
    return Estimate(mean, mean - half, mean + half)
