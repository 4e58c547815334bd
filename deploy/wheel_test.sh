#!/usr/bin/env bash
# Builds the wheel, installs it in an empty environment without vLLM and torch, and runs
# the tests that need neither against it, from a copy of tests/ outside the checkout.
#
#   deploy/wheel_test.sh VENV       VENV: the environment with the build tools
set -euo pipefail
venv=$(cd "$1" && pwd)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$root"
"$venv/bin/python" -m pip --disable-pip-version-check wheel -q --no-deps --no-build-isolation -w "$work/dist" .
"$venv/bin/python" -m venv "$work/venv"
wheel=("$work"/dist/*.whl)
"$work/venv/bin/python" -m pip --disable-pip-version-check install -q "${wheel[0]}[daemon,fit,report,web]" \
    -c deploy/requirements/vllm-cpu.txt -c deploy/requirements/innerwatch.txt -c deploy/requirements/dev.txt \
    pytest hypothesis apsw
mkdir "$work/copy"
cp -r tests deploy proto pyproject.toml "$work/copy/"
cd "$work/copy"
# No `pythonpath`: what is imported is what the wheel installed.
"$work/venv/bin/python" -m pytest -q -m "not vllm" -o pythonpath= -o testpaths=tests \
    tests/probes tests/monitor tests/contract tests/service
echo "wheel: $(basename "${wheel[0]}") installed alone and passed"
