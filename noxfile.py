"""Interpreters x codecs, for those who have nox: `nox` runs what it finds, `nox -l` lists.

nox -s "tests-3.13(codec='c')" -- tests/test_codec.py -k replies
"""

import nox

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False

PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14", "3.15", "3.14t", "pypy3"]


@nox.session(python=PYTHONS)
@nox.parametrize("codec", ["c", "python"])
def tests(session: nox.Session, codec: str) -> None:
    """The test suite on one interpreter and one codec."""
    if codec == "c" and str(session.python).startswith("pypy"):
        session.skip("the extension is for CPython")
    session.install(".[test]", env={"FASTSMTP_BUILD_EXTENSION": "yes" if codec == "c" else "no"})
    session.run("pytest", *session.posargs, env={"FASTSMTP_IMPL": codec})


@nox.session
@nox.parametrize("target", ["lint", "docs"])
def make(session: nox.Session, target: str) -> None:
    """What is the same on all interpreters, by the Makefile."""
    session.run("make", target, external=True)
