PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.phoenix-installed

# Idle OpenMP threads that spin slow a busy machine down about eightfold; PASSIVE makes them sleep.
export OMP_WAIT_POLICY ?= PASSIVE
# glibc returns the decoder's large buffers to the system after every use unless told to keep them: twice the time.
export MALLOC_MMAP_THRESHOLD_ ?= 8589934592
export MALLOC_TRIM_THRESHOLD_ ?= 17179869184
export MALLOC_TOP_PAD_ ?= 268435456

.PHONY: demo test setup check clean

demo: setup
	$(BIN)/python tools/demo.py

test: setup
	$(BIN)/python -m pytest -q

setup: $(STAMP)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# An environment that is already there is completed, not replaced.
$(STAMP): setup.py tools/install_detectron2.sh $(wildcard requirements/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "phoenix_d2 needs Python 3.10 or newer; name one with: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install "setuptools<82" -e ".[tiny,demo,dev]"
	tools/install_detectron2.sh $(BIN)/python
	touch $@
