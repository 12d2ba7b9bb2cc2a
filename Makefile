# `make demo` installs DPSeg and segments two photos of examples/; `make test` runs the tests. `make help` lists the rest.

VENV := .venv
PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
PIP_FLAGS ?=
PIP_INSTALL = $(VENV)/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt

DEMO_OUT := out/demo
PORT ?= 7860

DATA ?= data
SMALL := runs/lite-small

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo demo-page test bench reproduce few-shot robustness lint types imports check format clean

help: ## Print this list.
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 \t/p' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime ## Install DPSeg and segment two photos of examples/.
	$(VENV)/bin/dpseg predict examples/chelsea.jpg --text cat --text wall --out $(DEMO_OUT)
	$(VENV)/bin/dpseg predict examples/pagoda.jpg --text pagoda --text sky --text tree --out $(DEMO_OUT)
	@echo "The overlays are in $(DEMO_OUT):"
	@ls $(DEMO_OUT)/*overlay*

demo-page: $(VENV)/.page ## Install DPSeg with its page and serve it; PORT=7860.
	$(VENV)/bin/dpseg serve --port $(PORT)

test: $(VENV)/.dev ## Run the tests; leaves out/junit.xml.
	$(VENV)/bin/python -m pytest --junitxml=out/junit.xml

bench: $(VENV)/.dev ## Measure speed and memory against the project's bounds, on an idle machine; leaves benchmarks/results.
	$(VENV)/bin/python benchmarks/speed.py; status=$$?; $(VENV)/bin/python benchmarks/predict_speed.py && exit $$status

reproduce: $(VENV)/.dev ## Train a small model on the sets in DATA=data from nothing, and measure it; under half an hour.
	$(VENV)/bin/dpseg train --config configs/lite-small.yaml --data-root $(DATA) --out $(SMALL) --resume no
	$(VENV)/bin/dpseg evaluate $(DATA)/coco_things --model $(SMALL)/final --prompts text,pictures,both --refine both \
	    --out $(SMALL)/coco_things.json

few-shot: $(VENV)/.dev ## Measure 1 to 10 reference pictures a class on sets in DATA=data; leaves docs/results/few_shot.json and .png.
	$(VENV)/bin/python benchmarks/few_shot.py --data $(DATA)

robustness: $(VENV)/.dev ## Measure noisy, blurred and wrong pictures on sets in DATA=data; leaves docs/results/robustness.json and .png.
	$(VENV)/bin/python benchmarks/robustness.py --data $(DATA)

lint: $(VENV)/.dev ## Check style and formatting.
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.dev ## Check types.
	$(VENV)/bin/mypy

imports: $(VENV)/.dev ## Check that modules import only downwards.
	$(VENV)/bin/lint-imports

check: lint types imports ## All three checks.

format: $(VENV)/.dev ## Format the code and mend what ruff can mend.
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean: ## Remove results and caches; `rm -r .venv` removes the installation.
	rm -rf out build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written only after its step succeeded, so a failed install is tried again and a finished one is not repeated.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "DPSeg needs Python 3.11 or newer, found %d.%d; run: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "Installing DPSeg into $(VENV); the first time takes some minutes."
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.page: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "Installing DPSeg and its page into $(VENV); the first time takes some minutes."
	$(PIP_INSTALL) -e '.[page]'
	@touch $(VENV)/.runtime $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "Installing DPSeg and its development tools into $(VENV); the first time takes some minutes."
	$(PIP_INSTALL) -e '.[dev]'
	@touch $(VENV)/.runtime $(VENV)/.page $@
