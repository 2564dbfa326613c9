# SPDX-License-Identifier: BSD-3-Clause
"""Is accuracy preserved? Serial and parareal networks in paired, repeated cross-validation.

The trainings go to ``$PYPARAREAL_CV_RUNS/<study>_cv.jsonl`` (default ``runs/cross_validation``) one by one; a run
that was stopped continues there, and a complete file is only evaluated.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import cross_validation as cv
from bench import intervals
from bench.cases import Result, case

if TYPE_CHECKING:
    from pyparareal.nn.data import Images, Split

PARTS = (2, 3, 4, 6)
DEFAULT_PARTS = 4  # of Settings; the metrics without a suffix
CANVAS, COPIES = 16, 2  # of the cluttered digits
SCENES, CURVE_CANVAS, CURVE_LENGTH, CURVE_SEED = 24000, 16, 28, 0  # of the connected curves
BAND = 0.5  # percentage points, set before anything was trained
# The first five steps see losses of about 2 and rates below 1 % of the peak, so that rounding of 6e-8 grows little;
# another network or another batch order differs in the first or second digit.
SAME_LOSS = 1e-4


def folder() -> Path:
    """Where finished trainings are."""
    return Path(os.environ.get("PYPARAREAL_CV_RUNS", "runs/cross_validation"))


def digits_study() -> cv.Study:
    """All 1,797 digits, held out once in each repetition; recipe and folds are fixed beforehand."""
    from pyparareal.nn.data import Images, Split

    x, y = _digits()

    def split(repetition: int, fold: int) -> Split:
        train, test = _held_out(y, repetition, fold)
        mean, deviation = x[train].mean(), x[train].std()
        sets = [Images((x[chosen] - mean) / deviation, y[chosen]) for chosen in (train, test)]
        return Split(sets[0], sets[1], sets[1], 10)

    networks = ("serial", *(f"{kind}-{n}" for n in PARTS for kind in ("parareal", "uncorrected")))
    return cv.Study("digits", len(y), networks, split, y.numpy())


def more_digits_study() -> cv.Study:
    """The digits with ten repetitions, for four parts only; the first three are those of :func:`digits_study`.

    Decided on after its interval for four parts had left the band by 0.07 points, and before any further training.
    """
    return dataclasses.replace(digits_study(), networks=("serial", "parareal-4"), repetitions=10)


def cluttered_study() -> cv.Study:
    """The digits on a canvas of 16 x 16 among pieces of others and noise: two training copies, one held-out copy each.

    Smaller than the study above to fit into an hour of one core: one repetition, half the epochs, four parts only.
    Pieces in training images come from training images, those in held-out images from held-out images.
    """
    from pyparareal.nn.data import Images
    from pyparareal.nn.data.cluttering import clutter
    from pyparareal.nn.data.images import standardised

    x, y = _digits()

    @functools.lru_cache(maxsize=1)  # the networks of a fold follow each other
    def split(repetition: int, fold: int) -> Split:
        seed = 2 * (repetition * cv.FOLDS + fold)
        train, test = (Images(x[chosen], y[chosen]) for chosen in _held_out(y, repetition, fold))
        train = clutter(train, train, seed=seed, canvas=CANVAS, copies=COPIES)
        test = clutter(test, test, seed=seed + 1, canvas=CANVAS, copies=1)
        return standardised(train, test, test, 10)

    networks = ("serial", "resnet8", "linear", f"parareal-{DEFAULT_PARTS}", f"uncorrected-{DEFAULT_PARTS}")
    recipe = cv.RECIPE | {"epochs": 15}
    return cv.Study("cluttered", len(y), networks, split, y.numpy(), recipe=recipe, repetitions=1)


def curves_study() -> cv.Study:
    """Connected curves, 5 folds x 1 repetition of 24,000 scenes, networks of a quarter of the usual width.

    Task, width and epochs were chosen on scenes of other seeds, by ResNet-20 and ResNet-8 alone. ``wide_resnet8`` has
    twice the width of the others and so about as many parameters as ResNet-20.
    """
    from pyparareal.nn.data import curves
    from pyparareal.nn.data.images import standardised

    y = 1 - np.arange(SCENES) % 2

    @functools.lru_cache(maxsize=1)
    def scenes() -> Images:
        return curves.scenes(SCENES, seed=CURVE_SEED, canvas=CURVE_CANVAS, length=CURVE_LENGTH)

    @functools.lru_cache(maxsize=1)  # the networks of a fold follow each other
    def split(repetition: int, fold: int) -> Split:
        train, test = (scenes().take(chosen) for chosen in _held_out(scenes().y, repetition, fold))
        return standardised(train, test, test, 2, curves.CLASS_NAMES)

    # "unit_coarse" was added after the others had been evaluated.
    networks = ("serial", "resnet8", "wide_resnet8", "linear")
    networks += tuple(f"{kind}-{DEFAULT_PARTS}" for kind in ("unit_coarse", "parareal", "uncorrected"))
    # Not shifted: the repeated border would thicken curves there.
    recipe = cv.RECIPE | {"epochs": 6, "width": 4, "augment": "none"}
    return cv.Study("curves", SCENES, networks, split, y, recipe=recipe, repetitions=1)


def _digits() -> tuple[Any, Any]:
    import torch
    from sklearn.datasets import load_digits

    raw = load_digits()
    return torch.from_numpy(raw.images.astype(np.float32))[:, None], torch.from_numpy(raw.target.astype(np.int64))


def _held_out(y: Any, repetition: int, fold: int) -> tuple[Any, Any]:
    """Masks of the images to learn from and of the others."""
    import torch

    test = torch.from_numpy(cv.fold_of(y.numpy(), cv.FOLDS, repetition) == fold)
    return ~test, test


@case("train.digits_cv", suite="full")
def digits_cv() -> Result:
    """Mean difference of held-out accuracy to the serial network: 5 folds x 3 repetitions x all 1,797 digits.

    ``checked``: every image has one outcome per repetition and network, the curves end at these outcomes, and the first
    steps of three trainings, repeated now, have the recorded losses.
    """
    return evaluated(digits_study())


@case("train.digits_cv_more", suite="full")
def more_digits_cv() -> Result:
    """The same with 5 folds x 10 repetitions, for four parts: more repetitions shorten the interval a little."""
    return evaluated(more_digits_study())


@case("train.cluttered_cv", suite="full")
def cluttered_cv() -> Result:
    """The same on cluttered digits, 5 folds x 1 repetition, with ResNet-8 and a linear model beside them."""
    return evaluated(cluttered_study())


@case("train.curves_cv", suite="full")
def curves_cv() -> Result:
    """The same on connected curves, where ResNet-20 is better than ResNet-8 of equal width."""
    return evaluated(curves_study())


def evaluated(study: cv.Study) -> Result:
    """Do what is missing, compare every network with the first one, check."""
    records = cv.Records(folder() / f"{study.name}_cv.jsonl")
    trained = cv.run(study, records, lambda text: print(text, file=sys.stderr, flush=True))
    base = cv.outcomes(study, records, study.networks[0])
    ratio = 1 / (study.folds - 1)  # n_test / n_train
    metrics: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    for network in study.networks:
        hits = cv.outcomes(study, records, network)
        samples[f"accuracy {network}"] = cv.fold_accuracies(study, hits)
        metrics[f"accuracy_{network.replace('-', '_')}"] = 100 * float(hits.mean())
        if network != study.networks[0]:
            metrics |= _gaps(study, network, hits, base, ratio)
        if (without := network.replace("parareal", "uncorrected")) != network and without in study.networks:
            metrics |= _gain(study, network, hits, cv.outcomes(study, records, without), ratio)
    drift = cv.repeats(study, records, [study.networks[0], *study.networks[-2:]])
    ends = [
        abs(cv.curves(study, records, name, "test_accuracy")[:, -1] - samples[f"accuracy {name}"]).max()
        for name in study.networks
    ]
    seconds = sum(records.found[study.key(*job)]["seconds"] for job in study.trainings())
    inside = metrics["ci_low"] >= -BAND and metrics["ci_high"] <= BAND
    return Result(
        metrics | {"inside_band": float(inside), "trained_now": float(trained), "training_seconds": seconds},
        checked=drift <= SAME_LOSS and max(ends) < 5e-5,  # curves are kept with five digits
        samples=samples,
        notes=f"{study.folds} folds x {study.repetitions} repetitions of {study.images} images, paired; percentage "
        f"points; ci: Nadeau-Bengio corrected t, n_test/n_train = {ratio:g}; band +-{BAND}; samples are accuracies",
    )


def _gain(study: cv.Study, network: str, hits: np.ndarray, without: np.ndarray, ratio: float) -> dict[str, float]:
    """What the coarse correction adds, in percentage points."""
    folds = [a - b for a, b in zip(*(cv.fold_accuracies(study, 100.0 * h) for h in (hits, without)), strict=True)]
    found, parts = intervals.corrected_t(folds, ratio), network.partition("-")[2]
    return {
        f"correction_gain_pp_{parts}": 100 * float(hits.mean() - without.mean()),
        f"correction_gain_low_{parts}": found.low,
        f"correction_gain_high_{parts}": found.high,
    }


def _gaps(study: cv.Study, network: str, hits: np.ndarray, base: np.ndarray, ratio: float) -> dict[str, float]:
    """Percentage points; for ``DEFAULT_PARTS`` under the short names, too."""
    difference = 100.0 * (hits.astype(float) - base)
    folds = [a - b for a, b in zip(*(cv.fold_accuracies(study, 100.0 * h) for h in (hits, base)), strict=True)]
    corrected, naive = intervals.corrected_t(folds, ratio), intervals.naive_t(folds)
    images = intervals.per_image(difference)
    kind, _, parts = network.partition("-")
    name = {"parareal": f"_{parts}", "uncorrected": f"_without_correction_{parts}"}.get(
        kind, f"_{network.replace('-', '_')}"
    )
    # Not folds' mean: folds differ in size by one image.
    found = {
        f"gap_pp{name}": float(difference.mean()),
        f"ci_low{name}": corrected.low,
        f"ci_high{name}": corrected.high,
        f"naive_low{name}": naive.low,
        f"naive_high{name}": naive.high,
        f"per_image_low{name}": images.low,
        f"per_image_high{name}": images.high,
    }
    found = {key.replace("gap_pp", "accuracy_gap_pp"): value for key, value in found.items()}
    if parts == str(DEFAULT_PARTS):
        short = {key.removesuffix(f"_{parts}"): value for key, value in found.items()}
        if kind == "uncorrected":
            short["gap_without_correction_pp"] = short["accuracy_gap_pp_without_correction"]
        found |= short
    return found
