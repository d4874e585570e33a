# Sourced from the repository's root by the scripts beside it. Makes .venv when it
# is not there, sets $python to its interpreter and defines:
#   need FILE [INCLUDED]  installs a requirements file, once
#   install ARGUMENTS     hands them to `uv pip install` or `pip install`
# It uses uv where that is found, else Python's own venv and pip. PYTHON=… in the
# environment names the Python to try first.

python=.venv/bin/python

supported() { # PYTHON: is there a TensorFlow for it, and does it start at all?
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
        >/dev/null 2>&1
}

find_python() { # prints the first supported one
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
    rm -rf .venv # one that is broken, or was cut off half-way
    if ! base=$(find_python); then
        if ! command -v uv >/dev/null; then
            echo "No Python 3.11, 3.12 or 3.13 among python3, python3.13," \
                "python3.12, python3.11, python: install one, or uv, or set" \
                "PYTHON=/path/to/it" >&2
            return 1
        fi
        base='>=3.11,<3.14' # uv downloads it
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
    # Compiled now, as pip does it: where Python may not write beside its libraries
    # (PYTHONDONTWRITEBYTECODE) each process would compile them again, for 10 seconds.
    if command -v uv >/dev/null; then
        uv pip install --compile-bytecode --python "$python" "$@"
    else
        "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip
        "$python" -m pip install "$@"
    fi
}

need() { # a copy of what was installed says whether it still is what is asked for
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
