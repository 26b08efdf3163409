#!/usr/bin/env bash
# Makes an environment of other versions than .venv's, for the tests: .venv-NAME.
#
#   tools/environment.sh oldest|newest|card
#
# oldest and newest hold the two ends of what requirements.txt allows; card holds what a GPU machine
# without a network has, and the wheels that are carried there. Kept where its list is unchanged.
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:?"which environment? oldest, newest or card"}
list=tests/environments/$name.txt
if [[ ! -f $list ]]; then
    echo "environment: there is no $list; the environments are oldest, newest and card" >&2
    exit 2
fi

# The first of the given versions of Python that this machine has.
find_python() {
    local version path
    for version in "$@"; do
        for path in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python; do
            if "$path" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" \
                2>/dev/null; then
                echo "$path"
                return
            fi
        done
    done
    echo "environment: none of Python $* is on this machine; install one" >&2
    return 1
}

case $name in
    oldest) python=$(find_python 3.11 3.12) ;;
    *) python=$(find_python 3.12 3.11) ;;
esac
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
venv=.venv-$name
wanted=$(cat "$list" requirements.txt tools/gpu_wheels.sh "$0" | sha256sum | cut -d' ' -f1)-$version
if [[ -f $venv/made-of && $(<"$venv/made-of") == "$wanted" ]]; then
    exit 0
fi
echo "environment: making $venv with Python $version" >&2
rm -rf "$venv"
"$python" -m venv "$venv"
install=("$venv/bin/python" -m pip install --disable-pip-version-check --quiet)
case $name in
    oldest)
        "${install[@]}" --constraint "$list" --requirement requirements.txt
        ;;
    newest)
        "${install[@]}" --requirement "$list"
        "${install[@]}" --no-deps mosaicml-streaming==0.13.0
        ;;
    card)
        "${install[@]}" --requirement "$list"
        PYTHON=$python PYTHON_VERSION=$version tools/gpu_wheels.sh "$venv/wheels"
        "${install[@]}" --no-index --no-deps "$venv"/wheels/*.whl
        ;;
esac
if [[ $name != card ]]; then # there the checkout is run from where it lies
    "${install[@]}" --no-deps --editable .
fi
echo "$wanted" >"$venv/made-of"
