# `make demo` and `make test` do all their set-up themselves: a virtual environment in .venv with uv
# inside it, and the pinned versions of constraints.txt. They need Python 3.10 or newer, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint typecheck clean install

install: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[all,dev]"
	# For the files of its configs alone; nothing of it is imported.
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps mmdet==3.3.0
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/deploykit demo --out demo-output

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot follow the folder mapping of an editable install, so it sees the tree through links.
typecheck: $(STAMP)
	mkdir -p .typecheck/deploykit
	for entry in deploykit/* training exporters runtimes plugins_trt; do \
		ln -sfn "../../$$entry" ".typecheck/deploykit/$$(basename $$entry)"; done
	cd .typecheck && MYPYPATH=. ../$(BIN)/mypy --config-file ../pyproject.toml -p deploykit

test: lint typecheck
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

clean:
	rm -rf $(VENV) .typecheck demo-output build dist *.egg-info
