# Source this, from the root: puts a private folder of wheels in front of what this machine's own
# Python has, and names that $python.
#   source tools/wheels.sh FOLDER
python="${PYTHON:-python3}"
site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
"$python" -m pip install --disable-pip-version-check --quiet --no-index --no-deps \
    --no-compile --target "$site" "$1"/*.whl
# as in site-packages: distutils, which mmengine asks for, comes by setuptools' .pth
echo "import site; site.addsitedir('$site')" > "$site/sitecustomize.py"
export PYTHONPATH="$PWD:$site"
"$python" -c 'import distutils, kd_dense.mm, mmdet.models, mmseg.models, pytest' || {
    echo "the wheels in $1 and what $python has are not enough: see tools/wheelhouse.sh" >&2
    exit 2
}
