# Two commands do all their own set-up on a fresh machine: `make demo` and `make test`.
VENV ?= .venv
PY := $(VENV)/bin/python

.PHONY: demo test setup lint unit e2e wheel oracles proto format bench

demo: setup
	$(VENV)/bin/innerwatch demo $(ARGS)

test: setup lint unit e2e wheel oracles

setup:
	@deploy/requirements/install.sh $(VENV)

lint: setup
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

unit: setup
	$(PY) -m pytest -q -m "not vllm" --durations=15

e2e: setup
	$(PY) -m pytest -q -m vllm --durations=25

# The wheel, alone in an empty environment, outside the checkout.
wheel: setup
	deploy/wheel_test.sh $(VENV)

# SAE readers against the libraries whose checkpoints they read.
oracles: setup
	deploy/oracles_test.sh $(VENV)

format: setup
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# Regenerates service/rpc; a test holds it to the .proto.
proto: setup
	$(PY) -m grpc_tools.protoc -Iservice/rpc=proto --python_out=. --pyi_out=. --grpc_python_out=. proto/innerwatch/v1/innerwatch.proto

bench: setup
	$(PY) -m tests.bench.overhead
