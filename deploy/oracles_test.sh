#!/usr/bin/env bash
# Checks the SAE readers against the libraries that write the checkpoints, in an
# environment of their own on top of VENV: what they need is not what vLLM needs.
#
#   deploy/oracles_test.sh VENV       VENV: the environment of `make test`
set -euo pipefail
venv=$(cd "$1" && pwd)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$root"
"$venv/bin/python" -m venv "$work/venv"
site=$("$work/venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')
"$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])' >"$site/below.pth"
"$work/venv/bin/python" -m pip --disable-pip-version-check install -q --no-deps \
    -r deploy/requirements/oracles.txt
INNERWATCH_ORACLES="sae-lens eai-sparsify dictionary-learning" \
    "$work/venv/bin/python" -m pytest -q -p no:cacheprovider \
    tests/contract/test_native_libraries.py tests/contract/test_sae_lens_loaders.py
echo "oracles: sae-lens, eai-sparsify and dictionary-learning agree"
