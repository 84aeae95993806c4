# `make demo` and `make test` need Python 3.11 or newer and a package index, nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test test-long test-oldest test-gpu test-slurm test-tensorflow lint env clean

env: $(STAMP)

# The stamp is touched last, and an environment that was cut off has no pip yet: either is done again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "gptscale needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/gptscale demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Of the SLURM tests only the quickest, and that where it can run. In the files' order the long ones are not the last.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore-glob '*/slurm/test_*jobs.py' -m 'not long'

test-long: $(STAMP)
	$(BIN)/python -m pytest -m long

# What pyproject.toml allows at least, in an environment of its own; pip cannot choose the oldest.
test-oldest:
	$(VENV)-oldest/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --disable-pip-version-check -q uv
	VIRTUAL_ENV="$(abspath $(VENV)-oldest)" $(VENV)-oldest/bin/uv pip install -q --resolution lowest-direct -e '.[dev]'
	PATH="$(abspath $(VENV)-oldest)/bin:$$PATH" \
		$(VENV)-oldest/bin/python -m pytest -n 2 --dist loadfile --ignore tests/slurm -m 'not long'

# Without a CUDA device every test would be skipped, and a tier that ran nothing has failed.
test-gpu: $(STAMP)
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' \
		|| { echo "no CUDA device: no GPU test would run"; exit 1; }
	$(BIN)/python -m pytest tests/gpu

# TensorFlow gets an environment of its own: it is large, and only reading OpenAI's old checkpoints needs it.
test-tensorflow:
	$(VENV)-tensorflow/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)-tensorflow
	$(VENV)-tensorflow/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev,tensorflow]'
	$(VENV)-tensorflow/bin/python -c 'import tensorflow'
	$(VENV)-tensorflow/bin/python -m pytest tests/weights/test_tensorflow.py

# Without root and SLURM's packages every test would be skipped.
test-slurm: $(STAMP)
	@test "$$(id -u)" = 0 && PATH="$$PATH:/usr/sbin" command -v slurmctld slurmd sbatch munged >/dev/null \
		&& unshare --pid --fork --net --uts --ipc --mount true \
		|| { echo "no root who may make namespaces, or no SLURM (munge slurmctld slurmd slurm-client): no SLURM test would run"; exit 1; }
	$(BIN)/python -m pytest tests/slurm

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-tensorflow .mypy_cache .pytest_cache .ruff_cache
