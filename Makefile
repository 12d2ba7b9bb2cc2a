# `make demo` installs DPSeg and segments two photos of examples/; `make test` runs the tests. `make help` lists the rest.

VENV := .venv
PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
PIP_FLAGS ?=
# No cache, which would hold PyTorch's gigabytes a second time; what is used is compiled on its first use.
PIP_INSTALL = $(VENV)/bin/python -m pip install --no-cache-dir --no-compile $(PIP_FLAGS) -c constraints.txt

DEMO_OUT := out/demo
PORT ?= 7860

DATA ?= data
RECIPE ?= configs/base.yaml
SMALL := runs/lite-small

# Processes that tests run in; each takes about a gigabyte.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(8, os.cpu_count() or 1))' 2>/dev/null || echo 2)
PYTEST = $(VENV)/bin/python -m pytest --dist loadfile
BENCHMARK = $(VENV)/bin/python benchmarks

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo demo-page test test-slow test-processors test-all faults bench bench-full bench-api bench-batch \
    bench-work bench-feature-prompts bench-large bench-onnx bench-precision bench-warnings bench-refinement \
    bench-rejection bench-training bench-unseen few-shot robustness reproduce lint types imports check format clean

help: ## Print this list.
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 \t/p' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime ## Install DPSeg and segment two photos of examples/.
	$(VENV)/bin/dpseg predict examples/chelsea.jpg --text cat --text wall --out $(DEMO_OUT)
	$(VENV)/bin/dpseg predict examples/pagoda.jpg --text pagoda --text sky --text tree --out $(DEMO_OUT)
	@echo "The overlays are in $(DEMO_OUT):"
	@ls $(DEMO_OUT)/*overlay*

demo-page: $(VENV)/.page ## Install DPSeg with its page and serve it; PORT=7860.
	$(VENV)/bin/dpseg serve --port $(PORT)

test: $(VENV)/.dev ## Run the tests, under five minutes on two cores; leaves out/junit.xml.
	$(PYTEST) -n $(WORKERS) -m "not slow" --junitxml=out/junit.xml

test-slow: $(VENV)/.dev ## Run what `make test` leaves out: full-size networks, kills and processes at full length, a real browser.
	$(PYTEST) -n 2 -m slow --junitxml=out/junit-slow.xml

test-processors: $(VENV)/.dev ## Run the numeric tests again without AVX512, and without the AVX2 code of PyTorch too.
	ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 ATEN_CPU_CAPABILITY=avx2 \
	    $(PYTEST) -n $(WORKERS) -m "numeric and not slow" --junitxml=out/junit-avx2.xml
	ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 ATEN_CPU_CAPABILITY=default \
	    $(PYTEST) -n $(WORKERS) -m "numeric and not slow" --junitxml=out/junit-default.xml

test-all: test test-slow test-processors ## Run every test.

faults: $(VENV)/.dev ## Put faults into src one by one, and see that the tests catch each; for many minutes.
	$(VENV)/bin/python tests/faults/run.py

bench: $(VENV)/.dev ## On an idle machine, measure 150 names against SED's decoder and the machine; leaves benchmarks/results.
	$(BENCHMARK)/speed.py

bench-full: $(VENV)/.dev ## The same and 847 names, for which SED's decoder takes 16 GB.
	$(BENCHMARK)/speed.py --full

bench-api: $(VENV)/.dev ## Load the API as eight programs at once would.
	$(BENCHMARK)/api_load.py

bench-batch: $(VENV)/.dev ## Compare the engines of `dpseg batch`.
	$(BENCHMARK)/batch_engines.py

bench-work: $(VENV)/.dev ## Count the decoder's multiplications and bytes for each class.
	$(BENCHMARK)/decoder_work.py

bench-feature-prompts: $(VENV)/.dev ## Measure prompts regressed from words on pictures in DATA=data.
	$(BENCHMARK)/feature_prompts.py $(DATA)

bench-large: $(VENV)/.dev ## Segment a TIFF of 20,000 x 20,000 pixels in tiles.
	$(BENCHMARK)/large_picture.py

bench-onnx: $(VENV)/.dev ## Compare torch with onnxruntime.
	$(BENCHMARK)/onnx_speed.py

bench-precision: $(VENV)/.dev ## Measure what bfloat16 and 8-bit integers change, on a set in DATA=data.
	$(BENCHMARK)/precision.py $(DATA)

bench-warnings: $(VENV)/.dev ## Measure how often the warnings of `dpseg prompts show` are right, on pictures in DATA=data.
	$(BENCHMARK)/prompt_warnings.py $(DATA)

bench-refinement: $(VENV)/.dev ## Measure Inference II beside Inference I on sets in DATA=data.
	$(BENCHMARK)/refinement.py $(DATA)

bench-rejection: $(VENV)/.dev ## Measure what early rejection costs and saves on a set in DATA=data.
	$(BENCHMARK)/rejection.py $(DATA)

bench-training: $(VENV)/.dev ## Compute what training a recipe costs; RECIPE=configs/base.yaml.
	$(BENCHMARK)/training_cost.py $(RECIPE)

bench-unseen: $(VENV)/.dev ## Measure names that training never saw, on pictures in DATA=data.
	$(BENCHMARK)/unseen_names.py $(DATA)

few-shot: $(VENV)/.dev ## Measure 1 to 10 reference pictures a class on sets in DATA=data; leaves docs/results/few_shot.json and .png.
	$(BENCHMARK)/few_shot.py --data $(DATA)

robustness: $(VENV)/.dev ## Measure noisy, blurred and wrong pictures on sets in DATA=data; leaves docs/results/robustness.json and .png.
	$(BENCHMARK)/robustness.py --data $(DATA)

reproduce: $(VENV)/.dev ## Train a small model on the sets in DATA=data from nothing, and measure it; under half an hour.
	$(VENV)/bin/dpseg train --config configs/lite-small.yaml --data-root $(DATA) --out $(SMALL) --resume no
	$(VENV)/bin/dpseg evaluate $(DATA)/coco_things --model $(SMALL)/final --prompts text,pictures,both --refine both \
	    --out $(SMALL)/coco_things.json

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
	rm -rf out build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written only after its step succeeded, so a failed install is tried again and a finished one is not repeated.
# step: runs $(2), says $(1) before it and how long it took after it.
define step
	@echo "==> $(1)"; start=$$(date +%s); $(2) && echo "==> $(1): $$(( $$(date +%s) - start )) s"
endef

$(VENV)/.created:
	@command -v $(PYTHON) > /dev/null || { echo "DPSeg needs Python 3.11 or newer, and $(PYTHON) is not there; run: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "DPSeg needs Python 3.11 or newer, found %d.%d; run: make PYTHON=python3.12" % sys.version_info[:2])'
	@$(PYTHON) -c 'import shutil, sys; free = shutil.disk_usage(".").free / 1e9; sys.exit(0 if free > 6 else "DPSeg and PyTorch need up to 6 GB of disk, and %.1f GB are free here" % free)'
	$(call step,A virtual environment in $(VENV),$(PYTHON) -m venv $(VENV))
	@touch $@

$(VENV)/.torch: constraints.txt | $(VENV)/.created
	$(call step,PyTorch (most of the time and of the disk),$(PIP_INSTALL) torch)
	@touch $@

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/.torch
	$(call step,DPSeg with its default model,$(PIP_INSTALL) -e .)
	@touch $@

$(VENV)/.page: pyproject.toml constraints.txt | $(VENV)/.torch
	$(call step,DPSeg with its default model and its page,$(PIP_INSTALL) -e '.[page]')
	@touch $(VENV)/.runtime $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.torch
	$(call step,DPSeg with all its parts and the development tools,$(PIP_INSTALL) -e '.[dev]')
	@touch $(VENV)/.runtime $(VENV)/.page $@
