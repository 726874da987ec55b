# `make test` and `make demo` work from a fresh clone: they build the virtual environment themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: test lint types unit demo fuzz bench limits micro curve mutate hostile clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]' \
	  || echo "atheris does not build for this Python: its short runs are left out"
	$(BIN)/python -m compileall -q wdstransport cli
	touch $@

test: lint types unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	$(BIN)/pytest -q

demo: $(STAMP)
	$(BIN)/deploy-image demo

# Ten million inputs to each target take a day or more on one core; FUZZ='-max_total_time=600' bounds it.
FUZZ ?= -runs=10000000
fuzz: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	$(BIN)/python tests/fuzz/fuzz.py $(FUZZ)

# Needs root for the lab of network namespaces; without it, loopback only. BENCH='--size 100M --runs 1' is short.
bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python tests/bench/run.py $(BENCH)

# Whether --rate is exact and memory does not grow with the image: root, 20 GiB of room below /tmp, and minutes.
limits: $(STAMP)
	$(BIN)/python tests/bench/limits.py rate 1M,10M,100M,500M,1G,2G
	$(BIN)/python tests/bench/limits.py memory 20GiB

micro: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/pytest tests/bench/test_micro.py --benchmark-enable

# Table and picture of image time against clients and loss, in virtual time: minutes, most for a thousand clients.
curve: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	PYTHONPATH=. $(BIN)/python tests/sim/curve.py > tests/sim/CURVE.md
	$(BIN)/python tests/sim/plot.py

# Plants every fault of tests/mutation/faults in a copy, one at a time: half an hour or so. MUTATE='--only window' is
# short; MUTATE='--results FILE --seconds 80 --quick', again and again, goes on where it ended.
mutate: $(STAMP)
	$(BIN)/python tests/mutation/mutate.py $(MUTATE)

# Floods as fast as they come, and 200 times kill -9, in a lab of namespaces: root, half an hour or so.
# HOSTILE_SEED decides the moments, HOSTILE_KILLS how many, HOSTILE_FIRST_WAVE which ten come first.
hostile: $(STAMP)
	HOSTILE_LARGE=1 $(BIN)/pytest -s tests/hostile

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
