#!/usr/bin/env bash
# Installs the Debian packages of debian.txt that are missing, where it may: as root, and
# where there is apt-get. Elsewhere tests that need them are skipped, or fail with CI=true.
#
#   deploy/requirements/debian.sh
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
missing=()
while read -r name; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$name")
done <"$here/debian.txt"
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "innerwatch: not installed, and tests need them: ${missing[*]}" >&2
    exit 0
fi
echo "innerwatch: installing ${missing[*]} ..." >&2
export DEBIAN_FRONTEND=noninteractive
# Programs, not services: nothing of them is started.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null; then
    echo "innerwatch: could not be installed, and tests need them: ${missing[*]}" >&2
fi
