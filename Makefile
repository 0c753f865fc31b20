# Every target does its own set-up in .venv, and is quick when run again.
PYTHON ?= python3
RUNTIME ?= cpu
BIN := .venv/bin
comma := ,
# the speech engine brings the CPU runtime, which must not stand beside the GPU's
SPEECH := $(if $(filter cpu,$(RUNTIME)),speech$(comma),)
INSTALLED := .venv/.installed-$(RUNTIME)
RUN := runs/quickstart
export WORKBENCH := $(BIN)/workbench

.PHONY: quickstart demo test test-fast test-lowest notebooks docs lint format bench clean

quickstart: $(INSTALLED)  ## the whole chain on real speech: distil, export, verify, measure
	$(WORKBENCH) quickstart -o $(RUN)

demo: quickstart  ## the side-by-side page on http://127.0.0.1:7860
	$(WORKBENCH) demo $(RUN)/bundle

# Files in their order: otherwise those of few tests, which take longest, come last.
test: .venv/.installed-lm  ## all tests, the slow ones too: the real Whisper base, browsers, more variants
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --dist loadfile --no-loadscope-reorder -m "not gpu or gpu" --durations=10

test-fast: $(INSTALLED)  ## tests on tiny random models only
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical

test-lowest: .venv-lowest/.installed  ## the fast tests on the lowest versions that pyproject.toml allows
	OMP_NUM_THREADS=1 .venv-lowest/bin/pytest -n logical

notebooks: $(INSTALLED)  ## execute the notebooks
	$(BIN)/pytest --nbmake --nbmake-timeout=600 -m "" notebooks

docs: .venv/.installed-docs  ## the documentation site, in build/site; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

lint: $(INSTALLED)  ## ruff, mypy, the import rules and bandit, and known advisories where they can be looked up
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit -q -c pyproject.toml -r workbench export demo scripts benchmarks
	$(BIN)/python scripts/audit.py

bench: $(INSTALLED)  ## the engine's benchmarks, an hour on an idle machine; results in runs/bench
	for name in distill_throughput teacher_pass scaling kills top_k_error; do \
	  $(BIN)/python benchmarks/$$name.py --json runs/bench/$$name.json || exit 1; done

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-lowest runs

# transformers.js is verified where Node is installed.
# pip's resolver backtracks for long on ranges; the constraints leave it one choice each.
$(INSTALLED): pyproject.toml constraints.txt export/verification/clients/node/package-lock.json tests/demo/node/package-lock.json
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[$(RUNTIME),$(SPEECH)demo,serve,notebooks,vocabulary,clients,tracking,dev]"
	! command -v npm >/dev/null || npm ci --ignore-scripts --no-audit --no-fund --prefix export/verification/clients/node \
	  || echo 'npm could not install transformers.js: bundles are not verified in it'
	! command -v npm >/dev/null || npm ci --ignore-scripts --no-audit --no-fund --prefix tests/demo/node \
	  || echo 'npm could not install axe-core: the page is not tested for accessibility'
	touch $@

# KenLM has no wheels. It is built, in minutes, for the tests alone; without a compiler they skip
.venv/.installed-lm: $(INSTALLED)
	! command -v c++ >/dev/null || $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[lm]" \
	  || echo 'KenLM could not be built: language models are not tested'
	touch $@

.venv/.installed-docs: $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[docs]"
	touch $@

.venv-lowest/.installed: pyproject.toml constraints-lowest.txt
	test -d .venv-lowest || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --disable-pip-version-check -q -c constraints-lowest.txt -e ".[cpu,demo,serve,vocabulary,clients,tracking]" \
	  openai pytest pytest-xdist hypothesis playwright kaldi-native-fbank
	touch $@
