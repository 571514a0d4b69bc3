#!/bin/bash
# The tests of the compiled codec under AddressSanitizer and UndefinedBehaviorSanitizer.
#
#     tests/sanitize.sh [python [pytest argument ...]]
#
# compiles the extension with both, in a folder of its own, for a python that has the extra [test].
# Any report of theirs is a failure; that they do report something is seen first.
set -euo pipefail
python=$(command -v "${1:-python3}")
[[ $python = /* ]] || python=$PWD/$python
shift || true
root=$(cd "$(dirname "$0")/.." && pwd)

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cp -r "$root"/{src,tests,pyproject.toml} "$scratch"
cd "$scratch"

compile() {
    gcc -shared -fPIC -I "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
        -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1 \
        "$1" -o "${1%.c}$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')"
}

# What an interpreter keeps to its end is no leak; tests/leaks.py looks for those of ours.
sanitized() {
    env LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
        ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1" \
        UBSAN_OPTIONS="print_stacktrace=1" \
        PYTHONMALLOC=malloc PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$scratch/src" FASTSMTP_IMPL=c \
        "$python" "$@"
}

cat >wrong.c <<'C'
#include <Python.h>
#include <limits.h>

static PyObject *sixteen_octets(PyObject *self, PyObject *number)
{
    char *octets = malloc(PyLong_AsSize_t(number)), last;
    octets[15] = 1;
    last = octets[15];
    free(octets);
    return PyLong_FromLong(last);
}

static PyObject *too_large(PyObject *self, PyObject *number)
{
    return PyLong_FromLong(INT_MAX + (int)PyLong_AsLong(number));
}

static PyMethodDef methods[] = {{"sixteen_octets", sixteen_octets, METH_O, NULL},
                                {"too_large", too_large, METH_O, NULL},
                                {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "wrong", NULL, -1, methods};

PyMODINIT_FUNC PyInit_wrong(void)
{
    return PyModule_Create(&module);
}
C
compile wrong.c

# What is wrong is reported, and ends the process; what is right is not.
expect() {
    if sanitized -c "import wrong; wrong.$2" 2>reports || ! grep -q "$1" reports; then
        cat reports
        echo "The sanitizers do not work: wrong.$2 gave no report of $1."
        exit 1
    fi
}
expect heap-buffer-overflow "sixteen_octets(15)"
expect "signed integer overflow" "too_large(1)"
sanitized -c "import wrong; wrong.sixteen_octets(16); wrong.too_large(0)"

if ! "$python" -c "import Cython" 2>/dev/null; then
    "$python" -m pip install --quiet --disable-pip-version-check --target tools "Cython>=3.1"
fi
PYTHONPATH=tools "$python" -m cython src/fastsmtp/_codec.pyx
compile src/fastsmtp/_codec.c

serializer=tests/test_serializer.py
tests=(tests/test_codec.py tests/test_codec_message.py tests/test_fields.py tests/fuzz/test_corpus.py
    "$serializer::test_payloads" "$serializer::test_a_hundred_recipients"
    "$serializer::test_header_objects" "$serializer::test_built_messages"
    "$serializer::test_newlines_of_lines_at_every_place_of_a_cut")
# What takes long only because it is so much is left out.
left_out="not a_million and not plain_is_what"
# A report goes to file descriptor 2, which is not to be captured.
if ! sanitized -m pytest -q -p no:cacheprovider --capture=sys -k "$left_out" "${tests[@]}" "$@"
then
    echo "Failed: see the tests, and what the sanitizers say, above."
    exit 1
fi
echo "No report of AddressSanitizer or UndefinedBehaviorSanitizer."
