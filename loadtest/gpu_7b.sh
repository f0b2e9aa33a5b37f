#!/usr/bin/env bash
# VoRA against its encoder-based twin at the 7B shape, in bf16, on one GPU of 80 GB, within ten minutes.
#
#   loadtest/gpu_7b.sh [FOLDER]      [runs/gpu-7b]; call it again to go on with a run that was cut off
#
# PYTHON: interpreter with vLLM for CUDA and this project [.venv/bin/python]; LIMIT_S: seconds in all [590].
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-runs/gpu-7b}
python=${PYTHON:-.venv/bin/python}
limit=${LIMIT_S:-590}
command -v nvidia-smi >/dev/null || { echo "gpu_7b.sh: this machine has no NVIDIA GPU." >&2; exit 2; }
mkdir -p "$folder/models"
# Both are written at once: most of it waits for the disk.
pids=()
if [[ ! -e $folder/models/vora-7b ]]; then
    "$python" -m loadtest vora build "$folder/models/vora-7b" --shape 7b & pids+=($!)
fi
if [[ ! -e $folder/models/llava-7b ]]; then
    "$python" -m loadtest baseline build "$folder/models/llava-7b" --shape 7b & pids+=($!)
fi
for pid in "${pids[@]}"; do wait "$pid"; done
# SIGINT, so that servers are stopped and what was measured is reported.
exec timeout -s INT -k 30 "$((limit - SECONDS))" \
    "$python" -m loadtest run gpu-7b --out "$folder/run" --set "MODELS=$folder/models"
