# What people do daily. Everything runs in .venv, made on first use.
PYTHON ?= python3
PROCESSES ?= 2
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: help quickstart easy-vqa test fuzz test-slurm test-oldest test-newest test-card check format environment clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z][a-z -]*:.*## / {printf "%-36s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

environment: $(STAMP)  ## .venv with everything, for daily work

$(STAMP): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ibtrain needs Python 3.11 or newer; say which with make PYTHON=python3.11")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check -q -r requirements.txt
	$(VENV)/bin/pip install --disable-pip-version-check -q --no-deps -e .
	touch $@

quickstart: environment  ## the whole job on a toy world, from raw files to an exported model
	$(VENV)/bin/python tools/quickstart.py

easy-vqa: environment  ## a public data set as one's own: lists, shards, training, score
	$(VENV)/bin/python examples/easy_vqa/make_lists.py easy_vqa/raw
	for split in train test; do $(VENV)/bin/ibtrain data prepare examples/easy_vqa/easy_vqa.yaml \
		--split $$split --raw easy_vqa/raw --out easy_vqa/$$split/easy_vqa || exit; done
	$(VENV)/bin/ibtrain train examples/easy_vqa/recipe.yaml root=easy_vqa
	$(VENV)/bin/ibtrain evaluate easy_vqa/runs/easy_vqa --data easy_vqa/test --out easy_vqa/evaluation

test: environment  ## all tests, about 20 minutes on two cores
	$(VENV)/bin/python -m pytest -n $(PROCESSES) --dist loadfile

fuzz: environment  ## damaged files of every kind by the thousand (IBTRAIN_FUZZ=20000 for more); the tests do fewer
	IBTRAIN_FUZZ=$(or $(IBTRAIN_FUZZ),8000) $(VENV)/bin/python -m pytest -k damaged tests/data/test_fuzzing.py \
		tests/pretrained/test_fuzzing.py tests/test_sharding.py tests/test_config.py tests/distributed/test_launchers.py

test-oldest test-newest test-card: test-%:  ## in an environment of its own, made on first use: an end of the versions, or a GPU machine's
	tools/test_environment.sh $*

test-slurm: environment  ## the job scripts on a real Slurm of several nodes, each a namespace of this machine (root)
	tests/slurm/install.sh
	$(VENV)/bin/python -m pytest tests/slurm -m slurm

check: environment  ## lint, types, layers, shell scripts
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/shellcheck $$(git ls-files '*.sh' '*.sbatch' .ci/run)

format: environment  ## mend what ruff can mend
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:  ## remove what was built
	rm -rf quickstart easy_vqa build *.egg-info .pytest_cache .mypy_cache .ruff_cache
