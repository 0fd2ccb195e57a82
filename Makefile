# make train: install into .venv and run the default job. make test: install and run the fast tests, in two processes.
PYTHON ?= python3
BIN := .venv/bin
ALL_EXTRAS := dev,lora,wandb,optim8bit,math,ifeval,json,cluster,vllm,bench,browser

# The GPU's torch is that of .venv where there is one; elsewhere name its Python: make test-gpu GPU_PYTHON=python3
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

.PHONY: train test test-all test-slurm test-gpu bench-gpu slurm bubblewrap chromium style quality docs clean

train: .venv/base
	$(BIN)/shoal train

test: .venv/dev bubblewrap
	$(BIN)/pytest -m "not slow and not vllm and not ray and not slurm and not gpu" -n 2 --dist loadfile

test-all: .venv/all .venv-atropos/ready bubblewrap chromium
	$(BIN)/pytest

# Jobs on a SLURM of two nodes that the tests start on this machine.
test-slurm: .venv/all slurm
	$(BIN)/pytest tests/slurm

# On CUDA; where there is none, the same at tiny shapes on the CPU. Nothing is installed.
test-gpu:
	SHOAL_GPU_ON_CPU=1 $(GPU_PYTHON) -m pytest -m gpu $$(grep -rl "mark.gpu" tests)

bench-gpu:
	PYTHONPATH="$(CURDIR):$$PYTHONPATH" $(GPU_PYTHON) benchmarks/gpu.py

style: .venv/dev
	$(BIN)/ruff format shoal tests benchmarks
	$(BIN)/ruff check --fix shoal tests benchmarks

quality: .venv/dev
	$(BIN)/ruff format --check shoal tests benchmarks
	$(BIN)/ruff check shoal tests benchmarks
	$(BIN)/mypy

docs: .venv/base
	$(BIN)/python -m shoal.config.docs

# The sandbox's tests need bubblewrap, and as root setpriv; without them they are skipped.
bubblewrap:
	@{ command -v bwrap && command -v setpriv; } >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends bubblewrap util-linux >/dev/null; } \
	|| echo "bubblewrap is not installed, so the tests of the code sandbox are skipped: sudo apt-get install bubblewrap util-linux"

# A controller, two daemons and their authentication; the tests start their own and leave the system's alone.
slurm:
	@PATH="$$PATH:/usr/sbin"; { command -v slurmctld && command -v slurmd && command -v munged; } >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge shellcheck >/dev/null; } \
	|| echo "SLURM is not installed, so its tests are skipped: sudo apt-get install slurm-wlm munge shellcheck"

clean:
	rm -rf .venv .venv-atropos outputs multirun .pytest_cache .mypy_cache .ruff_cache

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Shoal needs Python 3.11 or later; set PYTHON=") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv

.venv/base: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q -c constraints.txt -e .
	@touch $@

.venv/dev: .venv/base
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	@touch $@

# vLLM asks for packages that have no CPU build; with a CUDA build of them transformers cannot import its models.
.venv/all: .venv/dev
	DS_BUILD_OPS=0 $(BIN)/pip install -q -c constraints.txt -e ".[$(ALL_EXTRAS)]"
	$(BIN)/pip uninstall -q -y torchvision torchaudio torchcodec triton
	@touch $@

# The browser of the tests of `shoal view`; where it cannot be installed they are skipped.
chromium:
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } || true

# The real thing that the rollout API's tests and benchmark run against; it needs older packages than Shoal.
.venv-atropos/ready: constraints-atropos.txt
	$(PYTHON) -m venv .venv-atropos
	.venv-atropos/bin/pip install -q -c constraints-atropos.txt atroposlib==0.4.0 requests pytest pytest-asyncio
	@touch $@
