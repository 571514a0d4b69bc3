"""Run tests of CPython's own with another module in smtplib's place.

    python run_cpython_suite.py MODULE TEST...

prints one JSON object on the last line of standard output: what became of each
test, by its id, and for what did not pass the reason.  Run it in a process of
its own: the replacement has to be in place before anything imports smtplib.
"""

from __future__ import annotations

import importlib
import json
import sys
import unittest
import warnings


class Outcomes(unittest.TestResult):
    """Keeps (outcome, reason) for each test; the worst of a test's subtests."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, tuple[str, str]] = {}

    def addSuccess(self, test):
        self.outcomes.setdefault(test.id(), ("passed", ""))

    def addSkip(self, test, reason):
        self.outcomes[test.id()] = ("skipped", reason)

    def addFailure(self, test, error):
        self.outcomes[test.id()] = ("failed", self._exc_info_to_string(error, test))

    def addError(self, test, error):
        self.outcomes[test.id()] = ("error", self._exc_info_to_string(error, test))

    def addExpectedFailure(self, test, error):
        self.outcomes[test.id()] = ("expected failure", "")

    def addUnexpectedSuccess(self, test):
        self.outcomes[test.id()] = ("unexpected success", "")

    def addSubTest(self, test, subtest, error):
        if error is not None:
            self.addError(test, error)


def run(replacement: str, tests: list[str]) -> dict[str, tuple[str, str]]:
    # Up to 3.11 the tests import asyncore and smtpd, which warn of their end.
    warnings.simplefilter("ignore", DeprecationWarning)
    sys.modules["smtplib"] = importlib.import_module(replacement)
    outcomes = Outcomes()
    unittest.defaultTestLoader.loadTestsFromNames(tests).run(outcomes)
    return outcomes.outcomes


if __name__ == "__main__":
    results = run(sys.argv[1], sys.argv[2:])
    print()
    print(json.dumps(results))
