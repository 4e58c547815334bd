#!/usr/bin/env bash
# All GPU tests in one table: bash tests/gpu/run.sh [options of tests/gpu/run.py]
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec "${PYTHON:-python3}" -m tests.gpu.run "$@"
