#!/usr/bin/env bash
# Installs Debian's packages whose programs are missing: install-tools.sh PROGRAM=PACKAGE ...
# Starts none of their services. Exit code 1 where something is missing and cannot be installed.
set -euo pipefail

missing=()
for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0
if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "vora-serve: install these packages first, or run this as root on Debian: ${missing[*]}" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
