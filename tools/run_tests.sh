#!/usr/bin/env bash
# Linter, type checker, doctests and tests; sets up the environment if it is missing.
#   bash tools/run_tests.sh                           all, on the default stack
#   bash tools/run_tests.sh --stack openmmlab         most of them, on the original packages
#   bash tools/run_tests.sh --core                    minutes: losses, promises, the wheel,
#                                                     a training of each framework
#   bash tools/run_tests.sh --long [-k kill]          the long tests: CONTRIBUTING.md has them
#   bash tools/run_tests.sh --gpu [--wheels FOLDER]   what needs CUDA, within 8 minutes; with the
#                                                     wheels of tools/wheelhouse.sh in FOLDER on
#                                                     this machine's own python3, torch and numpy
# --stack goes with --core, --long and --gpu. PYTHON=/path/to/python3.12 in front takes that Python.
# The first word that is no such option, or --, begins what is handed to pytest: -k WORD, a file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' tools/run_tests.sh
}

fail() {
    echo "$1" >&2
    usage >&2
    exit 2
}

stack=onedl lane=all wheels=
while [ $# -gt 0 ]; do
    case "$1" in
        --stack) stack="${2:-}" && shift 2 || fail '--stack needs a name: onedl or openmmlab' ;;
        --wheels) wheels="${2:-}" && shift 2 || fail '--wheels needs a folder' ;;
        --core | --gpu | --long)
            [ $lane = all ] || fail "one lane at a time: got --$lane and $1"
            lane="${1#--}"
            shift
            ;;
        --help) usage && exit ;;
        --) shift && break ;;
        --*) fail "unknown option $1; options of pytest come behind --" ;;
        *) break ;;
    esac
done
[ -z "$wheels" ] || [ $lane = gpu ] || fail '--wheels goes with --gpu'
export OMP_NUM_THREADS=1 PYTHONPATH=

python=python
if [ -n "$wheels" ]; then
    source tools/wheels.sh "$wheels"
else
    source tools/environment.sh "$stack"
fi
# Of the recipes, those that are marked as the lane's: one training of each framework.
few_recipes=(-k 'not test_recipes or lane')
case $lane in
    gpu)
        # SIGINT: pytest still ends with its summary
        timeout --signal=INT --kill-after=15 450 "$python" -m pytest -m gpu tests/gpu "$@"
        exit
        ;;
    long)
        exec python -m pytest --numprocesses 2 -m long tests "$@" # -rP shows what they print
        ;;
    core)
        exec python -m pytest --numprocesses 2 tests/losses tests/oracle \
            tests/mm/distil/test_promises.py tests/configs/test_recipes.py tests/test_imports.py \
            tests/test_package.py "${few_recipes[@]}" "$@"
        ;;
esac
if [ "$stack" != onedl ]; then
    exec python -m pytest --numprocesses 2 kd_dense tests/losses tests/oracle tests/mm \
        tests/configs tests/test_*.py --ignore tests/test_commands.py "${few_recipes[@]}" "$@"
fi
ruff check .
ruff format --check .
mypy & # on one core, beside the tests
types=$! status=0
python -m pytest --numprocesses 2 "$@" || status=$?
wait $types || {
    echo 'the type checker has found errors: they stand where the tests begin' >&2
    exit 1
}
exit $status
