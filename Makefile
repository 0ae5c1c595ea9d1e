# loadwise: `make serve` serves, `make test` tests, `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
# A CPU build by default. Another: make install TORCH="torch==2.13.0" TORCH_INDEX=https://download.pytorch.org/whl/cu130
TORCH ?= torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Where real engines for tests are built and kept (about 4 GB).
ENGINES ?= $(or $(LOADWISE_ENGINES),.cache/engines)
# Where other gateways and load tools are built and kept (about 2 GB).
GATEWAYS ?= $(or $(LOADWISE_GATEWAYS),.cache/gateways)
# More for the command: make serve ARGS="--port 8080"
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STAMP := $(VENV)/.installed
# Tests of compilers and runtimes have a process of their own, beside the others: what those leave in one can end it.
NATIVE := tests/compiler tests/torch_engine tests/app/test_compiling.py
# Whoever holds it may use the processor that the main tests leave free: native tests, then real engines.
SPARE := $(if $(shell command -v flock),flock --no-fork $(VENV)/spare-processor.lock)

.DEFAULT_GOAL := help
.PHONY: help install serve test engines test-engines test-gateways coverage check lint types layers doctor format reference lock bench bench-compare bench-inside bench-engines bench-compile bench-gateways bench-monitoring demo screenshots bench-proof clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(STAMP) ## make .venv from locked versions

$(STAMP): requirements/dev.txt pyproject.toml models/pyproject.toml
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments. Install it: sudo apt-get install python3-venv (see make doctor)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "loadwise needs Python 3.11 to 3.13; say make PYTHON=python3.12 ..."; exit 1; }
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --require-hashes -r requirements/dev.txt
# A CPU wheel that pip already knows wins; otherwise the index of CPU builds is asked.
	@$(PIP) --no-deps "$(TORCH)" 2>/dev/null || $(PIP) --no-deps --extra-index-url $(TORCH_INDEX) "$(TORCH)"
	@$(PIP) --no-deps --no-build-isolation --editable . --editable ./models
	@touch $@

serve: $(STAMP) ## serve the models that ship with loadwise on 127.0.0.1:2240
	@exec $(BIN)/loadwise serve $(ARGS)

demo: $(STAMP) ## a day in five minutes to watch, with faults, ending with the report: make demo ARGS="--minutes 1"
	@exec $(BIN)/python -m loadwise.demo $(ARGS)

screenshots: $(STAMP) ## take docs/images anew: the demonstration's page in Chromium, wide and narrow, light and dark (5 minutes)
	@$(BIN)/python tools/screenshots.py $(ARGS)

test: $(STAMP) ## run the tests (with coverage)
	@rm -f .coverage .coverage.*
ifeq ($(ARGS),)
	@$(SPARE) $(BIN)/python -m coverage run -m pytest $(NATIVE) > $(VENV)/native-tests.log 2>&1 & native=$$!; \
	trap 'kill $$native 2>/dev/null' EXIT; \
	$(BIN)/python -m coverage run -m pytest $(addprefix --ignore=,$(NATIVE)); others=$$?; \
	wait $$native; ended=$$?; cat $(VENV)/native-tests.log; exit $$((others | ended))
else
	$(BIN)/python -m coverage run -m pytest $(ARGS)
endif

engines: $(STAMP) ## build real engines for tests, once: 3 to 5 minutes and 4 GB
	tools/engines/build.sh $(ENGINES)

test-engines: engines ## one contract against real Aphrodite and vLLM, inside and in front, and the embedded engine
	LOADWISE_ENGINES=$(ENGINES) $(SPARE) $(BIN)/python -m pytest -o cache_dir=.cache/pytest-engines -m engines tests/real $(ARGS)

coverage: $(STAMP) ## after `make test`: hold the coverage of lines and branches against what is promised
	@$(BIN)/python -m coverage combine --quiet 2>/dev/null || true
	$(BIN)/python -m coverage report --include='src/loadwise/decision/*' --fail-under=98
	$(BIN)/python -m coverage report --omit='src/loadwise/decision/*' --fail-under=85

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/reference.py --check
	$(BIN)/python tools/deploy.py --check

types: $(STAMP)
	$(BIN)/mypy

layers: $(STAMP)
	$(BIN)/lint-imports

check: test coverage lint types layers ## everything CI asks for

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: $(STAMP) ## write docs/reference and deploy/ anew
	$(BIN)/python tools/reference.py
	$(BIN)/python tools/deploy.py

doctor: ## say what this machine lacks
	@$(PYTHON) tools/doctor.py

lock: ## resolve requirements/*.in anew (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-strip-extras -q requirements/dev.in -o requirements/dev.txt

bench: $(STAMP) ## cost of one decision; what the gateway adds, and what loadwise adds inside an engine
	$(BIN)/python benchmarks/decision.py
	$(BIN)/python benchmarks/gateway.py
	$(BIN)/python benchmarks/inside.py

bench-compare: $(STAMP) ## each member fixed against loadwise: make bench-compare TRACE=file
	$(BIN)/python benchmarks/compare_trace.py $(if $(TRACE),--trace $(TRACE)) $(ARGS)

bench-inside: $(STAMP) ## a real engine's start and time per token with and without loadwise: ARGS="--engine vllm"
	$(BIN)/python benchmarks/inside_engine.py --engines $(ENGINES) $(ARGS)

bench-engines: $(STAMP) ## `balanced` as served beside a real vLLM: make bench-engines VLLM=path/to/venv
	$(BIN)/python benchmarks/engine_throughput.py $(if $(VLLM),--vllm $(VLLM)) $(ARGS)

bench-compile: $(STAMP) ## every form of two models, and the chosen one beside vLLM: make bench-compile VLLM=path/to/venv
	$(BIN)/python benchmarks/compile.py $(if $(VLLM),--vllm $(VLLM)) --out benchmarks/results/compile.json $(ARGS)
	$(BIN)/python benchmarks/build_life.py --out benchmarks/results/build-life.json

bench-monitoring: $(STAMP) ## CPU and memory of all monitoring, on and off in 20 pairs (about 15 minutes)
	$(BIN)/python benchmarks/monitoring_overhead.py $(ARGS)

bench-gateways: $(STAMP) ## loadwise in front beside other gateways on one upstream (about 4 minutes; needs tools/gateways/build.sh)
	$(BIN)/python benchmarks/gateways.py --venvs $(GATEWAYS) --out benchmarks/results/gateways.json --document $(ARGS)

test-gateways: $(STAMP) ## behind LiteLLM's proxy, and load tools against loadwise (needs tools/gateways/build.sh)
	LOADWISE_GATEWAYS=$(GATEWAYS) $(BIN)/python -m pytest -m gateways tests/real $(ARGS)

bench-proof: $(STAMP) ## 1,000 simulated weeks of experiments: can the measured gain be trusted? (minutes)
	$(BIN)/python benchmarks/proof.py --out benchmarks/results/proof.json $(ARGS)

clean: ## remove what was built here
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
