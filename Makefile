# make demo: the main job from nothing. make test: everything CI runs. make help: all of them.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
LAUNCH := $(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --use-pep517 --constraint constraints.txt

.PHONY: help setup demo methods bench test check lint ui

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## make .venv with the tested versions, fetch the built-in model and data

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[dev]'
	$(BIN)/python -m harness.catalogue.builtin
	@touch $(READY)

demo: setup  ## set up, then train exp=lora_adapter on real reviews, tracked in MLflow
	$(LAUNCH) launch.py exp=lora_adapter

methods: setup  ## train the experiments on product reviews with three seeds, unless done already, and print the table (hours)
	$(BIN)/python benchmarks/methods.py

bench: setup  ## measure against other trainers and where time goes, about 25 minutes on two quiet cores (BENCH=--quick: 6)
	$(BIN)/python benchmarks/peers.py $(BENCH)
	$(BIN)/python benchmarks/first_step.py $(BENCH)
	$(BIN)/python benchmarks/step_profile.py $(BENCH)
	$(BIN)/python benchmarks/method_cost.py $(BENCH)
	$(BIN)/python benchmarks/latency_cost.py $(BENCH)
	$(BIN)/python benchmarks/tracking_cost.py $(BENCH)
	$(BIN)/python benchmarks/study_cost.py $(BENCH)
	$(BIN)/python benchmarks/language_models.py $(BENCH)

test: lint  ## set up, lint, check types, run all tests (what CI runs)
	$(PYTEST) --durations=10

check: lint  ## the same with the fast tests only
	$(PYTEST) -m "not slow"

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

ui: setup  ## open MLflow on the runs (http://127.0.0.1:5000)
	@echo 'http://127.0.0.1:5000/?workflowType=machine_learning  (Ctrl-C ends it)'
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --workers 1 --host 127.0.0.1 --port 5000 \
		--backend-store-uri "sqlite:///$(CURDIR)/mlruns/mlflow.db" --default-artifact-root "$(CURDIR)/mlruns/artifacts"
