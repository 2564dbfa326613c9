# SPDX-License-Identifier: BSD-3-Clause
"""Replicas do what their originals do, whatever these hold and whatever happens to it, and share nothing that changes.

All on the CPU, as entries of ``devices=["cpu", "cpu"]``; what is moved to another device goes to "meta", where shapes
are all there is.
"""

import copy
import gc
import weakref
from functools import lru_cache, partial
from types import FunctionType, MethodType, ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from torch import nn  # noqa: E402
from torch.func import functional_call  # noqa: E402

from pyparareal import LocalRuntime, TimeGrid, per_device, solve  # noqa: E402
from pyparareal.equations import Pair, Stored  # noqa: E402
from pyparareal.forcing import Forced  # noqa: E402
from pyparareal.implicit import ImplicitEuler  # noqa: E402
from pyparareal.propagators import Blocks, Map, RungeKutta  # noqa: E402
from pyparareal.runtime.replicas import Replicas  # noqa: E402

ROWS = range(0, 4)


def replica(value, rows=ROWS):
    return Replicas("cpu", "cpu").of(value, rows)


def elsewhere(value, rows=ROWS):
    """On a device that is not that of the states: "meta", which has shapes and no numbers."""
    return Replicas("meta", "cpu").of(value, rows)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh()).eval()


def states(slices=8):
    return torch.linspace(-1, 1, 6 * slices).reshape(slices, 2, 3)


def mapped(phi, u, devices=("cpu",) * 3, runtime=None, m=2):
    out = torch.empty_like(u)
    runtime = runtime or LocalRuntime(devices=list(devices))
    with torch.no_grad():
        runtime.map(phi, u, slice(0, len(u), 1), m, out=out)
    return out


class Scratch:
    """A step that works in memory of its own, which two threads must not share."""

    batch_invariant = True

    def __init__(self):
        self.room = torch.empty(64, 64)

    def step(self, u, points):
        room = self.room.reshape(-1)[: u.numel()].reshape(u.shape)
        room.copy_(u)
        for _ in range(50):
            room.mul_(1.5).sub_(0.25).clamp_(-1, 1)
        return room


