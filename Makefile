# make demo        the main job on real images, from a clean clone
# make test        the tests, in as many processes as there are cores; what was skipped is named at the end
# make test-fast   the tests but those marked slow: the inner loop
# make lint        ruff and mypy
# make bench       the benchmarks that back README (quiet machine, tens of minutes)
# make figures     write the figures in README and bench/README from the result files anew
# make test-versions   a core set of tests with the lowest and highest versions, and on Arm (downloads; slow)
# make arm-wheels  ask pip for Arm wheels of everything that runs on a device
# make test-full   long matrices; writes result files to bench/results/
#
# TORCH=installed  reuse the torch of the system's Python, as on a Jetson
# TORCH=2.13.0     install this version (the default is the one in constraints.txt)

PYTHON ?= python3
PINNED := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH ?= $(PINNED)
VENV := .venv
RUN := $(VENV)/bin/python
CONSTRAINTS := $(VENV)/constraints.txt
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
# One thread in each process: threads of several processes on the same cores wait for one another.
TESTS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(RUN) -m pytest
PARALLEL := -n $(WORKERS) --dist worksteal -rs
export EDGETTA_DATA ?= data

.PHONY: demo test test-fast test-full test-versions lint format bench figures arm-wheels clean

demo: $(VENV)/.demo
	$(RUN) -m edgetta demo

test: $(VENV)/.dev
	$(TESTS) $(PARALLEL) --durations=15

test-fast: $(VENV)/.dev
	$(TESTS) $(PARALLEL) -m "not slow and not full and not gpu"

test-full: $(VENV)/.dev
	$(TESTS) -rs -m "full or not full"

test-versions: $(VENV)/.dev
	$(RUN) -m tests.versions

lint: $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy -p edgetta

format: $(VENV)/.dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: $(VENV)/.dev
	$(RUN) -m edgetta bench latency --json bench/results/latency.json

figures: $(VENV)/.dev
	$(RUN) -m edgetta.bench.figures

arm-wheels: $(VENV)/.dev
	$(RUN) -m edgetta.devices.arm_wheels

# The torch that is asked for stays, whatever a package would rather have.
ifeq ($(TORCH),installed)
$(CONSTRAINTS):
	@$(PYTHON) -c "import torch" 2>/dev/null || { echo "$(PYTHON) has no torch: install it there, or leave TORCH away"; exit 1; }
	$(PYTHON) -m venv --system-site-packages $(VENV)
	$(RUN) -c "import torch; print('torch==' + torch.__version__)" > $@
else
$(CONSTRAINTS): constraints.txt
	$(PYTHON) -m venv $(VENV)
	sed -e 's/^torch==.*/torch==$(TORCH)/' $(if $(filter $(PINNED),$(TORCH)),,-e '/^torchvision==/d') constraints.txt > $@
	$(PIP) torch
endif

$(VENV)/.demo: $(CONSTRAINTS) pyproject.toml
	$(PIP) -e '.[onnxruntime,export,offline,bench]'
	touch $@

$(VENV)/.dev: $(CONSTRAINTS) pyproject.toml
	$(PIP) -e '.[dev]'
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build demo .mypy_cache .ruff_cache .pytest_cache
