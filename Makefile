# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
#
# `make demo` and `make test` do all the set-up by themselves; they need make and python3, nothing else.
#
#   PYTHON=3.12           interpreter for .venv: a version or a path (default: python3, or what uv finds or downloads)
#   UV_TORCH_BACKEND=cpu  the small CPU build of torch instead of the one with CUDA
#   ARGS="-k scores -x"   arguments for pytest

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint format docs constraints clean

PYTHON ?=
ARGS ?=
VENV := .venv
UV := $(or $(shell command -v uv 2>/dev/null),.tools/uv/bin/uv)
# A torch with CUDA is a download of gigabytes: be patient with slow lines.
export UV_HTTP_TIMEOUT ?= 180

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r name text; do \
		printf '%-17s %s\n' "$$name" "$$text"; done

demo: $(VENV)/.stamp-core ## sort the sample pictures into known and unknown, offline
	$(VENV)/bin/clipn-hf demo

# Each worker runs torch with one thread (tests/conftest.py), so one worker per core does not oversubscribe.
test: $(VENV)/.stamp-dev ## run all tests
	@$(VENV)/bin/python tests/fetch_transformers_tests.py || { test -z "$$CI" && echo "Going on without them."; }
	$(VENV)/bin/python -m pytest -n logical --maxprocesses 8 --dist worksteal $(ARGS)

lint: $(VENV)/.stamp-dev ## check style and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(VENV)/.stamp-dev ## sort imports, fix what can be fixed, format
	$(VENV)/bin/ruff check --fix-only
	$(VENV)/bin/ruff format

docs: $(VENV)/.stamp-docs ## write the API reference to site/
	$(VENV)/bin/pdoc --docformat google --math --output-directory site clipn_hf clipn_hf.calibration \
		clipn_hf.detector clipn_hf.encoders clipn_hf.evaluation.adversarial clipn_hf.evaluation.benchmark \
		clipn_hf.evaluation.comparison clipn_hf.evaluation.doctor clipn_hf.evaluation.metrics \
		clipn_hf.evaluation.ood_detection clipn_hf.evaluation.published clipn_hf.evaluation.report \
		clipn_hf.evaluation.results clipn_hf.evaluation.robustness clipn_hf.evaluation.sets \
		clipn_hf.evaluation.suite clipn_hf.evaluation.tables clipn_hf.feature_cache clipn_hf.features \
		clipn_hf.images clipn_hf.methods clipn_hf.modeling clipn_hf.negatives clipn_hf.probing \
		clipn_hf.prompts clipn_hf.scores clipn_hf.training clipn_hf.wordnet

# Without the wheelhouse of this machine, so that the versions are those that everyone finds.
constraints: $(UV) ## choose new versions for constraints.txt
	{ sed '/^[^#]/,$$d' constraints.txt; printf 'torch==2.13.0\nuv\nhatchling\n' | \
		UV_FIND_LINKS= $(UV) pip compile --universal --python-version 3.11 --all-extras --upgrade --quiet \
		--no-header --no-annotate --no-emit-index-url pyproject.toml -; } > constraints.partial
	mv constraints.partial constraints.txt

clean: ## remove the environment, caches and everything built
	rm -rf $(VENV) .tools .cache site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis tests/.transformers
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv installs much faster than pip and can bring a Python. Where it is absent it gets an environment of its own.
.tools/uv/bin/uv:
	@echo "uv is not on this machine: installing it into .tools/uv"
	@rm -rf .tools/uv .tools/uv.partial
	@python3 -m venv .tools/uv.partial || { echo >&2 \
		"python3 cannot create an environment. Install its venv module (Debian: python3-venv) or install uv."; exit 1; }
	@.tools/uv.partial/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@mv .tools/uv.partial .tools/uv

# .stamp-core: the package alone; .stamp-dev and .stamp-docs: with that extra, which includes the core.
# Stamps are written last. .tools/incomplete exists while packages are being installed: an environment whose
# installation was interrupted may hold half a package, and is made anew from uv's cache.
# uv does not read pip's configuration; a wheelhouse named there (--find-links) is passed on.
$(VENV)/.stamp-%: pyproject.toml constraints.txt | $(UV)
	@set -e; \
	if [ -e .tools/incomplete ]; then rm -rf $(VENV); fi; \
	mkdir -p .tools; touch .tools/incomplete; \
	find_links=$${PIP_FIND_LINKS:-$$(python3 -m pip config get global.find-links 2>/dev/null || true)}; \
	if [ -n "$$find_links" ] && [ -z "$$UV_FIND_LINKS" ]; then \
		UV_FIND_LINKS=$$(echo $$find_links | tr ' ' ','); export UV_FIND_LINKS; \
	fi; \
	if [ ! -x $(VENV)/bin/python ]; then \
		python="$(PYTHON)"; \
		if [ -z "$$python" ]; then \
			python=$$(python3 -c 'import sys; print(sys.executable if (3, 11) <= sys.version_info < (3, 15) else "")'); \
		fi; \
		if [ -z "$$python" ]; then \
			echo "clipn-hf needs Python 3.11 to 3.14 and python3 is $$(python3 --version): uv looks for another one, or downloads it"; \
			python='>=3.11,<3.15'; \
		fi; \
		$(UV) venv --quiet --python "$$python" $(VENV) || { \
			echo >&2 "No Python 3.11 to 3.14 to be had. Install one, or name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; \
			exit 1; }; \
	fi; \
	echo "Installing clipn-hf ($*) into $(VENV)"; \
	$(UV) pip install --python $(VENV)/bin/python --constraint constraints.txt --build-constraint constraints.txt \
		--editable "$(if $(filter core,$*),.,.[$*])"; \
	touch $(VENV)/.stamp-core $(VENV)/.stamp-$*; \
	rm .tools/incomplete