class Swapping(nn.Module):
    """Puts other weights into its module while it calls it, as torch.func does."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, u):
        own = {name: p * self.scale for name, p in self.inner.named_parameters()}
        return u + functional_call(self.inner, own, (u,))


def test_steps_that_write_to_what_they_hold_do_not_meet():
    u = torch.rand(63, 2, 3)
    for phi in (Scratch(), Map(Scratch().step, pass_points=True), Map(partial(Scratch().step, points=None))):
        expected = mapped(phi, u, ["cpu"])
        for _ in range(20):
            assert torch.equal(mapped(phi, u), expected)


def test_modules_that_swap_their_weights_do_not_meet():
    torch.manual_seed(0)
    phi, u = Blocks(Swapping().requires_grad_(False)), states(60)
    expected = mapped(phi, u, ["cpu"])
    for _ in range(20):
        # Numbers of size 1, whose products may round otherwise in other company; other weights change a tenth of them.
        assert torch.allclose(mapped(phi, u), expected, rtol=0, atol=1e-5)


def test_modules_are_copied_though_their_parameters_are_not():
    module = Swapping()
    there = replica(Map(lambda u: module(u))).step.__self__._phi.__closure__[0].cell_contents
    assert there.inner is not module.inner
    assert there.inner._parameters is not module.inner._parameters
    assert there.inner.weight is module.inner.weight


HOLDERS = {
    "module": lambda n: Blocks(n),
    "closure": lambda n: Map(lambda u: n(u.reshape(-1, 3)).reshape(u.shape)),
    "method": lambda n: Map(Holder(n).apply),
    "partial": lambda n: Map(partial(Holder.apply, Holder(n))),
    "list": lambda n: Map(Holder([n]).first),
    "dict": lambda n: Map(Holder({"n": (n, 1)}).named),
    "slope": lambda n: RungeKutta(lambda t, u: n(u.reshape(-1, 3)).reshape(u.shape), TimeGrid(0, 1, 8)),
    "forced": lambda n: Forced(Blocks(n), torch.ones(8, 2, 3)),
}


class Holder:
    def __init__(self, held):
        self.held, self.me = held, self  # a cycle

    def apply(self, u):
        return self.held(u.reshape(-1, 3)).reshape(u.shape)

    def first(self, u):
        return self.me.held[0](u.reshape(-1, 3)).reshape(u.shape)

    def named(self, u):
        return self.held["n"][0](u.reshape(-1, 3)).reshape(u.shape)


def modules_in(value):
    """All modules that are reachable, found without the code under test."""
    return [one for one in reachable(value) if isinstance(one, nn.BatchNorm1d)]


def reachable(value):
    seen, left = {}, [value]
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(one, type):
            continue
        seen[id(one)] = one
        if isinstance(one, FunctionType):
            left += [cell.cell_contents for cell in one.__closure__ or ()]
            continue
        if isinstance(one, dict | list | tuple | partial | MethodType) or hasattr(one, "__dict__"):
            left += [other for other in gc.get_referents(one) if not isinstance(other, ModuleType)]
            left += list(getattr(one, "__dict__", {}).values())
    return list(seen.values())


@pytest.mark.parametrize("kind", HOLDERS)
def test_whatever_holds_a_module_is_copied_with_it(kind):
    original = net()
    phi, u = HOLDERS[kind](original), states()
    there = replica(phi)
    assert there is not phi
    assert torch.equal(there.step(u, slice(0, 8, 1)), phi.step(u, slice(0, 8, 1)))
    (own,) = modules_in(there)
    assert own is not original[1]
    assert own.running_mean.data_ptr() != original[1].running_mean.data_ptr()
    assert own.weight is original[1].weight  # parameters are only read
    with torch.no_grad():
        own.running_mean += 1
    assert not original[1].running_mean.any()
    assert elsewhere(phi).step(torch.empty(8, 2, 3, device="meta"), slice(0, 8, 1)).device.type == "meta"


def test_what_holds_no_tensor_is_shared():
    grid = TimeGrid.from_times(np.array([0, 0.1, 0.3, 0.4]))
    for phi in (Map(lambda u: -u), RungeKutta(lambda t, u: -u, grid), Map(lru_cache(abs)), Map(np.tanh)):
        assert replica(phi) is phi


def test_factors_are_shared_since_they_are_kept_by_device():
    phi = ImplicitEuler(np.ones(2), -2 * np.ones(3), np.ones(2), TimeGrid(0, 1, 8))
    u = states().double()
    expected = mapped(phi, u, ["cpu"])
    assert phi.operator._factors
    assert replica(phi).operator is phi.operator
    assert torch.equal(mapped(phi, u), expected)


def test_tied_tensors_stay_tied_and_cycles_close():
    module = net()
    module.again = module[1].running_mean
    module.owner = Holder(module)
    there = replica(module)
    assert there.again is there[1].running_mean is not module.again
    assert there.owner.held is there
    assert there.owner.me is there.owner


def test_a_closure_keeps_its_lists_and_defaults():
    told, n = [], net()

    def phi(u, k=3, *, e=1):
        told.append(k)
        return n(u) * e

    phi.mark = "kept"
    there = replica(phi)
    assert there is not phi
    there(states()[0])
    assert told == [3]
    assert there.mark == "kept"
    assert there.__kwdefaults__ == {"e": 1}


# What happens to the original is seen


def test_writes_are_seen_and_nothing_is_copied_twice():
    module, copies = net(), Replicas("cpu", "cpu")
    first = copies.of(module, ROWS)
    assert copies.of(module, ROWS)[1].running_mean is first[1].running_mean
    with torch.no_grad():
        module[1].running_mean += 1
    assert torch.equal(copies.of(module, ROWS)[1].running_mean, module[1].running_mean)
    module[1].running_mean = torch.full((3,), 7.0)
    assert copies.of(module, ROWS)[1].running_mean[0] == 7
    module[0] = nn.Identity()
    assert isinstance(copies.of(module, ROWS)[0], nn.Identity)


def test_writes_that_torch_does_not_count_are_seen_by_the_next_solve():
    module, runtime = net(), LocalRuntime(devices=["cpu"] * 2)
    grid, u0 = TimeGrid(0, 1, 8), states(1)[0]

    def solved(where):
        return solve(module, u0, grid, m=2, coarse=lambda u: u * 0.5, tol=None, max_iterations=1, runtime=where).u

    before = solved(runtime)
    module[1].running_mean.data += 0.5
    after = solved(runtime)
    assert torch.allclose(after, solved(None), rtol=0, atol=1e-6)  # numbers of size 1; products in other company
    assert not torch.allclose(after, before, rtol=0, atol=1e-2)


def test_inference_tensors_are_copied_each_time():
    with torch.inference_mode():
        held = Holder(torch.ones(3))
    copies = Replicas("cpu", "cpu")
    assert copies.of(held, ROWS).held[0] == 1
    with torch.inference_mode():
        held.held += 1
    assert copies.of(held, ROWS).held[0] == 2


def test_copies_live_no_longer_than_their_originals():
    copies, module = Replicas("cpu", "cpu"), net()
    there = weakref.ref(copies.of(module, ROWS)[1].running_mean)
    assert there() is not None
    del module
    gc.collect()
    assert there() is None


# Those that decide for themselves


class Decides:
    batch_invariant = True

    def __init__(self, factor=2.0, device="cpu"):
        self.factor, self.device, self.made = torch.tensor(factor, device=device), device, []

    def on(self, device):
        self.made.append(Decides(float(self.factor), device))
        return self.made[-1]

    def step(self, u, points):
        return u * self.factor


def test_on_is_asked_once_per_entry_and_solve():
    phi, u = Decides(), states()
    runtime = LocalRuntime(devices=["cpu"] * 3)
    for _ in range(2):
        assert torch.equal(mapped(phi, u, runtime=runtime), 4 * u)
    assert [one.device for one in phi.made] == ["cpu", "cpu"]  # the first entry has the propagator itself
    runtime.accept(u[0])
    mapped(phi, u, runtime=runtime)
    assert len(phi.made) == 4


def test_on_is_found_within_wrappers():
    phi = Decides()
    there = replica(Forced(phi, torch.zeros(8, 2, 3)))
    assert there.phi is phi.made[0]


def test_per_device_makes_one_for_each_entry():
    made = []

    def make(device):
        made.append(device)
        return net()

    phi, u = per_device(make, "cpu"), states()
    expected = mapped(Blocks(net()), u, ["cpu"])
    # The numbers are of size 1, and products in blocks may round otherwise.
    assert torch.allclose(mapped(Blocks(phi), u, ["cpu"] * 2), expected, rtol=0, atol=1e-6)
    assert made == ["cpu", "cpu"]
    with pytest.raises(TypeError, match="make: got int, expected a function of the name of a device"):
        per_device(3, "cpu")


def test_compiled_modules_are_refused_by_name():
    module = torch.compile(net(), backend="eager")
    with pytest.raises(TypeError, match=r"devices: got a compiled module \(OptimizedModule\), of which no replica"):
        mapped(Blocks(module), states())


# Rows of the steps that are taken


def test_another_device_gets_the_rows_of_its_steps_and_this_one_all():
    f, g = torch.randn(2, 8, 2, 3).unbind(0)
    phi = Pair(Decides(), f, g)
    assert replica(phi).f is f
    copied = []

    class Recording(Replicas):
        def part(self, source, rows):
            copied.append((source is f or source is g, rows))
            return super().part(source, rows)

    there = Recording("meta", "cpu").of(phi, range(2, 6))
    assert there.f.shape == f.shape
    assert there.f.device.type == "meta"
    assert copied == [(True, range(2, 6))] * 2


def test_guesses_that_are_kept_stay_on_one_device():
    phi = Stored(Decides(), torch.zeros(9, 2, 3))
    assert replica(phi).u is phi.u
    with pytest.raises(ValueError, match="devices: got meta for storage='all', whose states stay on one device"):
        elsewhere(phi)


def test_a_replica_of_a_replica_is_one_too():
    module = net()
    there = replica(replica(module))
    u = states()[0]
    assert torch.equal(there(u), module(u))
    assert torch.equal(copy.deepcopy(there)(u), module(u))
