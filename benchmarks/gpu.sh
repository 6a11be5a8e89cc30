#!/usr/bin/env bash
# What distillation costs on a GPU, and whether all works there, within 8 minutes.
#   bash benchmarks/gpu.sh                       in the environment of tools/environment.sh
#   bash benchmarks/gpu.sh --wheels FOLDER       with the wheels of tools/wheelhouse.sh, on this
#                                                machine's own python3, torch and numpy
#   bash benchmarks/gpu.sh --device cpu --tiny   the same ways without a GPU, to try them
# The options behind these are those of `python -m benchmarks.gpu --help`: --json, --page, --only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# One thread on the host, as torchrun gives each process.
export PYTHONPATH="$PWD" OMP_NUM_THREADS=1
python=python
if [ "${1:-}" = --wheels ]; then
    source tools/wheels.sh "${2:?--wheels needs a folder}"
    shift 2
else
    source tools/environment.sh onedl
fi
"$python" -m benchmarks.gpu "$@"
