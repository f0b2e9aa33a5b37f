#!/usr/bin/env bash
# The section of a version in CHANGELOG.md: .github/release-notes.sh 0.1.0
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ $# == 1 ]] || { echo "usage: $0 VERSION" >&2; exit 2; }
notes=$(awk -v heading="## $1" '
    /^## / { inside = ($0 == heading || index($0, heading " ") == 1); next }
    inside' CHANGELOG.md)
[[ -n ${notes//[[:space:]]/} ]] || { echo "CHANGELOG.md has no section '## $1'." >&2; exit 1; }
echo "$notes"
