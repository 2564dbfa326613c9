# SPDX-License-Identifier: BSD-3-Clause
"""What can be seen of what a propagator computes with: every change of it, and nothing that may change by itself."""

import functools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from pyparareal.held_values import fingerprints  # noqa: E402


class Step:
    def __init__(self, h=0.5, a=(1.0, 2.0), weight=(3.0,), seed=0):
        torch.manual_seed(seed)
        self.h, self.a, self.weight = h, np.array(a), torch.tensor(weight)
        self.nets = [torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)]
        self.rule = functools.partial(lambda c, b, u: c * u + b, h, np.array(a))
        self.calls, self._room, self._seconds, self.name = 0, np.zeros(2), 0.0, "step"
        self.names = np.array(["a", None], object)

    def step(self, u, points):
        return u

    @functools.cached_property
    def found(self):
        return np.ones(2)


def function(a, b):
    def step(u, c=b):
        return a * u + c

    return step


CHANGES = {
    "h": Step(h=0.25),
    "a": Step(a=(1.0, 2.5)),
    "weight": Step(weight=(3.5,)),
    "nets": Step(seed=1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_value_has_another_checksum(name):
    known, other = fingerprints("fine", Step()), fingerprints("fine", CHANGES[name])
    differing = {one for one in known if known[one] != other[one]}
    assert f"fine.{name}" in differing
    assert differing <= {f"fine.{name}", "fine.rule"}
    assert ("fine.rule" in differing) == (name in ("h", "a"))


def test_the_same_values_have_the_same_checksums():
    assert fingerprints("fine", Step()) == fingerprints("fine", Step())
    assert set(fingerprints("fine", Step())) == {"fine.h", "fine.a", "fine.weight", "fine.nets", "fine.rule"}


def test_what_changes_by_itself_does_not_count():
    one = Step()
    known = fingerprints("fine", one)
    one.calls, one._room, one._seconds = 3, np.ones(2), 1.5
    assert one.found.sum() == 2
    one.nets[1](torch.randn(4, 2))  # the statistics of what this rank has seen
    assert fingerprints("fine", one) == known


def test_functions_are_what_they_have_from_around_them():
    known = fingerprints("fine", function(2.0, np.ones(3)))
    assert set(known) == {"fine with a", "fine"}
    assert fingerprints("fine", function(2.5, np.ones(3)))["fine with a"] != known["fine with a"]
    assert fingerprints("fine", function(2.0, np.zeros(3)))["fine"] != known["fine"]
    assert fingerprints("fine", torch.sin) == {}


def test_bits_shapes_and_dtypes_count_and_layouts_do_not():
    def of(value):
        return fingerprints("fine", lambda u, c=value: c * u)["fine"]

    plain = np.arange(6.0).reshape(2, 3)
    assert of(plain) == of(np.asfortranarray(plain))
    assert len({of(one) for one in (plain, plain.reshape(3, 2), plain.astype(np.float32), -plain)}) == 4
    assert of(torch.tensor([0.0])) != of(torch.tensor([-0.0]))
    turned = torch.complex(torch.ones(2), torch.ones(2)).conj()
    assert of(turned) == of(turned.resolve_conj())
    sparse = torch.eye(2).to_sparse()
    assert fingerprints("fine", lambda u: sparse @ u) == {}  # its bits cannot be read


def test_an_object_that_knows_itself_is_seen_once():
    one = Step()
    one.me, one.bound = one, one.step
    assert fingerprints("fine", one) == fingerprints("fine", Step())
