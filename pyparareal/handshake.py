# SPDX-License-Identifier: BSD-3-Clause
"""What the ranks must have been asked alike before they begin to solve together.

Functions (norms, callbacks) are compared by name; propagators by class and by what can be seen of what they compute
with (:mod:`.held_values`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import arrays
from ._version import __version__
from .cuts import levels_of
from .held_values import fingerprint, fingerprints
from .method_runs import MgritRun, PararealRun, Problem
from .mgrit import MGRIT
from .newton import Newton
from .newton_run import NewtonRun

Array = Any


def asked_for(
    run: PararealRun | NewtonRun | MgritRun | None, problem: Problem, u0: Array, save: str, rhs: Array | None
) -> dict[str, str]:
    """Everything that must be the same on all ranks, by the name that an error says; no ``run`` is a serial solve."""
    torch: Any = sys.modules["torch"]
    common, method = problem.common, problem.method
    found = {"operation": "solve", "pyparareal": __version__, "torch": str(torch.__version__), "numpy": np.__version__}
    found |= {"u0.shape": str(tuple(u0.shape)), "u0.dtype": str(u0.dtype), "u0.library": arrays.namespace(u0).__name__}
    found |= {"u0.device": getattr(getattr(u0, "device", None), "type", "cpu")}  # which of a kind may differ
    found |= {"u0": digest(arrays.to_numpy(arrays.float64_copy(u0)))}
    found |= {"grid": repr(problem.grid), "grid.times": digest(problem.grid.times()), "m": str(problem.m)}
    found |= {"method": method if isinstance(method, str) else type(method).__name__, "save": save}
    found |= {"freeze": str(problem.freeze), "on_failure": problem.on_failure}
    for name in ("tol", "max_iterations", "keep_going", "deterministic"):
        found[name] = repr(getattr(common, name))
    found |= {"initial": str(common.guessed), "norm": named(common.norm), "callback": str(common.callback is not None)}
    options = method if isinstance(method, MGRIT | Newton) else MGRIT()
    found |= {field.name: named(getattr(options, field.name)) for field in dataclasses.fields(options)}
    found |= {} if run is None else dict(_propagators(run))
    given = problem.coarse if isinstance(problem.coarse, list | tuple) else [problem.coarse]
    for name, phi in (("fine", problem.fine), *((f"coarse[{at}]", phi) for at, phi in enumerate(given))):
        found |= {} if phi is None else fingerprints(name, phi)
    return found if rhs is None else found | {"rhs": values_of(rhs)}


def values_of(u: Array) -> str:
    return f"values with checksum {fingerprint(u)}"


def _propagators(run: PararealRun | NewtonRun | MgritRun) -> Iterator[tuple[str, str]]:
    if isinstance(run, NewtonRun):
        yield "jacobian", run.kind
    for at, level in enumerate(levels_of(run)):
        yield ("fine" if at == 0 else f"coarse[{at - 1}]"), f"{type(level.phi).__name__}, {level.grid.steps} steps"


def digest(values: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


def method_name(method: Any) -> str:
    """A method with its options."""
    if isinstance(method, str):
        return method
    options = [f"{field.name}={named(getattr(method, field.name))}" for field in dataclasses.fields(method)]
    return f"{type(method).__name__}({', '.join(options)})"


def named(value: Any) -> str:
    """What can be compared between processes: no addresses."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(named(one) for one in value)}]"
    plain = value is None or isinstance(value, str | bool | int | float)
    return repr(value) if plain else getattr(value, "__qualname__", type(value).__name__)
