# SPDX-License-Identifier: BSD-3-Clause
"""The doctor on machines that are not here: each fault must be found, named, and given its remedy."""

import importlib
import json
import sys
import types

import numpy as np
import pytest

from pyparareal import __version__, _doctor, cli, ops


def fake_core(**changes):
    info = {"version": __version__, "compiler": "13.2.0", "cuda": True, "cuda_version": 13000, "cuda_archs": "80;90"}
    info |= {"openmp": True, "threads": 8, "simd": "avx2"} | changes.pop("info", {})
    values = {"driver": 13000, "devices": 1} | changes
    return types.SimpleNamespace(
        build_info=lambda: info,
        cuda_driver_version=lambda: values["driver"],
        cuda_device_count=lambda: values["devices"],
    )


def named(findings, name):
    return next(f for f in findings if f.name == name)


def test_this_machine_is_healthy(capsys):
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert __version__ in shown
    assert "numpy" in shown
    assert "match the reference" in shown


def test_json(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] is True
    names = {f["name"] for f in report["findings"]}
    assert {"pyparareal", "python", "extension", "numpy", "torch", "cupy", "cuda kernels", "train extra"} <= names
    assert all(f["mend"] for f in report["findings"] if f["ok"] is False)


def test_an_extension_that_does_not_load(monkeypatch, capsys):
    load = importlib.import_module

    def refuse(name, *rest):
        if name == "pyparareal._core":
            raise ImportError("libgomp.so.1: cannot open shared object file")
        return load(name, *rest)

    monkeypatch.setattr(importlib, "import_module", refuse)
    assert cli.main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "libgomp.so.1" in shown
    assert "pip install" in shown


def test_wrong_kernels_are_found(monkeypatch):
    monkeypatch.setattr(ops, "parareal_update", lambda f, g, h, u: (f + g, np.zeros(len(f))))
    finding = _doctor._library("numpy", lambda name: np.asarray, required=True)
    assert finding.ok is False
    assert "differ from the reference" in finding.value


def test_an_extension_of_another_version():
    finding = named(_doctor._extension(fake_core(info={"version": "0.0.1"})), "extension")
    assert finding.ok is False
    assert finding.required
    assert "0.0.1" in finding.value


def test_built_without_openmp():
    assert named(_doctor._extension(fake_core(info={"openmp": False})), "threads").ok is False


def test_built_without_cuda():
    (finding,) = _doctor._cuda(fake_core(info={"cuda": False}))
    assert finding.ok is False
    assert "PYPARAREAL_CUDA=1" in finding.mend


@pytest.mark.parametrize(
    ("installed", "supported", "devices", "ok", "said"),
    [
        (None, 0, 0, False, "none; falls back to the CPU"),
        ("550.54.14", 12040, 1, False, "550.54.14, for CUDA 12.4: too old"),
        ("580.65.06", 13000, 1, True, "580.65.06"),
        ("590.10", 13010, 2, True, "590.10"),
        (None, 13000, 1, True, "unknown"),
    ],
)
@pytest.mark.parametrize("version", [13000, 13010])
def test_driver(installed, supported, devices, ok, said, version, monkeypatch):
    monkeypatch.setattr(_doctor, "_driver", lambda: installed)
    findings = list(_doctor._cuda(fake_core(info={"cuda_version": version}, driver=supported, devices=devices)))
    driver = named(findings, "driver")
    assert driver.ok is ok
    assert said in driver.value
    assert ok or ("580" in driver.value and "580" in driver.mend)
    assert named(findings, "cuda devices").ok is (devices > 0)


def test_missing_libraries_get_their_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    core = fake_core()
    findings = [*_doctor._torch(core), *_doctor._cupy(core), *_doctor._training()]
    assert [f.ok for f in findings] == [False] * 3
    assert [f.mend.split("'")[1] for f in findings] == [f"pyparareal[{extra}]" for extra in ("torch", "cupy", "train")]


def test_cupy_is_not_imported_without_a_device(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "cupy", None)  # an import of it would raise
    (finding,) = _doctor._cupy(fake_core(devices=0))
    assert finding.ok is None
    assert "installed" in finding.value


def test_a_broken_library_is_a_finding(monkeypatch):
    monkeypatch.setitem(sys.modules, "brokenlib", types.ModuleType("brokenlib"))
    finding = _doctor._library("brokenlib", lambda name: np.asarray)
    assert finding.ok is False
    assert "AttributeError" in finding.value
    assert finding.mend
