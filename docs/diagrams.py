"""Draw the diagrams of docs/how-it-works.md from the code itself: python docs/diagrams.py

The house is drawn from what the modules import, the conversations from what a server in this
process heard and said. Nothing here knows what the pictures should show.
"""

import ast
import re
import smtplib
import sys
from collections.abc import Callable
from functools import cache
from html import escape
from math import fsum
from pathlib import Path

import fastsmtp

HERE = Path(__file__).parent
IMAGES = HERE / "img"
PACKAGE = Path(fastsmtp.__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import support  # noqa: E402

STYLE = """
text { font: 13px ui-sans-serif, system-ui, sans-serif; fill: #1f2328 }
.small { font-size: 11px; fill: #656d76 }
.title { font-weight: 600 }
.wire { font-family: ui-monospace, monospace; font-size: 11.5px }
.paper { fill: #ffffff }
.line { stroke: #656d76; fill: none }
.edge { stroke: #8c959f; fill: none; stroke-width: 1 }
.client { stroke: #0072b2; fill: none; stroke-width: 2 }
.server { stroke: #b36b00; fill: none; stroke-width: 2 }
.pure { fill: #ddeefa; stroke: #0072b2 }
.driver { fill: #fdeccb; stroke: #b36b00 }
.codec { fill: #d6f0e6; stroke: #007a5a }
@media (prefers-color-scheme: dark) {
  text { fill: #d5dae0 }
  .small { fill: #9aa4af }
  .paper { fill: #1a1c1e }
  .line, .edge { stroke: #6e7781 }
  .client { stroke: #56b4e9 }
  .server { stroke: #e69f00 }
  .pure { fill: #12344d; stroke: #56b4e9 }
  .driver { fill: #4a3510; stroke: #e69f00 }
  .codec { fill: #0f3d30; stroke: #2fbf94 }
}
"""


def svg(width: float, height: float, title: str, parts: "list[str]") -> str:
    """Return a picture with a background of its own, for light and dark pages."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" role="img">'
    )
    paper = '<rect class="paper" width="100%" height="100%" rx="6"/>'
    described = f"<title>{escape(title)}</title>"
    return "\n".join([head, described, f"<style>{STYLE}</style>", paper, *parts, "</svg>"]) + "\n"


def label(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    """Return a text."""
    shown = f'class="{kind}" ' if kind else ""
    return f'<text {shown}x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


# -- the house ------------------------------------------------------------------


def imports(package: Path = PACKAGE) -> "dict[str, set[str]]":
    """Return the modules of the package, each with those of the others that it imports.

    ``cli`` is one module here.  What is imported for annotations only does not count, nor what a
    type checker needs.
    """
    names = {path.stem for path in package.glob("*.py")} | {"_codec"}
    found: dict[str, set[str]] = {"_codec": set(), "cli": set()}
    for path in package.rglob("*.py"):
        module = "cli" if path.parent.name == "cli" else path.stem
        seen = found.setdefault(module, set())
        for node in _run_time_imports(path):
            if isinstance(node, ast.ImportFrom) and node.level == 1 + (module == "cli"):
                into = [node.module] if node.module else [alias.name for alias in node.names]
                seen |= {str(name).split(".")[0] for name in into} & names
    found["cli"] -= {"cli", "__main__"}  # __main__ and cli are two doors of one house
    found["__main__"] |= {"cli", "__init__"}
    return found


@cache
def _run_time_imports(path: Path) -> "list[ast.Import | ast.ImportFrom]":
    """Return the imports in a file, in whatever it says, but those for type checkers."""
    found = []
    nodes: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append(node)
        elif isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            nodes += node.orelse
        elif not isinstance(node, ast.expr):
            nodes += ast.iter_child_nodes(node)
    return found


def kind(module: str, package: Path = PACKAGE) -> str:
    """Return whether a module is of the codec, touches sockets or threads, or does not."""
    if module in ("_codec", "_codec_py", "codec"):
        return "codec"
    path = package / module
    sources = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    worldly = {"socket", "ssl", "select", "selectors", "threading"}
    for source in sources:
        for node in _run_time_imports(source):
            outside = isinstance(node, ast.ImportFrom) and not node.level
            names = {node.module} if outside else {each.name for each in node.names}
            if worldly & names:
                return "driver"
    return "pure"


def storeys(graph: "dict[str, set[str]]") -> "list[list[str]]":
    """Return the modules by their longest way down, the top first.  Raises on a cycle."""
    heights: dict[str, int] = {}

    def height(module: str, above: "tuple[str, ...]" = ()) -> int:
        if module in above:
            raise ValueError(f"imports in a circle: {' > '.join([*above, module])}")
        if module not in heights:
            below = [height(each, (*above, module)) for each in graph[module]]
            heights[module] = 1 + max(below, default=-1)
        return heights[module]

    for module in sorted(graph):
        height(module)
    top = max(heights.values())
    return [sorted(m for m in heights if heights[m] == level) for level in range(top, -1, -1)]


def reduced(graph: "dict[str, set[str]]") -> "dict[str, set[str]]":
    """Leave out each import that there is a longer way for, too: fewer lines, the same order."""

    def reach(module: str) -> "set[str]":
        return {module}.union(*(reach(each) for each in graph[module]))

    return {
        module: {
            each
            for each in below
            if not any(each in reach(other) for other in below if other != each)
        }
        for module, below in graph.items()
    }


def house() -> str:
    """Draw the import graph."""
    graph = imports()
    rows, edges = stepwise(storeys(graph), reduced(graph))
    rows = untangled(rows, edges)
    width, step, box = 640, 58, 26
    height = 30 + step * len(rows) + 22
    spots: dict[str, tuple[float, float, float]] = {}
    for number, row in enumerate(rows):
        sizes = [18 + 7.2 * len(_shown(module)) if module in graph else 4 for module in row]
        gap = (width - sum(sizes)) / (len(row) + 1)
        x = gap
        for module, size in zip(row, sizes, strict=True):
            spots[module] = (x + size / 2, 24 + step * number, size)
            x += size + gap
    parts = []
    for upper, below in edges.items():
        x, y, _ = spots[upper]
        if upper not in graph:
            parts.append(f'<path class="edge" d="M{x:.1f} {y:g} V{y + box:g}"/>')
        parts += [_curve(x, y + box, *spots[lower][:2]) for lower in sorted(below)]
    for module in graph:
        x, y, size = spots[module]
        parts.append(
            f'<rect class="{kind(module)}" x="{x - size / 2:.1f}" y="{y:g}" width="{size:.1f}" '
            f'height="{box}" rx="5"/>'
        )
        parts.append(label(round(x, 1), y + 17.5, _shown(module)))
    legend = [("driver", "sockets, threads"), ("pure", "neither"), ("codec", "the codec")]
    for number, (style, words) in enumerate(legend):
        x = 24 + 150 * number
        parts.append(
            f'<rect class="{style}" x="{x}" y="{height - 24}" width="14" height="14" rx="3"/>'
        )
        parts.append(label(x + 20, height - 12.5, words, "small", "start"))
    return svg(width, height, "The modules of fastsmtp, and what each imports", parts)


def _shown(module: str) -> str:
    return {"__init__": "fastsmtp", "__main__": "fastsmtp.__main__"}.get(module, module)


def stepwise(
    rows: "list[list[str]]", edges: "dict[str, set[str]]"
) -> "tuple[list[list[str]], dict[str, set[str]]]":
    """Have a line that passes storeys take a place on each, so that it crosses no box."""
    level = {module: number for number, row in enumerate(rows) for module in row}
    rows = [list(row) for row in rows]
    steps: dict[str, set[str]] = {}
    for upper in sorted(edges):
        for lower in sorted(edges[upper]):
            above = upper
            for number in range(level[upper] + 1, level[lower]):
                # Lines to one module share their way down.
                place = f"{number} to {lower}"
                steps.setdefault(above, set()).add(place)
                if place not in rows[number]:
                    rows[number].append(place)
                above = place
            steps.setdefault(above, set()).add(lower)
    return rows, steps


def untangled(rows: "list[list[str]]", edges: "dict[str, set[str]]") -> "list[list[str]]":
    """Put each module near to those that it has lines to."""
    linked: dict[str, set[str]] = {module: set() for row in rows for module in row}
    for upper, below in edges.items():
        for lower in below:
            linked[upper].add(lower)
            linked[lower].add(upper)
    place = {m: (n + 1) / (len(row) + 1) for row in rows for n, m in enumerate(row)}
    for _ in range(40):
        for row in rows:
            wanted = {m: fsum(place[o] for o in linked[m]) / len(linked[m]) for m in row}
            row.sort(key=lambda module, wanted=wanted: (wanted[module], module))
            place.update({m: (n + 1) / (len(row) + 1) for n, m in enumerate(row)})
    return rows


def _curve(x1: float, y1: float, x2: float, y2: float) -> str:
    bend = (y2 - y1) / 2
    return (
        f'<path class="edge" d="M{x1:.1f} {y1:g} C{x1:.1f} {y1 + bend:g} '
        f'{x2:.1f} {y2 - bend:g} {x2:.1f} {y2:g}"/>'
    )


# -- conversations ----------------------------------------------------------------

Flights = "list[tuple[str, list[str]]]"  # who, and the lines that went together

LETTER = "From: me@example.org\r\nSubject: hello\r\n\r\nThe text.\r\n"
SENDER, ANN, BOB = "me@example.org", "ann@example.org", "bob@example.org"


class Recorded(support.Connection):
    """A connection that remembers who said what, in turn."""

    log: "list[tuple[str, bytes]]" = []  # noqa: RUF012 - the one that is being recorded

    def receive(self) -> bytes:
        data = super().receive()
        self.log.append(("client", data))
        return data

    def send(self, data: bytes) -> None:
        self.log.append(("server", data))
        super().send(data)


def recorded(send: "Callable[[support.Server], None]", *extensions: str) -> Flights:
    """Return what was said between EHLO, with its reply, and QUIT."""
    usual, support.Connection, Recorded.log = support.Connection, Recorded, []
    try:
        with support.ModelServer(extensions) as server:
            send(server)
    finally:
        support.Connection = usual
    flights: list[tuple[str, bytes]] = []
    for who, data in Recorded.log:
        if flights and flights[-1][0] == who:
            flights[-1] = (who, flights[-1][1] + data)
        else:
            flights.append((who, data))
    *flights, _, _ = flights[3:]
    return [(who, _lines(data)) for who, data in flights]


def _lines(data: bytes) -> "list[str]":
    """Return a flight's commands or replies, with a message's text in one line."""
    text = data.decode().replace(LETTER, "(the message)\r\n")
    # Some versions of smtplib write them small, and so does what stands in for these.
    verbs = r"(?im)^(?:mail from:|rcpt to:|data$)"
    return re.sub(verbs, lambda verb: verb[0].upper(), text.replace("\r\n", "\n")).splitlines()


def by_smtplib(server: "support.Server") -> None:
    with smtplib.SMTP(server.host, server.port, "client.example") as client:
        client.sendmail(SENDER, [ANN, BOB], LETTER)


def by_smtp(server: "support.Server") -> None:
    with fastsmtp.SMTP(server.host, server.port, "client.example") as client:
        client.sendmail(SENDER, [ANN, BOB], LETTER)


def by_mailer(server: "support.Server") -> None:
    messages = [fastsmtp.Message(SENDER, to, LETTER) for to in (ANN, BOB, "zoe@example.org")]
    with fastsmtp.Mailer(
        server.host, server.port, connections=1, local_hostname="client.example"
    ) as mailer:
        assert [delivery.status for delivery in mailer.send_many(messages)] == ["accepted"] * 3


def sequence(title: str, flights: Flights) -> str:
    """Draw a conversation: an arrow for each flight, with its lines."""
    width, left, right, line = 400, 34, 366, 15
    y = 62
    arrows = []
    for who, lines in flights:
        middle = y + line * len(lines) + 2
        begin, end, tip = (left, right, -7) if who == "client" else (right, left, 7)
        for number, words in enumerate(lines):
            at, anchor = (left + 10, "start") if who == "client" else (right - 10, "end")
            arrows.append(label(at, y + line * number + 8, words, "wire", anchor))
        arrows.append(
            f'<path class="{who}" d="M{begin} {middle} H{end} m{tip} -4 l{-tip} 4 l{tip} 4"/>'
        )
        y = middle + 16
    trips = sum(who == "client" for who, _ in flights)
    parts = [
        label(width / 2, 20, title, "title"),
        label(left, 42, "client", "small"),
        label(right, 42, "server", "small"),
        *(f'<path class="line" d="M{x} 50 V{y}"/>' for x in (left, right)),
        *arrows,
        label(width / 2, y + 18, f"{trips} round trips", "small"),
    ]
    return svg(width, y + 30, title, parts)


def pictures() -> "dict[str, str]":
    """Return all pictures by the names of their files."""
    pipelining = ("8BITMIME", "PIPELINING")
    return {
        "house.svg": house(),
        "one-by-one.svg": sequence(
            "smtplib: one message, two recipients", recorded(by_smtplib, *pipelining)
        ),
        "pipelined.svg": sequence(
            "fastsmtp.SMTP: the same, with PIPELINING", recorded(by_smtp, *pipelining)
        ),
        "mailer.svg": sequence(
            "Mailer: three messages, with PIPELINING", recorded(by_mailer, *pipelining)
        ),
        "chunking.svg": sequence(
            "Mailer: the same, with CHUNKING", recorded(by_mailer, *pipelining, "CHUNKING")
        ),
    }


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name, picture in pictures().items():
        (IMAGES / name).write_text(picture, "utf-8")
