# Everything runs in .venv, which the first target makes. Examples:
#   make extract DATA=~/photos BACKBONE=resnet18
#   make train-head DATA=~/photos HEAD=all
#   make finetune DATA=~/photos STRATEGY=discriminative ARGS="--epochs 10"
#   make predict RUN=phototiles IMAGES=holiday.jpg

PYTHON ?= python3
DATA ?=
BACKBONE ?=
HEAD ?=
STRATEGY ?=
RUN ?=
IMAGES ?=
ARGS ?=
CACHES ?= no
NAME ?=

BIN := .venv/bin
PIPELINE := $(BIN)/python -m pipeline
DATA_FLAGS = $(if $(DATA),--data '$(DATA)') $(if $(BACKBONE),--backbone '$(BACKBONE)')

.DEFAULT_GOAL := help
.PHONY: help install extract train-head finetune compare summary layers label report audit predict recipe check test test-slow clean

help:  ## print the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

install: .venv/installed  ## make .venv and install the pipeline in it

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[timm]'
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

extract: install  ## stage one: cache features (DATA=, BACKBONE=, ARGS=)
	$(PIPELINE) extract $(DATA_FLAGS) $(ARGS)

train-head: install  ## stage two: train a head on the cache (DATA=, BACKBONE=, HEAD=name or all, ARGS=)
	$(PIPELINE) train-head $(DATA_FLAGS) $(if $(HEAD),--head '$(HEAD)') $(ARGS)

finetune: install  ## retrain the whole network, for comparison (DATA=, BACKBONE=, STRATEGY=, ARGS=)
	$(PIPELINE) finetune $(DATA_FLAGS) $(if $(STRATEGY),--strategy '$(STRATEGY)') $(ARGS)

compare: install  ## one table of all runs (DATA=, ARGS=)
	$(PIPELINE) compare $(if $(DATA),--data '$(DATA)') $(ARGS)

summary: install  ## layers, parameters and multiply-adds of a network (BACKBONE=, STRATEGY=, ARGS=)
	$(PIPELINE) summary $(if $(BACKBONE),--backbone '$(BACKBONE)') $(if $(STRATEGY),--strategy '$(STRATEGY)') $(ARGS)

layers: install  ## where a network can be cut for `finetune --cached` (DATA=, BACKBONE=, ARGS=)
	$(PIPELINE) layers $(DATA_FLAGS) $(ARGS)

label: install  ## label photos on a page in the browser (DATA=, ARGS="--classes a,b"); takes pip install '.[label]'
	$(PIPELINE) label $(DATA_FLAGS) $(ARGS)

report: install  ## runs/<name>/report.html about RUN=name (default: the latest run)
	$(PIPELINE) report $(if $(RUN),--run '$(RUN)') $(ARGS)

audit: install  ## duplicates, leaks and wrong labels in the cached features (DATA=, BACKBONE=, ARGS=)
	$(PIPELINE) audit $(DATA_FLAGS) $(ARGS)

predict: install  ## classify IMAGES=file or folder with RUN=name (default: the best run of the newest data set)
	$(PIPELINE) predict $(if $(RUN),--run '$(RUN)') $(ARGS) $(IMAGES)

recipe: install  ## run a published system: NAME=A2 (`.venv/bin/pipeline recipe list`; DATA=, BACKBONE=, ARGS=)
	$(PIPELINE) recipe $(if $(NAME),run '$(NAME)' $(DATA_FLAGS) $(ARGS),list)

check: .venv/installed-test  ## lint, types, layering
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layering.py

test: .venv/installed-test  ## run the tests
	$(BIN)/python -m pytest -n auto --dist loadfile -m 'not slow' $(ARGS)

test-slow: .venv/installed-test  ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow -o faulthandler_timeout=0 $(ARGS)

clean:  ## remove .venv, runs and build products; caches too with CACHES=yes
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache runs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	$(if $(filter yes,$(CACHES)),find cache -mindepth 1 -not -name README.md -delete)
