# Sourced by the other scripts of this folder, from the repository's root. Makes .venv if
# there is none, sets $python to its interpreter and defines:
#   need FILE [INCLUDED]  installs a requirements file, once
#   install ARGUMENTS     passes them to `uv pip install` or `pip install`
# It uses uv if that is installed, else Python's own venv and pip. The environment
# variable PYTHON names the Python to try first.

python=.venv/bin/python

supported() { # PYTHON: whether it starts and TensorFlow supports its version
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
        >/dev/null 2>&1
}

find_python() { # prints the path of the first supported Python
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} \
        python3 python3.13 python3.12 python3.11 python; do
        if supported "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

make_venv() {
    local base
    rm -rf .venv # a broken or unfinished environment
    if ! base=$(find_python); then
        if ! command -v uv >/dev/null; then
            echo "No Python 3.11, 3.12 or 3.13 among python3, python3.13," \
                "python3.12, python3.11, python: install one, or uv, or set" \
                "PYTHON=/path/to/it" >&2
            return 1
        fi
        base='>=3.11,<3.14' # uv downloads such a Python
    fi
    if command -v uv >/dev/null; then
        echo "Making .venv with uv and Python $base"
        uv venv --quiet --python "$base" .venv
    else
        echo "Making .venv with $base (uv would be faster: pip install uv)"
        if ! "$base" -m venv .venv; then
            rm -rf .venv
            echo "$base -m venv failed: install its venv package (Debian, Ubuntu:" \
                "apt install python3-venv), or uv" >&2
            return 1
        fi
    fi
}

install() {
    # Compiles now, as pip does. If Python may not write bytecode files
    # (PYTHONDONTWRITEBYTECODE), each process would compile again, for 10 seconds.
    if command -v uv >/dev/null; then
        uv pip install --compile-bytecode --python "$python" "$@"
    else
        "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip
        "$python" -m pip install "$@"
    fi
}

need() { # compares the files with a copy that it keeps of the installed ones
    local copy=".venv/installed-${1//\//-}"
    if cat "$@" | cmp -s - "$copy" 2>/dev/null; then
        return
    fi
    echo "Installing $1 into .venv: a few minutes the first time (0.7 GB to" \
        "download, 2.3 GB on disk), seconds when pip has it cached"
    install -r "$1" || return
    cat "$@" >"$copy"
}

supported "$python" || make_venv
