#!/bin/sh
# Creates a complete .venv, keeps a good one unchanged, or prints why it cannot. PYTHON names the Python to use.
# An environment that is incomplete, copied from another checkout or moved is created again, because its programs and
# its link to this package contain absolute paths.
set -eu
unset CDPATH # it would redirect cd
# Settings for other Pythons and other uses of pip could install packages elsewhere, or make them seem installed.
unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER PIP_NO_DEPS PIP_REQUIRE_HASHES PIP_DRY_RUN PIP_CONSTRAINT
unset UV_REQUIRE_HASHES UV_SYSTEM_PYTHON UV_CONSTRAINT UV_OVERRIDE UV_EXCLUDE_NEWER UV_PROJECT UV_WORKING_DIR
unset UV_NO_EDITABLE UV_RESOLUTION UV_PRERELEASE
cd "$(dirname "$0")/../.."
here=$(pwd -P)
venv=.venv
marker=$venv/installed # contains the path for which the environment was created
uv=uv==0.13.9 # several times as fast as pip; pinned, because its options may change before 1.0
supported='import sys; sys.exit(not (3, 11, 5) <= sys.version_info < (3, 14))' # the pinned packages need 3.11.5

give_up() {
    echo "install: $1" >&2
    exit 1
}

full() { # whether the disk is full
    status=0
    head -c 50000000 /dev/zero 2>/dev/null >"$venv-room" && status=1
    rm -f "$venv-room"
    return $status
}

give_up_or_full() {
    full && give_up "the disk that holds $here takes no more. Free 4 GB there, or raise your quota or ulimit -f; then run the same command again."
    give_up "$1"
}

starts() { "$1" -c "$supported" 2>/dev/null; }

ready() {
    [ "$(cat "$marker" 2>/dev/null)" = "$here" ] && starts "$venv/bin/python" &&
        [ -z "$(find settings.ini setup.py pyproject.toml constraints.txt lambdas/requirements.txt -newer "$marker")" ]
}

usable() { # whether pip can resume
    starts "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1 &&
        [ "$(cat "$venv/made-for" 2>/dev/null)" = "$here" ]
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        starts "$PYTHON" && command -v "$PYTHON" && return 0
        give_up "Python 3.11.5 or later, 3.12 or 3.13 is needed; $PYTHON is not one. Name another: make PYTHON=/path/to/python"
    fi
    for python in python3.11 python3.12 python3.13 python3; do
        starts "$python" && command -v "$python" && return 0
    done
    give_up "Python 3.11.5 or later, 3.12 or 3.13 is needed, and none is installed. Name yours: make PYTHON=/path/to/python"
}

make_environment() {
    python=$(find_python) || exit 1
    rm -rf "$venv" || give_up "$here/$venv cannot be deleted; it may belong to another user. Delete it: sudo rm -rf '$here/$venv'"
    if ! "$python" -m venv "$venv" || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        rm -rf "$venv"
        give_up_or_full "$python cannot make an environment with pip in it. On Debian or Ubuntu, install its other half: sudo apt-get install $(basename "$python")-venv"
    fi
    echo "$here" >"$venv/made-for"
}

pip() { "$venv/bin/python" -m pip install --no-user --disable-pip-version-check "$@"; }

setting_of_pip() { # in pip's list, the environment's settings come first
    "$venv/bin/python" -m pip config list | sed -n "s/\\\\n/ /g; s/^[^=]*\.$1='\(.*\)'\$/\1/p" | head -n 1
}

# uv ignores pip's settings, so this passes it pip's package sources. Any of them may provide a version.
uv() {
    index=$(setting_of_pip index-url) more=$(setting_of_pip extra-index-url)
    links=$(setting_of_pip find-links) certificates=$(setting_of_pip cert)
    env UV_INDEX_STRATEGY=unsafe-best-match ${index:+"UV_INDEX_URL=$index"} ${more:+"UV_EXTRA_INDEX_URL=$more"} \
        ${links:+"UV_FIND_LINKS=$links"} ${certificates:+"SSL_CERT_FILE=$certificates"} \
        "$venv/bin/python" -m uv pip install --python "$venv/bin/python" --compile-bytecode "$@" # compiles like pip
}

# The packages of the functions come first, and only with the pinned hashes.
install_with() {
    "$1" --no-deps --require-hashes -r lambdas/requirements.txt && "$1" -c constraints.txt -e ".[etl,train,local,dev]"
}

ready && exit 0
[ -w . ] || give_up "this folder cannot be written to: $here"
echo "Installing into $venv (about 270 packages, 3 GB; one minute with a warm cache)"
usable || make_environment
if ! pip -qq "$uv" || ! install_with uv; then
    echo "install: without uv it takes a few minutes longer, because pip does it alone" >&2
    install_with pip || give_up_or_full "pip could not install the packages; its words are above. Run the same command again to go on."
fi
echo "$here" >"$marker"
