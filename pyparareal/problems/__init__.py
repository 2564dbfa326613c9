# SPDX-License-Identifier: BSD-3-Clause
"""Test problems: a catalogue of model problems with known solutions, and the set-ups of published parareal runs.

``model_problem("heat-1d", points=63)`` makes a :class:`ModelProblem`, which ``pyparareal solve heat-1d`` solves.
The functions :func:`lorenz`, :func:`fitzhugh_nagumo`, ... make a :class:`Problem` whose parareal history is known.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from . import ordinary, partial
from .model import ModelProblem as ModelProblem
from .published import Problem as Problem
from .published import brusselator as brusselator
from .published import burgers as burgers
from .published import fitzhugh_nagumo as fitzhugh_nagumo
from .published import heat_1d as heat_1d
from .published import hopf as hopf
from .published import lorenz as lorenz

CATALOGUE: dict[str, Callable[..., ModelProblem]] = {
    "decay": ordinary.decay,
    "dahlquist": ordinary.dahlquist,
    "brusselator": ordinary.brusselator,
    "lorenz": ordinary.lorenz,
    "arenstorf": ordinary.arenstorf,
    "heat-1d": partial.heat_1d,
    "heat-2d": partial.heat_2d,
    "advection-1d": partial.advection_1d,
    "burgers": partial.burgers,
    "allen-cahn": partial.allen_cahn,
}


def model_problem(name: str, *, points: int | None = None, steps: int | None = None) -> ModelProblem:
    """The model problem ``name`` of :data:`CATALOGUE`, with its own numbers where none are given.

    Parameters
    ----------
    points : int, optional
        Unknowns per direction of space.
    steps : int, optional
        Fine time steps.
    """
    if name not in CATALOGUE:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(CATALOGUE)}")
    numbers = {"points": (points, 3), "steps": (steps, 1)}
    given = {key: value for key, (value, _) in numbers.items() if value is not None}
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{key}: got {value!r}, expected an integer")
        if value < (least := numbers[key][1]):
            raise ValueError(f"{key}: got {value}, expected at least {least}")
        if key not in inspect.signature(CATALOGUE[name]).parameters:
            raise ValueError(f"{key}: got {value}, but {name} is an ordinary differential equation: it has no space")
    return CATALOGUE[name](**given)
