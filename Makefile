# SPDX-License-Identifier: BSD-3-Clause
# make train | test | build | wheel | sanitize | mutate | docs | figures | bench-report | lint | format | gpu.
# Needs Python >= 3.10 and a C++17 compiler; CUDA is used where nvcc is found.
# PYTHON=... chooses the interpreter, PYPARAREAL_* switches are in setup.py.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
CPP := $(shell find csrc tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null | grep -v third_party)
CYTHON := $(wildcard pyparareal/*.pyx pyparareal/*.pxd)
CODE := pyparareal tests bench examples docs setup.py
.DEFAULT_GOAL := build
.PHONY: build train test wheel sanitize mutate docs figures bench-report lint check-format check-stubs check-spills stubs format gpu clean

build: .venv/built
.venv/installed: pyproject.toml .ci/constraints.txt .ci/setup
	.ci/setup $(PYTHON) .venv
	@touch $@
.venv/built: .venv/installed setup.py $(CPP) $(CYTHON)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

train: build
	$(BIN)/pyparareal train --model resnet20 --data digits --parts 4 --compare-serial

test: build
	OMP_WAIT_POLICY=passive OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal tests

wheel: build
	.ci/wheel
sanitize: build
	.ci/sanitize
mutate: build
	$(BIN)/python tests/tools/mutate.py
docs: build
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build
figures: build
	$(BIN)/python bench/figures.py
bench-report: build
	$(BIN)/python bench/history.py
gpu:
	bench/gpu.sh

lint: build
	$(BIN)/ruff check $(wildcard $(CODE))
	$(BIN)/mypy
	$(if $(CYTHON),PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint $(CYTHON)) # it looks for pycodestyle
check-format: build
	$(BIN)/ruff format --check $(wildcard $(CODE))
	$(BIN)/clang-format --dry-run -Werror $(CPP)
check-spills:
	.ci/spills $(subst ;, ,$(or $(PYPARAREAL_CUDA_ARCHS),90))
check-stubs: build
	$(BIN)/python tests/tools/make_stubs.py --check
stubs: build
	$(BIN)/python tests/tools/make_stubs.py
format: build
	$(BIN)/ruff check -q --fix $(wildcard $(CODE))
	$(BIN)/ruff format $(wildcard $(CODE))
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf build dist docs/_build pyparareal/*.so *.egg-info
