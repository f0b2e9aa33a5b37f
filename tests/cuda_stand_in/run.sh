#!/usr/bin/env bash
# Runs the tests of the CUDA path in the environment that build.sh made.
#
#   tests/cuda_stand_in/run.sh FOLDER [pytest's arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=$(realpath "$1")
shift
# One engine at a time, in this process; Triton's kernels are interpreted.
export VORA_CUDA_STAND_IN=1 TRITON_INTERPRET=1 \
    LD_LIBRARY_PATH="$folder/driver" PYTHONPATH="$PWD/tests/cuda_stand_in/startup:$PWD" \
    VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_HOST_IP=127.0.0.1 GLOO_SOCKET_IFNAME=lo OMP_NUM_THREADS=1
exec "$folder/venv/bin/python" -m pytest -o filterwarnings=ignore \
    tests/cuda_stand_in tests/model_plugin/engine/test_cuda_builder.py "$@"
