# SPDX-License-Identifier: BSD-3-Clause
"""Operations of every op are those its reference does, counted while it runs; bytes those of its arrays."""

import itertools

import numpy as np
import pytest

from pyparareal import ops, reference, reference_dense, reference_gru, reference_mlp, traced_ops
from pyparareal.profiling.op_costs import FLOPS, RIGHT_HAND_SIDES, cost
from pyparareal.profiling.recorder import Recorder
from pyparareal.tableaux import EULER, RK4

ARITHMETIC = {np.add, np.subtract, np.multiply, np.divide, np.sqrt}


class Counted(np.ndarray):
    """Counts what is done with its numbers. What is done with numbers of no state is not counted."""

    operations = 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **named):
        plain = [np.asarray(x) if isinstance(x, Counted) else x for x in inputs]
        if out is not None:
            named["out"] = tuple(np.asarray(x) for x in out)
        result = getattr(ufunc, method)(*plain, **named)
        if ufunc in ARITHMETIC and method == "__call__":
            Counted.operations += np.size(result)
        return out[0] if out is not None else counted(result)

    def __array_function__(self, function, types, arguments, named):
        def plain(x):
            return (
                np.asarray(x) if isinstance(x, Counted) else type(x)(map(plain, x)) if type(x) in (list, tuple) else x
            )

        return counted(function(*map(plain, arguments), **{name: plain(x) for name, x in named.items()}))


def counted(x):
    if isinstance(x, list):
        return [counted(one) for one in x]
    return x.view(Counted) if isinstance(x, np.ndarray) and x.dtype.kind in "fb" else x


def fma(a, b, c):
    """A multiplication and an addition, of a state."""
    result = np.asarray(a) * np.asarray(b) + np.asarray(c)
    Counted.operations += 2 * np.size(result)
    return counted(result)


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    for module in (reference_mlp, reference_gru, reference_dense):
        monkeypatch.setattr(module, "fma", fma)


def operations(function, *arguments, **named):
    Counted.operations = 0
    with np.errstate(all="ignore"):
        function(*arguments, **named)
    return Counted.operations


def launched(call):
    """The one launch of ``call``: its op, its cost and its facts."""
    with Recorder() as recorder:
        call()
    (event,) = (event for event in recorder.record().events if event.kind == "launch")
    return event.facts["op"], cost(event.facts["op"], event.facts), event.facts


def array(*shape, dtype="float64"):
    """Numbers near 1/2, the same each time."""
    return np.random.default_rng(len(shape)).uniform(0.4, 0.6, shape).astype(dtype)


SIDES = [{}, {"f": 1}, {"f": 1, "g": 1, "target": 1}]


def sides_of(names, u, m):
    """Right-hand sides of ``m`` steps, and with a target the norms of the ends."""
    given = {name: array(len(u), m, *u.shape[1:]) for name in ("f", "g") if name in names}
    if "target" in names:
        given |= {"target": array(*u.shape), "norms": np.empty(len(u))}
    return given


def check(op, arguments, named, *, beyond=0, own=None):
    """What ``ops`` is said to do is what ``reference`` (or a loop of our ``own``) does, less what is ``beyond``."""
    reached, found, _ = launched(lambda: getattr(ops, op)(*arguments, **named))
    watched = [counted(x) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in arguments]
    sides = {k: counted(v) if isinstance(v, np.ndarray) and k != "norms" else v for k, v in named.items()}
    expected = operations(own or getattr(reference, op), *watched, **sides)
    assert reached == op
    assert found.flops == expected - beyond
    return found


@pytest.mark.parametrize("names", SIDES)
@pytest.mark.parametrize("op", ["relax_diagonal", "relax_tridiagonal", "relax_stencil"])
def test_linear_relaxations(op, names):
    u, m = array(3, 2, 5), 4
    given = sides_of(names, u, m)
    operands = {
        "relax_diagonal": (array(5),),
        "relax_tridiagonal": (array(5), array(5), array(5)),
        "relax_stencil": (array(3),),
    }[op]
    found = check(op, (u, *operands, m), given, beyond=padding(given, u))
    arrays = [u, u, *operands, *given.values()]  # the ends are as large as u
    assert found.bytes == sum(x.nbytes for x in arrays)


def padding(given, u):
    """The reference sums norms in chunks that it fills up with zeros, 1024 sums and 63 to fold them, for each slice."""
    return len(u) * (1024 + 63 - u[0].size) if "target" in given else 0


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_a_tridiagonal_system_of_any_size(n):
    check("relax_tridiagonal", (array(2, 1, n), array(n), array(n), array(n), 1), {})


