#!/usr/bin/env bash
# Linter, type checker, doctests and tests; sets up the environment if it is missing.
#   bash tools/run_tests.sh                      everything, on the default stack
#   bash tools/run_tests.sh --stack openmmlab    the core and one training per framework
#   bash tools/run_tests.sh --long [-k kill]     the long tests alone: kills, fuzz, properties
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stack=onedl
if [ "${1:-}" = --stack ]; then
    stack="${2:?--stack needs a name: onedl or openmmlab}"
    shift 2
fi
source tools/environment.sh "$stack"
export OMP_NUM_THREADS=1 PYTHONPATH=

if [ "${1:-}" = --long ]; then
    shift
    exec python -m pytest --numprocesses 2 -m long tests "$@"  # -rP shows what they print
fi
if [ "$stack" != onedl ]; then
    # of the recipes, those that are marked: one training per framework
    exec python -m pytest --numprocesses 2 kd_dense tests/losses tests/oracle tests/mm \
        tests/configs tests/test_*.py --ignore tests/test_commands.py \
        -k 'not test_recipes or lane' "$@"
fi
ruff check .
ruff format --check .
mypy
exec python -m pytest --numprocesses 2 "$@"
