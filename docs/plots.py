"""Draw the plots of docs/performance.md from docs/performance.json: python docs/plots.py

Each SVG says which figures it was drawn from, so that a test sees when they have changed.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
DATA = HERE / "performance.json"
IMAGES = HERE / "img"

# Okabe and Ito's blue and orange: they differ for every kind of colour vision, and in lightness.
BLUE, ORANGE, GREY = "#0072b2", "#e69f00", "#8c8c8c"
INK, PAPER = "#1f2328", "#ffffff"
#: What stands for these where a dark page is preferred.
DARK = {INK: "#d5dae0", PAPER: "#1a1c1e", BLUE: "#56b4e9"}


class Bar(NamedTuple):
    """A bar: *row* of a run's table, its *column*, and which of the values there."""

    label: str
    row: int
    column: str
    number: int = 0


class Plot(NamedTuple):
    """A plot: what it is called and says, the run it shows, and its bars by group."""

    name: str
    title: str
    note: str
    run: int
    groups: "dict[str, list[Bar]]"
    line: "str | None" = None  # what the line at 1 stands for


def _both(row: int, number: int = 0) -> "list[Bar]":
    return [Bar("C", row, "C", number), Bar("Python", row, "Python", number)]


PLOTS = [
    Plot(
        "rate",
        "Messages per second: how many times as many",
        "longer is better",
        1,
        {
            "4 KB, 1 connection,\nagainst smtplib": _both(0, 0),
            "200 KB, 1 connection,\nagainst smtplib": _both(0, 1),
            "TLS 1.3, 5 connections,\nagainst smtplib in 5 threads": _both(8),
            "4 KB, 5 connections,\nagainst smtp-source": _both(1, 0),
            "4 KB, 20 connections,\nagainst smtp-source": _both(2, 0),
        },
        "as many",
    ),
    Plot(
        "cpu",
        "CPU time per message, 4 KB, 5 connections: share of the other's",
        "shorter is better",
        1,
        {
            "against smtplib": _both(3),
            "against aiosmtplib": _both(4),
            "against smtp-source (C)": _both(5),
        },
        "the same",
    ),
    Plot(
        "round-trips",
        "Round trips for a message",
        "shorter is better",
        1,
        {
            "smtplib": [Bar("", 7, "against")],
            "Mailer, by DATA": [Bar("", 7, "C", 0)],
            "Mailer, by BDAT": [Bar("", 7, "C", 1)],
        },
    ),
]


def value(run: dict, bar: Bar) -> str:
    """Return the number of a bar: of a cell like ``4.1 x, 4.0 x``, the one it names."""
    cell = run["rows"][bar.row][run["columns"].index(bar.column)]
    return re.findall(r"\d+(?:\.\d+)?", cell)[bar.number]


def fingerprint(plot: Plot, runs: "list[dict]") -> str:
    """Return what a plot's file is marked with: it changes when a word or a figure does."""
    run = runs[plot.run]
    numbers = [[value(run, bar) for bar in bars] for bars in plot.groups.values()]
    content = json.dumps([plot, run["environment"], numbers])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def draw(plot: Plot, runs: "list[dict]") -> None:
    """Write a plot's SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure  # without pyplot: never a window

    mpl.rcParams.update({"svg.hashsalt": plot.name, "svg.fonttype": "none", "font.size": 11})
    run = runs[plot.run]
    bars = [bar for group in plot.groups.values() for bar in group]
    places = _places(plot)
    figure = Figure(figsize=(6.4, 0.95 + 0.34 * places[-1] + 0.75), facecolor=PAPER)
    axes = figure.add_subplot(facecolor=PAPER)
    values = [float(value(run, bar)) for bar in bars]
    colours = [ORANGE if bar.label == "Python" else BLUE for bar in bars]
    axes.barh(places, values, height=0.9, color=colours)
    label = {"va": "center", "color": INK, "fontsize": 10, "zorder": 3}
    label["bbox"] = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}  # over the line
    for place, length, bar in zip(places, values, bars, strict=True):
        axes.text(length + max(values) / 60, place, f"{value(run, bar)} {bar.label}", label)
    if plot.line:
        axes.axvline(1, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.text(1, -0.75, f"   1 = {plot.line}", color=GREY, fontsize=9, va="center")
    axes.set_yticks(*_ticks(plot, places), color=INK)
    axes.set_xlim(0, max(values) * 1.22)
    axes.set_ylim(places[-1] + 0.7, -1.1 if plot.line else -0.7)
    axes.tick_params(length=0, labelbottom=False)
    axes.spines[:].set_visible(False)
    figure.suptitle(plot.title, x=0.02, ha="left", fontsize=12, fontweight="bold", color=INK)
    figure.text(0.02, 0.02, f"{plot.note}. {_short(run['environment'])}", fontsize=8, color=GREY)
    figure.tight_layout(rect=(0, 0.04, 1, 0.99))
    path = IMAGES / f"{plot.name}.svg"
    about = {"Date": None, "Creator": None, "Description": f"drawn from {fingerprint(plot, runs)}"}
    figure.savefig(path, metadata=about)
    path.write_text(_for_dark_pages(path.read_text("utf-8")), "utf-8")


def _places(plot: Plot) -> "list[float]":
    """Return where bars go: with room between the groups."""
    places: list[float] = []
    for bars in plot.groups.values():
        start = places[-1] + 1.45 if places else 0.0
        places += [start + number for number in range(len(bars))]
    return places


def _ticks(plot: Plot, places: "list[float]") -> "tuple[list[float], list[str]]":
    middles, done = [], 0
    for bars in plot.groups.values():
        group = places[done : done + len(bars)]
        middles.append(sum(group) / len(group))
        done += len(bars)
    return middles, list(plot.groups)


def _short(environment: str) -> str:
    return re.sub(r" \(.*?\)", "", environment)


def _for_dark_pages(svg: str) -> str:
    rules = "".join(
        f'[style*="{kind}: {light}"] {{ {kind}: {dark} !important }} '
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark) {{ {rules}}}</style>"
    svg = "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"
    return svg.replace("<defs>", f"{style}\n <defs>", 1)


def main() -> None:
    """Draw all of them."""
    IMAGES.mkdir(exist_ok=True)
    runs = json.loads(DATA.read_text("utf-8"))["runs"]
    for plot in PLOTS:
        draw(plot, runs)


if __name__ == "__main__":
    main()
