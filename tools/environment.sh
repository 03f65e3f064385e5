#!/usr/bin/env bash
# Build the development environment: environment.sh PYTHON VENV STAMP. Called by the Makefile.
set -euo pipefail
python=$1 venv=$2 stamp=$3

advice="install one, or name another: make PYTHON=/path/to/python3.11"
if ! command -v "$python" >/dev/null; then
    echo "environment: the interpreter '$python' was not found; Python 3.11 or newer is needed: $advice" >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    found=$("$python" --version 2>&1 | head -n 1 || true)
    echo "environment: '$python' is ${found:-not a working Python}; Python 3.11 or newer is needed: $advice" >&2
    exit 1
fi

echo "environment: building $venv with $("$python" --version), a few minutes"
# Whatever an interrupted run left is removed; the stamp goes with it.
if ! "$python" -m venv --clear "$venv"; then
    echo "environment: '$python -m venv' failed; on Debian and Ubuntu install the package python3-venv" >&2
    exit 1
fi
# The constraints name exact versions: without them torch alone would be another build of several gigabytes.
"$venv/bin/python" -m pip install -qq --no-input --disable-pip-version-check -c constraints.txt -e '.[dev]'
touch "$stamp"
