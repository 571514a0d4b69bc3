"""Builds the extension; everything else is in pyproject.toml.

FASTSMTP_BUILD_EXTENSION=yes requires it, =no leaves it out; unset, it is built where a compiler is
to be had.
"""

import os
import platform
import sys

from setuptools import Extension, setup

wanted = os.environ.get("FASTSMTP_BUILD_EXTENSION", "")
if wanted not in ("yes", "no", ""):
    sys.exit(f"FASTSMTP_BUILD_EXTENSION must be yes, no or unset, not {wanted!r}")
if not wanted and platform.python_implementation() == "PyPy":
    wanted = "no"  # The extension is for CPython; PyPy has the codec in Python.

# setuptools hands .pyx sources to Cython itself, and puts them, not the generated C, in the sdist.
codec = Extension(
    "fastsmtp._codec",
    ["src/fastsmtp/_codec.pyx"],
    extra_compile_args=[] if sys.platform == "win32" else ["-O3"],
    optional=wanted != "yes",
)
setup(ext_modules=[] if wanted == "no" else [codec])
