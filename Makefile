# Everything sets itself up: a machine needs Python 3.10 or newer, make and git.
PYTHON ?= python3
# An interpreter that is asked for has an environment of its own: .venv-python3.12.
VENV := .venv$(if $(filter file,$(origin PYTHON)),,-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP_INSTALL := $(BIN)/python -m pip install -qq --progress-bar off --log $(VENV)/pip.log \
	--disable-pip-version-check --no-input -c constraints.txt

# One thread per process: the processes are what runs in parallel.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
TEST_WORKERS ?= 2
DEVICE ?= cuda

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test prove gpu check docs clean

help:
	@echo "make demo    train REINFORCE, A2C and PPO on CartPole-v1 and compare them, into runs/demo"
	@echo "make test    run the test suite, except the large proofs"
	@echo "make prove   run the large proofs: minutes of sampling and of training"
	@echo "make gpu     run the tests that need a GPU, and measure the speed on it beside SB3's, into runs/gpu.md"
	@echo "make check   lint, formatting, types and the import contract"
	@echo "make docs    build the documentation into site/; warnings are errors"
	@echo "make clean   remove what these commands made, except runs/ and the environment in $(VENV)"
	@echo
	@echo "Each command first creates $(VENV) and installs the pinned versions where that is still to do."
	@echo "make test PYTHON=python3.12 runs with another interpreter, in an environment of its own, .venv-python3.12."

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("sb3-pgext needs Python 3.10 or newer; set PYTHON to one, this is " + sys.version.split()[0])'
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# Order-only: pip's own date says nothing about whether the installation is current.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing sb3-pgext with the versions of constraints.txt (a few minutes the first time)"
	@$(PIP_INSTALL) pip && $(PIP_INSTALL) -e ".[all]" \
		|| { echo "The installation failed: see $(VENV)/pip.log" >&2; exit 1; }
	@touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	@$(BIN)/sb3-pgext compare zoo_configs/studies/demo.yml --out runs/demo

test: $(INSTALLED)
	@$(ONE_THREAD) MPLBACKEND=Agg $(BIN)/python -m pytest -m "not prove" -n $(TEST_WORKERS) --dist worksteal

prove: $(INSTALLED)
	@$(ONE_THREAD) MPLBACKEND=Agg $(BIN)/python -m pytest -m prove -n $(TEST_WORKERS) --dist worksteal

gpu: $(INSTALLED)
	@# What it measures it measures also where a test fails. DEVICE=cpu puts the CPU in the GPU's place.
	@if [ $(DEVICE) != cpu ] && ! $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		echo "No GPU here: nothing to test or to measure"; \
	else \
		$(ONE_THREAD) MPLBACKEND=Agg $(BIN)/python -m pytest -m gpu -n $(TEST_WORKERS) --dist worksteal $(GPU_TESTS); \
		tests=$$?; $(ONE_THREAD) $(BIN)/python -m benchmarks.gpu --device $(DEVICE) --out runs/gpu.md $(GPU_OPTIONS) \
			&& exit $$tests; \
	fi

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(INSTALLED)
	@# Not --quiet: it hides the warnings from --strict, which then passes.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The documentation is in site/; open site/index.html"

clean:
	rm -rf site build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path "./.venv*" -prune -o -name __pycache__ -type d -exec rm -rf {} +
