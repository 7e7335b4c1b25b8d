# Needs Python >= 3.11 and make; everything else lands in .venv.
PYTHON ?= python3
# uv reads no pip.conf: where packages come from an index set there, use INSTALLER=pip (slower)
INSTALLER ?= uv
VERSION := import sys; print("%d.%d" % sys.version_info[:2])
VENV := .venv
BIN := $(VENV)/bin

# where it is set, every kernel compiles the two thousand files it imports once more
unexport PYTHONDONTWRITEBYTECODE

# a file's tests share what it has built, so they stay in one process
TESTED = $(BIN)/python -m pytest -q --dist loadfile --no-loadscope-reorder

.PHONY: same-python run test quick durations budget test-standard soak stories coverage bench bench-scaling bench-serving bench-capture lab studio lint docs pictures locks clean

run: $(VENV)/.core
	$(BIN)/runner run

test: $(VENV)/.all
	$(TESTED) -n 4 -m "not soak"

# what needs no kernel, browser, cloud or process
quick: $(VENV)/.all
	$(TESTED) -n 2 -m "quick and not soak"

# the order of the next runs: the longest files first
durations: $(VENV)/.all
	$(TESTED) -n 3 -m "not soak" --record-durations

# what commands cost now, as the most that they may cost
budget: $(VENV)/.all
	$(TESTED) -n 0 tests/test_budget.py --renew-budget

# of the tests those that need nothing of Linux
STANDARD := $(patsubst %,tests/test_%.py,gate layers model_folder model_records parameters_cell paths pipeline registry registry_file scraps types)
test-standard: $(VENV)/.all
	$(BIN)/python -m pytest -q -n 3 --dist loadfile $(STANDARD)

# fast tests, with commands, fork servers and kernels; pyproject.toml has the floor
COVERED := $(filter-out tests/test_registry_file.py,$(STANDARD)) $(patsubst %,tests/test_%.py,escape step)
coverage: $(VENV)/.all
	rm -rf .coverage && mkdir .coverage
	$(BIN)/coverage run -m pytest -q -n 2 --dist loadfile $(COVERED)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

# all of them, or those of the files in SOAK
soak: $(VENV)/.all
	$(TESTED) -n 3 -m soak $(SOAK)

# of these, what each change must pass too: whole walks, the pages, and what commands cost
stories: $(VENV)/.all
	$(TESTED) -n 3 -m soak tests/test_budget.py tests/test_docs.py tests/test_tutorial.py \
		tests/test_monitor.py::test_the_circle_from_a_no_to_a_version_that_has_learnt_what_changed \
		tests/test_sagemaker_deploy.py::test_a_version_is_deployed_updated_rolled_back_and_removed

bench: $(VENV)/.all $(VENV)-peers/.ready
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)
ifndef QUICK
	$(BIN)/python -m benchmarks.unchanged
	$(BIN)/python -m benchmarks.many_runs
	$(BIN)/python -m benchmarks.pages
endif

bench-scaling: $(VENV)/.all $(VENV)-peers/.ready
	$(BIN)/python -m benchmarks.scaling $(if $(QUICK),--quick)

bench-serving: $(VENV)/.all $(VENV)-peers-serving/.ready
	$(BIN)/python -m benchmarks.serving $(if $(QUICK),--rounds 2 --seconds 1,--write)
	$(BIN)/python -m benchmarks.onnx $(if $(QUICK),--rounds 2 --seconds 1,--write)

bench-capture: $(VENV)/.all
	$(BIN)/python -m benchmarks.capture $(if $(QUICK),--rounds 2 --seconds 1,--write)

# --allow-root: a container has no other account, and for others it means nothing
lab: $(VENV)/.all
	$(BIN)/runner kernel --prefix $(VENV)
	$(BIN)/jupyter lab --allow-root $(LAB)

# in SageMaker Studio's terminal: this environment as the kernel that the notebooks name; twice is once
studio:
	@$(BIN)/python -c '' 2> /dev/null || { rm -rf $(VENV); echo "the environment $(VENV) is made anew"; }
	@$(MAKE) --no-print-directory $(VENV)/.all
	@$(BIN)/runner kernel
	@echo "open a notebook of $(CURDIR)/notebooks and choose the kernel Python (runner)"

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/deptry runner

docs: $(VENV)/.all
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build/html

# of the pages, for docs/ui.md; needs Chromium
pictures: $(VENV)/.all
	PYTHONPATH=tests $(BIN)/python -m support.pictures

locks: $(VENV)/.core
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
		--all-extras -o requirements-all.lock pyproject.toml
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
		-c requirements-all.lock -o requirements.lock pyproject.toml
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
		--extra sagemaker --extra studio -c requirements-all.lock -o requirements-project.lock pyproject.toml

clean:
	rm -rf $(VENV) $(VENV)-peers $(VENV)-peers-serving build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage docs/_build

# an environment keeps the Python it was made with, whatever PYTHON says later
same-python:
ifneq ($(origin PYTHON),file)
	@test ! -x $(BIN)/python || { \
	here=$$($(BIN)/python -c '$(VERSION)'); asked=$$("$(PYTHON)" -c '$(VERSION)'); test "$$here" = "$$asked" || { \
	echo "$(VENV) is made with Python $${here:-that does not start}, and PYTHON=$(PYTHON) is $${asked:-not to be started}. \
	To have another: rm -rf $(VENV)"; exit 2; }; }
endif

$(VENV)/.core: requirements.lock pyproject.toml | same-python
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed; name one with make PYTHON=python3.12")'
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(call install,requirements.lock)
	touch $@

$(VENV)/.all: requirements-all.lock $(VENV)/.core
	$(call install,requirements-all.lock)
	touch $@

# what the benchmarks compare with, in an environment of its own
$(VENV)-peers/.ready: benchmarks/peers.lock | $(VENV)/.core
	"$(PYTHON)" -m venv $(VENV)-peers
	$(BIN)/uv pip install --quiet --python $(VENV)-peers/bin/python --require-hashes -r $<
	touch $@

$(VENV)-peers-serving/.ready: benchmarks/serving-peers.lock | $(VENV)/.core
	"$(PYTHON)" -m venv $(VENV)-peers-serving
	$(BIN)/uv pip install --quiet --python $(VENV)-peers-serving/bin/python --require-hashes -r $<
	touch $@

# pip installs uv by its hash from the same lock, and uv the rest: seconds instead of minutes
define install
	$(if $(filter pip,$(INSTALLER)),\
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r $(1),\
	sed -n '/^uv==/,/[^\\]$$/p' $(1) > $(VENV)/uv.txt && \
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt && \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r $(1))
	$(if $(filter pip,$(INSTALLER)),$(BIN)/pip install --quiet --disable-pip-version-check,$(BIN)/uv pip install --quiet --python $(BIN)/python) --no-deps --editable .
endef
