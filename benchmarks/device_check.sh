#!/usr/bin/env bash
# Checks and measures the program on the GPU of this machine, in at most eight minutes:
#
#     benchmarks/device_check.sh [--device cuda] [--out FOLDER] [--only PART ...] [--quick]
#
# It sets a bare machine up first (set_env.sh); that time counts. Results are in FOLDER/device.json
# and FOLDER/device.log (default: $OUT, or device_check). --device cpu --quick proves this script
# where no GPU is. Options are those of benchmarks/device.py.
set -u
began=$SECONDS
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
ready='import sys; sys.path.insert(0, "."); import torch, common_utils.rela, common_utils.kernels'
if ! python -c "$ready" >/dev/null 2>&1; then
    echo "device_check: setting this machine up with set_env.sh"
    # shellcheck disable=SC1091
    source ./set_env.sh || { echo "device_check: ERROR: set_env.sh failed" >&2; exit 1; }
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1
export MUJOCO_GL="${MUJOCO_GL:-egl}"
left=$((480 - (SECONDS - began)))
exec python -m benchmarks.device --seconds "$((left > 1 ? left : 1))" "$@"