@pytest.mark.parametrize("tableau", [EULER, RK4], ids=lambda tableau: tableau.name)
@pytest.mark.parametrize("name", ["dahlquist", "lorenz", "brusselator", "fitzhugh_nagumo", "van_der_pol", "arenstorf"])
def test_runge_kutta(name, tableau):
    components, parameters, _ = reference.RIGHT_HAND_SIDES[name]
    arguments = (array(2, 1, components), name, [0.25] * parameters, tableau, 0.1, 3)
    check("relax_rk", arguments, {"substeps": 2, **sides_of({"f"}, arguments[0], 3)})


def test_every_right_hand_side_is_known():
    assert len(RIGHT_HAND_SIDES) == len(reference.RIGHT_HAND_SIDES)
    assert FLOPS.keys() == traced_ops.FORMS.keys()


def test_operations_of_a_right_hand_side_of_ones_own_are_unknown():
    facts = {"op": "relax_rk", "shape": [2, 3], "dtype": "float64", "m": 2, "given": [], "norm": 0, "bytes": 96}
    assert cost("relax_rk", {**facts, "rhs": None, "substeps": 1, "tableau": [1, 1]}) == (96, None)


@pytest.mark.parametrize("op", list(FLOPS))
def test_unknown_is_not_zero(op):
    assert cost(op, {}) == (None, None) or op in ("extract", "inject")
    assert cost(op, {"bytes": 24}).bytes == 24
    assert cost("Linear", {"shape": [1, 2], "dtype": "float32"}) == (None, None)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("hidden", "last", "bias"), [("sigmoid", "identity", True), ("tanh", "sigmoid", False)])
def test_training(hidden, last, bias, dtype):
    sizes, examples, m, count = (3, 4, 2), 5, 2, 3
    weights = sum(o * (i + bias) for i, o in itertools.pairwise(sizes))
    u, x, y = array(2, 1, weights, dtype=dtype), array(examples, 3, dtype=dtype), array(examples, 2, dtype=dtype)
    first = np.zeros((2, m), np.int64)
    # The reference goes on to the errors of the inputs, which nobody needs; per state, step and example.
    beyond = 2 * sizes[0] * sizes[1] * count * m * len(u)
    given = {"first": first, "count": count, "hidden": hidden, "last": last, "bias": bias}
    check("relax_mlp_sgd", (u, sizes, x, y, 0.1, m), given, beyond=beyond)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gated_units(bias, dtype):
    u, gates, weight = array(2, 3, 4, dtype=dtype), array(2, 5, 3, 12, dtype=dtype), array(12, 4, dtype=dtype)
    b = array(4, dtype=dtype) if bias else None
    nothing_added = 0 if bias else 2 * 5 * 3 * 4  # the reference adds a zero where there is no bias
    found = check("relax_gru", (u, gates, weight, b, 5), {}, beyond=nothing_added)
    assert found.bytes == sum(x.nbytes for x in (u, u, gates, weight)) + (b.nbytes if bias else 0)
    states = array(2, 5, 3, 4, dtype=dtype)
    given = {"d_every": states}
    check("relax_gru_adjoint", (states, gates, weight, b, u), given, beyond=nothing_added)


def test_newton_for_gated_units(monkeypatch):
    u, products, gates, diagonal, bias = array(6, 2, 3), array(5, 2, 9), array(5, 2, 9), array(3, 3), array(3)

    def scan(a, b):
        """As a loop does it; the first state of all has none before it and a factor of zero."""
        d, before = [b[0] + a[0] * np.zeros_like(b[0])], [np.zeros_like(b[0])]
        for i in range(1, len(b)):
            before.append(d[-1])
            d.append(a[i] * d[-1] + b[i])
        return np.stack(d), np.stack(before)

    monkeypatch.setattr(reference_gru, "scan_diag_before", scan)
    check("newton_gru", (u, products, gates, diagonal, bias), {})


@pytest.mark.parametrize("activation", ["tanh", "relu", "smooth_relu", "sigmoid", "silu"])
def test_dense_layers(activation):
    u, weight, bias = array(2, 3, 4), array(2, 5, 4, 4), array(2, 5, 4)
    slopes = np.empty((2, 5, 3, 4))
    initial = u.size * 5  # the reference adds the bias to zero, sums of the kernels begin with it
    given = {"activation": activation, "slopes": slopes, **sides_of({"f", "g"}, u, 5)}
    check("relax_dense", (u, weight, bias, 0.1, 5), given, beyond=initial)
    check("relax_dense_adjoint", (u, weight, slopes, 5), {})


