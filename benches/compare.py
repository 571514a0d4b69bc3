"""What changed against the kept figures: python benches/compare.py [keep]

`make bench` leaves its figures in .benchmarks/latest.json.  Times mean nothing from one machine to
the next, so what is compared is how many times as fast as smtplib each was in its own run.  `keep`
writes the ratios of the last run to benches/baseline.json.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

from measure import environment

LATEST = Path(__file__).parents[1] / ".benchmarks" / "latest.json"
BASELINE = Path(__file__).parent / "baseline.json"
REFERENCE = "smtplib"
#: Runs on one machine differ by so much; what is beyond it is pointed out.
NOISE = 0.15

Ratios = dict[str, dict[str, float]]


def ratios(run: dict) -> Ratios:
    """Return, by group and contender, how many times as fast as smtplib each was."""
    medians: dict[str, dict[str, float]] = defaultdict(dict)
    for bench in run["benchmarks"]:
        medians[bench["group"]][contender(bench["params"])] = bench["stats"]["median"]
    return {
        group: {
            name: round(found[REFERENCE] / median, 3)
            for name, median in found.items()
            if name != REFERENCE
        }
        for group, found in sorted(medians.items())
        if REFERENCE in found and len(found) > 1
    }


def contender(params: dict | None) -> str:
    """Return who was measured; the other parameters are in the group's name."""
    known = ("contender", "client", "sender", "library")
    return str(next((params[name] for name in known if name in (params or {})), ""))


def changes(kept: Ratios, now: Ratios) -> list[tuple[str, str, str, str, str]]:
    """Return the rows of the table: what is in one only has no change."""
    rows = []
    for group in sorted(kept.keys() | now.keys()):
        before, after = kept.get(group, {}), now.get(group, {})
        for name in sorted(before.keys() | after.keys()):
            old, new = before.get(name), after.get(name)
            change = f"{new / old:.2f}" if old and new else ""
            if old and new and abs(new / old - 1) > NOISE:
                change += " faster" if new > old else " SLOWER"
            rows.append((group, name, *(f"{x:.2f}" if x else "" for x in (old, new)), change))
    return rows


def main(keep: bool) -> None:
    if not LATEST.exists():
        sys.exit(f"{LATEST.name} is not there: run `make bench` first")
    now = ratios(json.loads(LATEST.read_text()))
    if keep:
        kept = {"environment": environment(), "times as fast as smtplib": now}
        BASELINE.write_text(json.dumps(kept, indent=1) + "\n")
        print(f"kept {sum(map(len, now.values()))} ratios in {BASELINE.name}")
        return
    baseline = json.loads(BASELINE.read_text())
    print(f"Times as fast as smtplib. Kept: {baseline['environment']}. Now: {environment()}.\n")
    print("| group | contender | kept | now | now / kept |\n|---|---|---|---|---|")
    for row in changes(baseline["times as fast as smtplib"], now):
        print("|", " | ".join(row), "|")


if __name__ == "__main__":
    main(sys.argv[1:] == ["keep"])
