# Source this: makes the virtual environment of a stack if it is missing, and activates it.
#   source tools/environment.sh [onedl|openmmlab]
stack="${1:-onedl}"
requirements="requirements/$stack.txt"
if [ ! -f "$requirements" ]; then
    echo "unknown stack '$stack': expected onedl or openmmlab" >&2
    exit 2
fi
if [ "$stack" = onedl ]; then venv=.venv; else venv=".venv-$stack"; fi
stamp="$venv/kd_dense-installed"
wanted="$(cat setup.py requirements/base.txt "$requirements" | cksum)"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    python="${PYTHON:-python3}"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "kd_dense needs Python >= 3.10; set PYTHON=/path/to/python3" >&2
        exit 2
    }
    echo "Setting up $venv with $requirements ..."
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet \
        --requirement "$requirements" || exit
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet \
        --no-build-isolation --no-deps --editable . || exit
    echo "$wanted" > "$stamp"
fi
. "$venv/bin/activate"
