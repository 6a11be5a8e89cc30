# Source this: makes the virtual environment of a stack if it is missing, and activates it.
#   source tools/environment.sh [onedl|openmmlab]
# It is .venv, or .venv-openmmlab, of python3. With PYTHON=/path/to/python3.12 it is of that Python
# and has the version in its name, .venv-3.12, so that several live side by side.
stack="${1:-onedl}"
requirements="requirements/$stack.txt"
if [ ! -f "$requirements" ]; then
    echo "unknown stack '$stack': expected onedl or openmmlab" >&2
    return 2
fi
if [ "$stack" = onedl ]; then venv=.venv; else venv=".venv-$stack"; fi
if [ -n "${PYTHON:-}" ]; then
    version="$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" || {
        echo "PYTHON=$PYTHON does not run: expected the path of a python3" >&2
        return 2
    }
    venv="$venv-$version"
fi
stamp="$venv/kd_dense-installed"
wanted="$(cat setup.py requirements/base.txt requirements/no-deps.txt "$requirements" | cksum)"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "kd_dense needs Python >= 3.10; set PYTHON=/path/to/python3" >&2
        return 2
    }
    [ "$stack" != openmmlab ] ||
        "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info >= (3, 13))' || {
        echo "the original packages need numpy 1.26, which has no wheels from Python 3.13 on:" \
            "set PYTHON=/path/to/python3.12, or take the default stack" >&2
        return 2
    }
    echo "Setting up $venv with $requirements ..."
    # without pip it is missing, or was left half made
    "$venv/bin/python" -m pip --version > /dev/null 2>&1 ||
        "${PYTHON:-python3}" -m venv "$venv" || return
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-compile \
        --requirement "$requirements" || return
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-compile \
        --no-deps --requirement requirements/no-deps.txt || return
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-compile \
        --no-build-isolation --no-deps --editable . || return
    # pip compiles on one core, and the packages' own tests too; some files are for other Pythons
    "$venv/bin/python" -m compileall -q -j 0 -x /tests/ "$venv/lib" > /dev/null || true
    echo "$wanted" > "$stamp"
fi
. "$venv/bin/activate"
