"""What the tests found out, as a page: docs/servers.md.

    python tests/servers/matrix.py

writes it from the results that the last runs left, one for each codec and base system.
A test tells what it found in its report's properties; so a run by several workers needs
nothing more to bring it all together.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / ".servers" / "results"
PAGE = ROOT / "docs" / "servers.md"

LETTERS = {
    "SMTP": "S",
    "SMTP_SSL": "T",
    "LMTP": "L",
    "Mailer-DATA": "D",
    "Mailer-BDAT": "B",
    "Mailer-LMTP": "M",
}
CODECS = {"c": "the compiled codec", "python": "the codec in Python"}

Version = tuple[str, str]


class Recorder:
    """A plugin of pytest that writes the results of one run."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._found: defaultdict[str, list[Any]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call":
            for name, value in report.user_properties:
                self._found[name].append([*value, report.passed] if name == "cell" else value)

    def pytest_sessionfinish(self) -> None:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{self._name}.json").write_text(json.dumps(self._found, indent=1))


class Found(NamedTuple):
    """The results of all runs, by server and version."""

    #: What stands where: features in the order of the tests.
    titles: list[str]
    #: Whether a kind of client passed, by server, title and kind.
    passed: dict[tuple[Version, str, str], bool]
    absent: dict[Version, dict[str, str]]
    compared: dict[Version, Counter[str]]


def merge(runs: list[dict[str, list[Any]]]) -> Found:
    """Bring runs together: what failed in one has failed."""
    found = Found([], {}, {}, defaultdict(Counter))
    places: dict[str, list[Any]] = {}
    for run in runs:
        for server, place, title, kind, tried, passed in run["cell"]:
            places[title] = min(place, places.get(title, place))
            if tried or not passed:
                key = tuple(server), title, kind
                found.passed[key] = passed and found.passed.get(key, True)
        for server, absent in run["absent"]:
            found.absent[tuple(server)] = absent
        for server, copies, octets in run["compared"]:
            found.compared[tuple(server)].update(messages=1, copies=copies, octets=octets)
    found.titles.extend(sorted(places, key=places.__getitem__))
    return found


# -- the page -------------------------------------------------------------------

HEAD = """\
# The servers that it is tried with

Each of these mail servers is run as its packages have it, and is sent to by every kind of client,
with {codecs}.
What arrived is read from the server's mailboxes and compared with what was sent, octet for octet
after the trace fields that the server puts above it; and in the end nothing may be there that no
client was told of. `make test-servers` does it all and then writes this page, `make test-newest`
adds the servers of Debian unstable; each row is one test in `tests/servers/`.

The letters are the clients for which it came out right:

| | |
|---|---|
| S | `SMTP`; STARTTLS where there is TLS |
| T | `SMTP_SSL` |
| L | `LMTP` |
| D | `Mailer` by DATA |
| B | `Mailer` by BDAT; where the server does not offer CHUNKING it finds that out, and uses DATA |
| M | `Mailer` by LMTP |

A letter is missing where the server or the protocol does not have the thing: what servers do not
have is below, with the reason. It is pinned in the tests, so that nothing goes missing unseen.
"""


def page(found: Found, codecs: str) -> Iterator[str]:
    """Yield the lines of the page."""
    yield HEAD.format(codecs=codecs)
    yield from _table(found)
    yield "\n## What a server does not have\n"
    for server in _servers(found):
        yield f"- {' '.join(server)}: {_absences(found.absent[server])}"
    yield "\n## How much was compared\n"
    yield from _totals(found)


def _servers(found: Found) -> list[Version]:
    return sorted(found.absent, key=_natural)


def _natural(server: Version) -> tuple[str, list[int]]:
    name, version = server
    return name.lower(), [int(number) for number in re.findall(r"\d+", version)]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _table(found: Found) -> Iterator[str]:
    servers = _servers(found)
    yield _row("", *map(" ".join, servers))
    yield "|---" * (len(servers) + 1) + "|"
    for title in found.titles:
        yield _row(title, *(_letters(found, server, title) for server in servers))


def _letters(found: Found, server: Version, title: str) -> str:
    results = {letter: found.passed.get((server, title, kind)) for kind, letter in LETTERS.items()}
    passed = [letter for letter, result in results.items() if result]
    failed = [f"**{letter} fails**" for letter, result in results.items() if result is False]
    return " ".join(passed + failed) or "-"


def _absences(absent: dict[str, str]) -> str:
    needs: defaultdict[str, list[str]] = defaultdict(list)
    for need, reason in absent.items():
        needs[reason].append(NAMES.get(need, need))
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in needs.items())


NAMES = {
    "plain": "SMTP",
    "submission": "STARTTLS",
    "smtps": "TLS from the first octet",
    "impatient": "a short time-out",
    "lmtp-unix": "LMTP over a Unix socket",
    "lmtp-tcp": "LMTP over TCP",
    "SIZE": "SIZE with a limit",
    "busy": "recipients refused for now",
    "full": "quotas",
    "refusal": "a refusal at the final dot",
}


def _totals(found: Found) -> Iterator[str]:
    yield _row("", "messages", "copies in mailboxes", "octets")
    yield "|---" * 4 + "|"
    total: Counter[str] = sum(found.compared.values(), Counter())
    counts = [(" ".join(server), found.compared[server]) for server in _servers(found)]
    for name, count in [*counts, ("all", total)]:
        yield _row(name, *(f"{count[what]:,}" for what in ("messages", "copies", "octets")))


def main() -> None:
    paths = sorted(RESULTS.glob("*.json"))
    if not paths:
        sys.exit("no results: `make test-servers` has not been run")
    codecs = dict.fromkeys(CODECS[path.stem.partition("-")[0]] for path in paths)
    found = merge([json.loads(path.read_text()) for path in paths])
    PAGE.write_text("\n".join(page(found, " and with ".join(codecs))) + "\n")


if __name__ == "__main__":
    main()
