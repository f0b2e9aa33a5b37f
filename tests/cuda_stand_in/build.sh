#!/usr/bin/env bash
# Builds a machine that looks to vLLM like one with an H100, in a folder; does nothing where it is there already.
#
#   tests/cuda_stand_in/build.sh FOLDER
#
# FOLDER/venv     vLLM and torch for CUDA, as on a machine with a GPU (10 GB), and pytest
# FOLDER/driver   stand-ins for NVIDIA's driver libraries
#
# Environment:
#   STAND_IN_PYTHON   the interpreter [the first Python 3.12 that is found]
#
# Exit codes: 0 done, 2 this machine lacks something (said in one sentence), 1 an install failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly FOLDER=${1:?the folder to build in} SOURCES=tests/cuda_stand_in

refuse() {
    echo "cuda-stand-in: $*" >&2
    exit 2
}

is_312() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${STAND_IN_PYTHON:-python3.12 python3 "$HOME"/.pyenv/versions/3.12*/bin/python3.12}; do
        if is_312 "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    refuse "Python 3.12 is needed and was not found; install it, or name it: make STAND_IN_PYTHON=/path/to/python3.12 test-cuda-stand-in."
}

[[ $(uname -sm) == "Linux x86_64" ]] || refuse "vLLM for CUDA needs Linux on x86-64."
command -v cc >/dev/null || refuse "a C compiler (cc) is needed for the driver's stand-in."
mkdir -p "$FOLDER/driver"
cc -shared -fPIC -o "$FOLDER/driver/libcuda.so.1" "$SOURCES/driver/cuda.c"
cc -shared -fPIC -o "$FOLDER/driver/libnvidia-ml.so.1" "$SOURCES/driver/nvml.c"

python=$FOLDER/venv/bin/python
if [[ ! -x $python ]]; then
    interpreter=$(find_python)
    export PYTHON=$interpreter
fi
VENV=$FOLDER/venv DEVICE=cuda docker/requirements/install.sh engine
if ! "$python" -c 'import hypothesis, pytest, pytest_timeout' 2>/dev/null; then
    "$python" -m pip install --quiet --disable-pip-version-check \
        --constraint docker/requirements/dev.txt hypothesis pytest pytest-timeout
fi
