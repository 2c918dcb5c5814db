# The two commands of the README are `make demo` and `make test`; `make help` lists the rest.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV ?= .venv
# Any torch from 2.10 on will do; this one is what CI runs.
TORCH ?= torch==2.13.0
# Installed only where torch has not brought its own Triton along.
TRITON ?= triton==3.6.0
# Two processes: a file of tests stays in one of them. tests/conftest.py puts the files in order.
PYTEST_ARGS ?= --numprocesses 2 --dist loadfile --no-loadscope-reorder
# For example: --torch 2.10.0 newest --python 3.11 3.13
MATRIX_ARGS ?=

BIN := $(VENV)/bin
NATIVE := setup.py $(shell find csrc -type f)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 20

$(VENV)/.packages: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel ninja
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/python -m pip install --quiet "$(TRITON)"
	touch $@

# The constraint keeps the torch that is there: the newest torchvision, which open_clip asks for, would replace it.
$(VENV)/.installed: $(VENV)/.packages $(NATIVE)
	$(BIN)/python -c "from importlib.metadata import version; print('torch==' + version('torch'))" > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation --constraint $(VENV)/constraints.txt \
	    --editable ".[train,test,bench,dev,examples]"
	touch $@

.PHONY: install
install: $(VENV)/.installed ## set up the virtual environment and build the library into it

# The demo alone needs no tools of development, and no CUDA half where no GPU is, or for other GPUs than those here.
# It takes the checkout as it is; where `make install` has been here, what that has set up.
CAPABILITIES = $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | \
    awk '$$1 >= 80' | sort -u | paste -sd,)
# As a file of requirements, since some have markers, which hold blanks and a <.
LIST_TRAIN_PACKAGES = $(BIN)/python -W ignore -c "from setuptools.config.pyprojecttoml import read_configuration as read; \
    print(*read('pyproject.toml')['project']['optional-dependencies']['train'], sep='\n')" > $(VENV)/train.txt
NATIVE_FOR_DEMO = $(if $(CAPABILITIES),SPARC_CUDA_ARCHITECTURES=$(CAPABILITIES),SPARC_BUILD_CUDA=0)

$(VENV)/.demo: pyproject.toml $(NATIVE)
	@echo "setting up $(VENV): PyTorch"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c "import torch, setuptools, ninja" 2>/dev/null || \
	    $(BIN)/python -m pip install --quiet --no-compile "$(TORCH)" "setuptools>=77" wheel ninja
	@$(LIST_TRAIN_PACKAGES)
	@echo "compiling the kernels $(if $(CAPABILITIES),for CPU and GPU,for the CPU) while the trainer's packages are installed"
	@{ $(NATIVE_FOR_DEMO) $(BIN)/python setup.py --quiet build_ext --inplace > $(VENV)/compiling.log 2>&1 \
	    || { cat $(VENV)/compiling.log; exit 1; }; } & compiling=$$!; \
	    $(BIN)/python -m pip install --quiet --no-compile --requirement $(VENV)/train.txt; installed=$$?; \
	    wait $$compiling && exit $$installed
	@touch $@

.PHONY: demo
demo: $(if $(wildcard $(VENV)/.installed),install,$(VENV)/.demo) ## train a small model on drawn scenes with the fused loss (minutes)
	@echo "training twice, with CLIP's loss and with SPARC's"
	$(BIN)/python -m sparc_kernels.train --demo

.PHONY: test
test: install ## run all tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: lint
lint: install ## ruff, clang-format and mypy, as CI runs them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy

.PHONY: format
format: install ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format -i

.PHONY: benchmark
benchmark: install ## time the kernels against eager, torch.compile and bare matrix products
	$(BIN)/python -m pytest benchmarks --benchmark-only

.PHONY: benchmark-report
benchmark-report: install ## write docs/benchmarks.md, its plots, the README's figures and the tables of docs/distributed.md
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.scale_model --write

.PHONY: study
study: install ## train what docs/training.md reports, 30 runs of minutes; what has ended is kept: [STUDY="--only scenes"]
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study --write $(STUDY)

.PHONY: compare-losses
compare-losses: install ## train with each loss of the trainer and write their table, 27 runs of a minute or two: [LOSSES="--seeds 1"]
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study.losses --write $(LOSSES)

# Needs no virtual environment, no network: where there is none it takes $(PYTHON) as it is.
.PHONY: gpu-check
gpu-check: ## tests, sanitizer and benchmarks on a GPU: OUT=folder [PART=...] [SUITES=...] [WHEEL=...] [BUDGET=540] [COMMIT=...] [DRY=1]
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m tools.gpu_check --out "$(or $(OUT),runs/gpu_check)" \
	    $(if $(PART),--part $(PART)) $(if $(SUITES),--suites $(SUITES)) $(if $(WHEEL),--wheel $(WHEEL)) $(if $(BUDGET),--budget $(BUDGET)) \
	    $(if $(COMMIT),--commit $(COMMIT)) $(if $(DRY),--dry)

.PHONY: wheel
wheel: install ## build the wheel into dist/, with the manylinux tag that it may carry; prints its size
	$(BIN)/python -m tools.build_wheel

.PHONY: wheel-matrix
wheel-matrix: wheel ## run the wheel under torch 2.10 to the newest and Python 3.10 to 3.13 (downloads 25 GB)
	$(BIN)/python -m tools.wheel_matrix $(MATRIX_ARGS)

.PHONY: hub-kernel
hub-kernel: install ## write the layout that Hugging Face's kernels loads, into dist/hub_kernel/
	$(BIN)/python -m tools.hub_kernel

.PHONY: doctor
doctor: install ## print versions, and which backends this machine can use
	$(BIN)/python -m sparc_kernels

.PHONY: clean
clean: ## remove build products (the virtual environment stays)
	rm -rf build dist *.egg-info sparc_kernels/*.so $(VENV)/.installed