@pytest.mark.parametrize("given", [{}, {"start": 1}])
def test_scans(given):
    a, b, start = array(7, 2, 3), array(7, 2, 3), array(2, 3)
    blocks, states = array(7, 2, 3, 3), start if given else None

    def loop(a, b, start=None):
        u = start
        for i in range(len(b)):
            if u is None:
                u = b[i]
            elif a.ndim == b.ndim:
                u = a[i] * u + b[i]
            else:
                u = sum((a[i, ..., q] * u[..., q, None] for q in range(1, 3)), a[i, ..., 0] * u[..., 0, None]) + b[i]

    found = check("scan_diag", (a, b, states), {}, own=loop)
    assert found.bytes == a.nbytes * 3 + (start.nbytes if given else 0)
    check("scan_block", (blocks, b, states), {}, own=loop)


@pytest.mark.parametrize("norm", ["sum_squares", "sum_abs", "max_abs"])
def test_updates_and_norms(norm):
    f, g, h, old = array(2, 3, 4), array(2, 3, 4), array(2, 3, 4), array(2, 3, 4)
    each = {"sum_squares": 2, "sum_abs": 1, "max_abs": 0}[norm]  # by hand: squared and added, added, compared
    _, found, _ = launched(lambda: ops.parareal_update(f, g, h, old, norm=norm))
    assert found == (5 * f.nbytes + 2 * 8, f.size * (2 + 1 + each))
    _, found, _ = launched(lambda: ops.parareal_update(f, g, h))
    assert found == (4 * f.nbytes, f.size * 2)
    _, found, _ = launched(lambda: ops.slice_norms(f, norm=norm))
    assert found == (f.nbytes + 2 * 8, f.size * each)
    _, found, _ = launched(lambda: ops.slice_norms(f, g, norm=norm))
    assert found == (2 * f.nbytes + 2 * 8, f.size * (1 + each))


def test_what_only_moves_computes_nothing():
    u = array(8, 3)
    _, found, _ = launched(lambda: ops.extract(u, step=2))
    assert found == (2 * 4 * 3 * 8, 0)
    _, found, _ = launched(lambda: ops.inject(array(4, 3), u, step=2))
    assert found == (2 * 4 * 3 * 8, 0)


def test_weights_of_one_do_not_look_at_the_old_state():
    u, phi = array(4, 3), array(4, 3)
    assert launched(lambda: ops.c_relax(phi, u, 0.5))[1] == (
        3 * u.nbytes,
        operations(reference.c_relax, *map(counted, (phi, u)), 0.5),
    )
    assert launched(lambda: ops.c_relax(phi, u, 1.0))[1] == (2 * u.nbytes, 0)


def test_flops_of_a_module_are_counted_afterwards_once_for_each_shape(monkeypatch):
    """By hand: 2 in out a row and step; of a module that is gone, of one without products and of a function unknown."""
    torch = pytest.importorskip("torch")
    from pyparareal.nn import costs
    from pyparareal.profiling import module_costs
    from pyparareal.propagators import Blocks, Map, advance

    def decay(u):
        return 0.9 * u

    def steps(phi, slices, m):
        u = torch.ones(slices, 3, 4)
        advance(phi, u, slice(0, slices, 1), m, out=torch.empty_like(u))

    kept = torch.nn.Linear(4, 4)
    with torch.no_grad(), Recorder() as recorder:
        steps(Blocks(kept), 2, 5)
        steps(Blocks(kept), 2, 1)
        steps(Blocks(kept), 7, 1)
        steps(Blocks(torch.nn.Linear(4, 4)), 2, 1)
        steps(Blocks(torch.nn.Tanh()), 2, 1)
        steps(Map(decay), 2, 1)
    record, counted = recorder.record(), []
    monkeypatch.setattr(costs, "count_flops", lambda *a, count=costs.count_flops: counted.append(1) or count(*a))
    module_costs.tell(record)
    launches = [event for event in record.events if event.kind == "launch"]
    assert [event.name for event in launches] == ["Linear"] * 4 + ["Tanh", "decay"]
    row = 2 * 4 * 4
    flops = [event.facts.get("flops") for event in launches]
    assert flops == [2 * 3 * row * 5, 2 * 3 * row, 7 * 3 * row, None, None, None]
    assert len(counted) == 2
    assert cost(launches[0].name, launches[0].facts).flops == flops[0]
