# `make serve` and `make test` work on a fresh machine with Python >= 3.11: each makes .venv and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
MODEL ?= smollm2-135m

.PHONY: help serve chat test test-api test-page test-clients check bench bench-peers docs format clean

help:
	@echo "make serve   serve SmolLM2 on http://127.0.0.1:30000 (MODEL=... for another)"
	@echo "make chat    talk to it in the terminal"
	@echo "make test    run all tests"
	@echo "make test-page   drive the page in a headless Chromium"
	@echo "make test-clients   run the clients of others against a real server (installs each; ARGS='openai-3 ollama' for some)"
	@echo "make test-api  fuzz every route by the OpenAPI document (some minutes)"
	@echo "make check   format, lint, types, layers, sizes, public surface"
	@echo "make bench   measure this machine; make bench-peers also measures other engines beside it"
	@echo "make docs    regenerate the generated pages of docs/"

.venv/.base: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/.dev: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,bench]'
	@touch .venv/.base $@

serve: .venv/.base
	$(BIN)/radixlm serve $(MODEL) $(ARGS)

chat: .venv/.base
	$(BIN)/radixlm chat $(MODEL) $(ARGS)

test: .venv/.dev
	$(BIN)/python -m pytest $(ARGS)

test-page: .venv/.dev
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { [ "$$(id -u)" = 0 ] && \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-inter; } || \
	  { echo "a Chromium is needed: install the package chromium of your system"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check playwright
	$(BIN)/python -m pytest tests/page $(ARGS)

test-clients: .venv/.dev
	$(BIN)/python -m tests.clients.run $(ARGS)

test-api: .venv/.dev
	$(BIN)/python -m tests.http.api_fuzz

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python tools/sizes.py
	$(BIN)/python tools/docs.py --check
	$(BIN)/python -m pytest tests/surface

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.dev
	$(BIN)/python -m bench sched
	$(BIN)/radixlm bench offline $(ARGS)
	$(BIN)/python -m bench programs

bench-peers: .venv/.dev
	$(BIN)/python -m bench peers $(ARGS)

docs: .venv/.dev
	$(BIN)/python tools/docs.py

clean:
	rm -rf .venv .venvs build dist .pytest_cache .ruff_cache .hypothesis
