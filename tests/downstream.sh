#!/bin/bash
# Other people's tests on fastsmtp in smtplib's place: Django's of mail, aiosmtpd's, CPython's of
# smtplib.  Usage: tests/downstream.sh PYTHON, an interpreter that has fastsmtp[test].
#
# Each suite is of the release that pip finds, from its sdist, unmodified.
set -euo pipefail
python=$(command -v "${1:?which Python}")
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

"$python" -m fastsmtp --version
"$python" -m venv --system-site-packages own
pip=(own/bin/python -m pip --disable-pip-version-check --quiet)
# --system-site-packages is of the base interpreter: a virtual environment's packages come so.
"$python" -c 'import site; print(*site.getsitepackages(), sep="\n")' \
    >"$(own/bin/python -c 'import site; print(site.getsitepackages()[0])')/fastsmtp-test.pth"
# aiosmtpd's tests are for pytest 8.
"${pip[@]}" install "pytest<9" pytest-asyncio pytest-mock pytest-print django aiosmtpd

# Prints the folder that the sources of a package are in, of the version that is installed.
sources() {
    local version
    version=$(own/bin/python -c "from importlib.metadata import version; print(version('$1'))")
    "${pip[@]}" download --no-deps --no-binary "$1" "$1==$version" >&2
    tar -xzf "$1-$version.tar.gz"
    echo "$scratch/$1-$version"
}

section() { printf '\n===== %s =====\n' "$*"; }

section "CPython: test.test_smtplib"
"$python" -m pytest -q -c /dev/null --rootdir "$here" "$here/test_cpython_suite.py"

django=$(sources django)
section "Django: mail"
(cd "$django/tests" && "$scratch/own/bin/python" -m fastsmtp run runtests.py mail --parallel 1)

aiosmtpd=$(sources aiosmtpd)
section "aiosmtpd"
(cd "$aiosmtpd" && "$scratch/own/bin/python" -m fastsmtp run -m pytest -q -p no:cacheprovider -p no:cov \
    -o addopts= aiosmtpd/tests)
