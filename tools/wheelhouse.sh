#!/usr/bin/env bash
# Collect the wheels that kd_dense and its GPU tests need on a Linux machine without a package index.
#   bash tools/wheelhouse.sh [--has FILE] [PYTHON_VERSION] [FOLDER]     (default: 3.12 wheels)
# There: bash tools/run_tests.sh --gpu --wheels FOLDER
# FILE has what that machine has already, one package a line, as `python3 -m pip list --format freeze`
# prints it; without it, it is taken to have what stands in HAS. Torch and numpy are never collected.
set -euo pipefail
HAS='torch numpy scipy scikit-image opencv-python matplotlib numba'
LIMIT=60  # MiB, all wheels together

has=
if [ "${1:-}" = --has ]; then
    has="$(cat "${2:?--has needs a file}")"
    shift 2
fi
target="${1:-3.12}"
folder="$(realpath -m "${2:-wheels}")"
case "$target" in
    3.1[0-9]) ;;
    *)
        echo "usage: bash tools/wheelhouse.sh [--has FILE] [PYTHON_VERSION, as 3.12] [FOLDER]" >&2
        exit 2
        ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh onedl
mkdir -p "$folder"
if [ -n "$(ls "$folder")" ]; then
    echo "$folder is not empty: two versions of a package stop the whole install" >&2
    exit 2
fi

# What is needed, by the metadata of the packages that are installed here.
needed="$(python - "$target" torch numpy "${has:-$HAS}" <<'PYTHON'
import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_, version, *has = sys.argv
there = {'python_version': version, 'python_full_version': f'{version}.0', 'extra': ''}
done = {canonicalize_name(re.split('[=@ ]', line)[0]) for line in '\n'.join(has).split()}
if any(name.startswith('opencv-') for name in done):  # one module under several names
    done |= {'opencv-python', 'opencv-python-headless'}
pins = {}
for file in ('base', 'onedl'):
    for line in Path(f'requirements/{file}.txt').read_text().splitlines():
        if line[:1].isalpha():
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate(there):
                pins[canonicalize_name(pin.name)] = f'{pin.name}{pin.specifier}'
todo = [Requirement(name) for name in (*(n for n in pins if n.startswith('onedl-')), 'pytest')]
while todo:
    one = todo.pop()
    name = canonicalize_name(one.name)
    name = {'opencv-python': 'opencv-python-headless'}.get(name, name)
    if name in done or (one.marker and not one.marker.evaluate(there)):
        continue
    done.add(name)
    print(pins.get(name, name))
    try:
        todo += map(Requirement, metadata.requires(name) or [])
    except metadata.PackageNotFoundError:  # only other versions of Python need it
        pass
PYTHON
)"

# Of the OpenMMLab packages some come as sources alone; their wheels are of Python alone, for any.
grep '^onedl-' <<< "$needed" | xargs python -m pip wheel --quiet --disable-pip-version-check \
    --no-deps --no-build-isolation --wheel-dir "$folder"
# shellcheck disable=SC2046  (several words)
grep -v '^onedl-' <<< "$needed" | xargs python -m pip download --quiet \
    --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
    --python-version "$target" --dest "$folder" --platform manylinux2014_x86_64 \
    $(printf -- '--platform manylinux_2_%d_x86_64 ' {5..28})
du --bytes "$folder"/* | sort -n | tail -3
size=$(($(du --bytes --summarize "$folder" | cut -f1) / 1048576))
echo "$folder: $(ls "$folder" | wc -l) wheels for Python $target, $size MiB"
if [ "$size" -ge $LIMIT ]; then
    echo "more than $LIMIT MiB: leave out what that machine has, with --has" >&2
    exit 1
fi
