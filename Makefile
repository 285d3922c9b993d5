# One command from a fresh machine (Python 3.11 to 3.13, gcc, make): every target makes .venv first.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# Two workers on two cores: one thread for each keeps them out of each other's way.
THREADS := OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 TF_CPP_MIN_LOG_LEVEL=3

.PHONY: help demo test exhaustive quick versions lint bench docs notebooks site clean

help:
	@echo "make demo    the main job on scikit-learn's handwritten digits: train, quantize, run, one table"
	@echo "make test    the tests"
	@echo "make exhaustive  the tests with every case of those that try hundreds of alike ones"
	@echo "make quick   those that take a minute or two"
	@echo "make versions  those that lean on Keras, with the oldest and the newest Keras and TensorFlow"
	@echo "make lint    ruff and pyright"
	@echo "make bench   the benchmarks"
	@echo "make docs    docs/layers.md, read off the rules; the figures of docs/concepts.md"
	@echo "make notebooks  run the notebooks, and save what comes"
	@echo "make site    the site, in build/site"
	@echo "make clean   remove .venv and what the demo wrote"

demo: $(STAMP)
	$(BIN)/kquant demo

test: $(STAMP)
	$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q -m "not exhaustive"

exhaustive: $(STAMP)
	$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q

quick: $(STAMP)
	$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q -m quick

# Environments of their own, made once for each pyproject.toml. What another Keras warns of is no error there.
versions: .venv-oldest/installed .venv-newest/installed
	@for place in oldest newest; do \
	  echo "$$place: $$(.venv-$$place/bin/python -m pip freeze | grep -iE '^(keras|tensorflow|numpy)==' | tr '\n' ' ')"; \
	  $(THREADS) .venv-$$place/bin/python -m pytest -n $(WORKERS) --dist worksteal -q -W default -m versions || exit 1; \
	done

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: $(STAMP)
	$(BIN)/python -m benchmarks

docs: $(STAMP)
	$(BIN)/python -m kquant.report.layers > docs/layers.md
	$(BIN)/python docs/figures/draw.py

notebooks: $(STAMP)
	$(THREADS) $(BIN)/python tests/support/notebook_cells.py notebooks/*.ipynb

# Its theme tells of its own future at every build.
site: $(STAMP)
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/python -m mkdocs build --quiet

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest demo-output

# The stamp is the last thing written, so an interrupted installation starts again.
$(STAMP): pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))" || \
	  { echo "kquant needs Python 3.11 to 3.13, $(PYTHON) is another one; say which: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Installing into $(VENV); TensorFlow makes this take a few minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[micro,report,demo,images,site,dev]'
	@touch $@

# The lower ends of the ranges, read where they stand: "keras>=3.11,<4" -> "keras==3.11.0".
OLDEST = import re, tomllib; \
  wanted = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]; \
  ends = [re.match(r"(keras|tensorflow)>=(\d+\.\d+)", text) for text in wanted]; \
  print("\n".join(f"{end[1]}=={end[2]}.0" for end in ends if end))

.venv-%/installed: pyproject.toml
	$(PYTHON) -m venv .venv-$*
	$(if $(filter oldest,$*),$(PYTHON) -c '$(OLDEST)',true) > .venv-$*/constraints.txt
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-$*/constraints.txt \
	  --upgrade -e '.[micro,report,demo,images,site,dev]'
	@touch $@
