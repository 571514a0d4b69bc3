"""The pages: every code block runs, every link leads somewhere, every figure and table is true.

Blocks of Python run against a server in this process, whatever host they name; lines for a shell
are parsed by the command they call, and run where that does no harm.  What a page's text
presupposes is in `NAMES`, what stands for a library in `STAND_INS`, what needs one in `NEEDS`.
"""

from __future__ import annotations

import contextlib
import email
import email.policy
import functools
import importlib.util
import json
import re
import shlex
import smtplib
import socket
import ssl
import subprocess
import sys
import types
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import EXTENSIONS, ModelServer, server_tls

import fastsmtp
from fastsmtp import __main__ as outer
from fastsmtp import cli
from fastsmtp.cli import exits

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]


def read(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


# -- the blocks ---------------------------------------------------------------


class Block(NamedTuple):
    """A fenced block: the page, the heading above it, and which one below that it is."""

    page: str
    heading: str
    number: int
    language: str
    text: str
    lead: str  # the last line above it that is not empty

    def __str__(self) -> str:
        return f"{self.page}: {self.heading} {self.number}"


def blocks_of(path: Path) -> Iterator[Block]:
    heading, number, lead, opened = "", 0, "", None
    inside: list[str] = []
    for line in path.read_text("utf-8").splitlines():
        if opened is not None:
            if line.strip() == "```":
                number += 1
                yield Block(path.name, heading, number, opened, "\n".join(inside) + "\n", lead)
                opened, lead = None, ""
            else:
                inside.append(line)
        elif line.startswith("```"):
            opened, inside = line[3:].strip(), []
        elif line.startswith("#"):
            heading, number = line.lstrip("# ").replace("`", ""), 0
        elif line.strip():
            lead = line
    assert opened is None, f"{path.name}: a block has no end"


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
FILE = re.compile(r"`([\w.]+\.(?:eml|csv))`:$")


def is_shell(block: Block) -> bool:
    return block.language in ("sh", "console") or block.text.startswith("fastsmtp ")


def test_there_is_a_test_for_each_kind_of_block():
    others = [b for b in BLOCKS if b not in PYTHON and not is_shell(b) and b.language != "json"]
    for block in others:
        is_markup = block.language.startswith("{")  # for Sphinx, which warns of what is wrong
        assert is_markup or FILE.match(block.lead) or block.text.startswith("From: "), str(block)


# -- what they find -----------------------------------------------------------

LETTER = "From: me@example.org\nTo: ann@example.org\nSubject: Hello\n\nIt works.\n"
USERS = {"user": "password", "u": "password", "news": "password", "me@example.org": "a token"}
HOSTS = ["localhost", "smtp.gmail.com", "smtp.office365.com"]
HOSTS += ["mail.example.org", "relay.example.org"]


def message() -> EmailMessage:
    return email.message_from_string(LETTER, policy=email.policy.default)


#: What a page's text, or a block above, presupposes, by name.
NAMES: dict[str, Any] = {
    "client_id": "an id",
    "fastsmtp": fastsmtp,
    "get_password": lambda: "password",
    "letter": lambda row: f"Subject: {row['id']}\n\nHello.\n",
    "letters": [("ann@example.org", b"Subject: Hello\r\n\r\nIt works.\r\n")],
    "message": message(),
    "messages": [message(), message()],
    "private_key": b"a key",
    "rows": [{"id": "1", "address": "ann@example.org", "email": "ann@example.org", "name": "Ann"}],
    "secret": "a secret",
    "ssl": ssl,
    "tenant": "a tenant",
}
#: Blocks in which a name means something else.
OTHER_NAMES: dict[str, dict[str, Any]] = {
    "README.md: fastsmtp 2": {"message": LETTER},
    "README.md: Many messages 2": {
        "letter": email.message_from_string("From: me@example.org\nTo: {{email}}\n\n{{name}}\n"),
        "rows": [{"email": "ann@example.org", "name": "Ann"}],
    },
    "mail-merge.md: Errors 1": {
        "template": fastsmtp.Template(
            email.message_from_string("From: me@example.org\nTo: {{email}}\n\nHello\n")
        )
    },
}
#: How many messages a block sends; those that are not here send none.
SENDS = {
    "README.md: fastsmtp 2": 1,
    "README.md: Many messages 1": 2,
    "README.md: Many messages 2": 1,
    "index.md: fastsmtp 3": 2,
    "quickstart.md: One message 1": 1,
    "quickstart.md: A thousand 1": 1000,
    "quickstart.md: For real 1": 1,
    "quickstart.md: For real 2": 1,
    "moving.md: Gmail and Google Workspace, OAuth 2.0 1": 3,
    "moving.md: Microsoft 365, OAuth 2.0 1": 1,
    "moving.md: Django 2": 3,
    "moving.md: Flask 1": 1,
    "moving.md: Celery 1": 1,
    "moving.md: logging 1": 1,
    "bulk.md: Sending many messages: Mailer 1": 1,
    "bulk.md: Connections 1": 1,
    "choosing.md: DKIM with fastsmtp 1": 1,
    "mail-merge.md: Mail merge: Template 1": 2,
}


def module(name: str, **contents: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    vars(made).update(contents)
    return made


class FakeCredentials:
    """google.oauth2.credentials.Credentials: has no token until it is refreshed."""

    valid, token = False, None

    @classmethod
    def from_authorized_user_file(cls, path: str, scopes: list[str]) -> FakeCredentials:
        assert (path, scopes) == ("token.json", ["https://mail.google.com/"])
        return cls()

    def refresh(self, request: object) -> None:
        self.valid, self.token = True, "a token"


class FakeApplication:
    """msal.ConfidentialClientApplication."""

    def __init__(self, client_id: str, *, client_credential: str, authority: str) -> None:
        assert authority == "https://login.microsoftonline.com/a tenant"

    def acquire_token_for_client(self, scopes: list[str]) -> dict[str, str]:
        return {"access_token": "a token"}


def past_the_proxy(*args: Any, proxy_type: int, proxy_addr: str, proxy_port: int) -> socket.socket:
    return socket.create_connection(*args)


#: Libraries that would need the network, or a proxy, and have no say in what is shown.
STAND_INS = {
    "dkim": module("dkim", sign=lambda *args, **named: b"DKIM-Signature: v=1\r\n"),
    "google": module("google"),
    "google.auth": module("google.auth"),
    "google.auth.transport": module("google.auth.transport"),
    "google.auth.transport.requests": module("google.auth.transport.requests", Request=object),
    "google.oauth2": module("google.oauth2"),
    "google.oauth2.credentials": module("google.oauth2.credentials", Credentials=FakeCredentials),
    "msal": module("msal", ConfidentialClientApplication=FakeApplication),
    "socks": module(
        "socks",
        SOCKS5=2,
        create_connection=past_the_proxy,
    ),
}
#: Libraries that a block is about: without them, it is compiled only.
NEEDS = {
    "moving.md: Django 2": "django",
    "moving.md: Flask 1": "flask_mail",
    "moving.md: Celery 1": "celery",
}


# -- what is done with what a block has made ----------------------------------


def use_backend(made: dict[str, Any]) -> None:
    """Have Django's mail go through the backend: one message, then two at once."""
    from django.conf import settings
    from django.core.mail import EmailMessage as DjangoMessage

    account = {"EMAIL_HOST_USER": "user", "EMAIL_HOST_PASSWORD": "password"}
    settings.configure(EMAIL_HOST="relay.example.org", EMAIL_PORT=587, **account)
    backend = made["MailerBackend"]()
    letters = [DjangoMessage("Hello", "x", "Me <me@example.org>", ["Ann <ann@example.org>"])] * 3
    assert backend.send_messages(letters[:1]) == 1
    assert backend.send_messages(letters[1:]) == 2
    bad = DjangoMessage("Hello", "x", "me@example.org", ["a\x01nn@example.org"])
    with pytest.raises(ValueError, match="control character"):
        backend.send_messages([bad])


def use_task(made: dict[str, Any]) -> None:
    letter = ("me@example.org", ["ann@example.org"], "Subject: Hello\n\nIt works.\n")
    assert made["send"].apply(args=letter).get() == "accepted"


def use_mailer(made: dict[str, Any]) -> None:
    assert made["mailer"].send(message()).status == "accepted"


THEN = {
    "moving.md: Django 2": use_backend,
    "moving.md: Celery 1": use_task,
    "bulk.md: Connections 1": use_mailer,
}


# -- Python -------------------------------------------------------------------


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for the hosts of the pages."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    names = ",".join(f"DNS:{host}" for host in HOSTS)
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    subject = ["-subj", "/CN=example.org", "-addext", f"subjectAltName={names}"]
    files = ["-keyout", f"{path}.key", "-out", str(path)]
    subprocess.run([*command.split(), *subject, *files], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.key").read_bytes())
    return path


@pytest.fixture
def server(pem: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    """The server that every host is, with every port; nothing leaves this machine."""
    mechanisms = "AUTH PLAIN LOGIN XOAUTH2 OAUTHBEARER"
    extensions = [*EXTENSIONS, "CHUNKING", "STARTTLS", mechanisms]
    with ModelServer(extensions, users=USERS, tls=server_tls(pem)) as running:

        def resolve(host: str, port: object, *args: object, **named: object) -> list[Any]:
            assert host in HOSTS, f"{host} is not in HOSTS"
            address = (running.host, running.port)
            return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)]

        trusting = functools.partial(ssl.create_default_context, cafile=str(pem))
        monkeypatch.setattr(ssl, "create_default_context", trusting)
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        monkeypatch.setattr(socket, "getfqdn", lambda name="": "client.example")
        yield running


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the files that the pages show or name."""
    monkeypatch.chdir(tmp_path)
    for block in BLOCKS:
        if name := FILE.match(block.lead):
            Path(name[1]).write_text(block.text, "utf-8")
    Path("message.eml").write_text(LETTER, "utf-8")
    Path("secret").write_text("password\n", "utf-8")
    Path("outbox").mkdir()
    return tmp_path


@contextlib.contextmanager
def tidied(made: dict[str, Any]) -> Iterator[None]:
    """Undo what lasts: installed classes, open connections, handlers."""
    smtp, handlers = smtplib.SMTP, []
    try:
        yield
        handlers = [made["handler"]] if "handler" in made else []
    finally:
        fastsmtp.uninstall()
        assert smtplib.SMTP is smtp
        if mailer := made.get("mailer"):  # or a function that makes one, once
            (mailer() if callable(mailer) else mailer).close()
        for handler in handlers:
            made["logging"].getLogger("app").removeHandler(handler)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python(block, server, here, monkeypatch):
    code = compile(block.text, str(block), "exec")
    if str(block) in NEEDS:
        pytest.importorskip(NEEDS[str(block)])
    for name, stand_in in STAND_INS.items():
        monkeypatch.setitem(sys.modules, name, stand_in)
    made = {**NAMES, **OTHER_NAMES.get(str(block), {}), "__name__": "page"}
    with tidied(made):
        exec(code, made)
        THEN.get(str(block), lambda made: None)(made)
    assert len(server.messages) == SENDS.get(str(block), 0), server.commands


def test_the_tables_name_blocks_that_there_are():
    there = set(map(str, PYTHON))
    for table in (OTHER_NAMES, SENDS, NEEDS, THEN):
        assert set(table) <= there


# -- other blocks -------------------------------------------------------------


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "json"], ids=str)
def test_json(block):
    assert json.loads(block.text)["status"]


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if not b.language and b.text.startswith("From: ")], ids=str
)
def test_letters_are_templates(block):
    parsed = email.message_from_string(block.text, policy=email.policy.default)
    assert {"name", "email"} <= fastsmtp.Template(parsed).fields


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the commands of a block: lines after a prompt where there is one, else all."""
    text = block.text.replace("\\\n", " ")
    prompt = "$ " if block.language == "console" else ""
    for line in text.splitlines():
        if line.startswith(prompt) and (words := shlex.split(line[len(prompt) :], comments=True)):
            yield words


SHELL = [(block, words) for block in BLOCKS if is_shell(block) for words in commands(block)]


def check_fastsmtp(words: list[str]) -> None:
    """Have the command line understood: names, types and requirements, and nothing is done."""
    if words[0] in ("run", "--version"):
        with contextlib.suppress(SystemExit):  # after printing the version
            outer._parser().parse_args(words)
        return
    words = [word.replace("/run/secrets/relay", "secret") for word in words]
    group = cli.group.make_context("fastsmtp", [], resilient_parsing=True)
    command = cli.group.get_command(group, words[0])
    command.make_context(words[0], words[1:], parent=group)


def check_pip(words: list[str]) -> None:
    (verb, what) = words
    name, _, extra = what.rstrip("]").partition("[")
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert verb == "install"
    assert f'name = "{name}"' in project
    assert not extra or re.search(rf"(?m)^{extra} = \[", project)


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for word in words:
        target = rf"(?m)^{re.escape(word)}:"
        assert re.match(r"(ARGS|PYTHON)=", word) or re.search(target, makefile), word


def check_python(words: list[str]) -> None:
    if words[:2] == ["-m", "fastsmtp"]:
        check_fastsmtp(words[2:])
    else:
        script, *arguments = words
        text = (ROOT / script).read_text("utf-8")
        assert all(re.search(rf"\b{argument}\b", text) for argument in arguments)


CHECKS = {"fastsmtp": check_fastsmtp, "pip": check_pip, "make": check_make, "python": check_python}


@pytest.mark.parametrize(
    ("block", "words"),
    SHELL,
    ids=lambda each: shlex.join(each)[:60] if isinstance(each, list) else str(each),
)
def test_shell(block, words, here, capsys):
    program, *arguments = words
    if program in CHECKS:
        CHECKS[program](arguments)
    else:
        assert (ROOT / program).is_file(), program


def output(block: Block) -> list[str]:
    """What the first command of a block prints, as the page has it, up to an ellipsis."""
    _, _, shown = block.text.partition("\n")
    return re.split(r"(?m)^(?:…|\$ )", shown)[0].splitlines()


def test_the_preview_is_as_shown(here, capsys):
    (block,) = [b for b in BLOCKS if "--preview 1" in b.text and b.language == "console"]
    cli.main(next(commands(block))[1:], "fastsmtp")
    printed = capsys.readouterr().out.replace(str(here.resolve()), "/home/library")
    assert printed.splitlines()[: len(output(block))] == output(block)


@pytest.mark.parametrize("block", [b for b in BLOCKS if "--version\n" in b.text], ids=str)
def test_the_version_is_as_shown(block):
    shape = r"fastsmtp (\S+) \(codec: (?:c|python), \w+ \d+\.\d+\.\d+\S*\)"
    (shown,) = output(block)
    assert re.fullmatch(shape, shown)[1] == re.fullmatch(shape, outer.version())[1]


# -- links and names ----------------------------------------------------------


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"(?m)^#+ (.*)$", path.read_text("utf-8"))
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {each.replace(" ", "-") for each in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text("utf-8"))
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.is_file(), target
        assert not anchor or anchor in anchors(there), target


def test_every_page_is_in_the_table_of_contents():
    listed = set(
        re.findall(r"(?m)^([\w-]+)$", "".join(b.text for b in blocks_of(DOCS / "index.md")))
    )
    assert listed == {page.stem for page in DOCS.glob("*.md")} - {"index"}


def test_the_reference_has_every_public_name():
    text = read("reference.md")
    missing = [name for name in fastsmtp.__all__ if not re.search(rf"(?::: |`){name}\b", text)]
    assert missing == []


# -- the command --------------------------------------------------------------


def section(name: str) -> str:
    return re.search(rf"(?ms)^## {name}$(.*?)(?=^## |\Z)", read("command.md"))[1]


def options(name: str) -> set[str]:
    group = cli.group.make_context("fastsmtp", [], resilient_parsing=True)
    command = cli.group.get_command(group, name)
    shown = [param for param in command.params if not getattr(param, "hidden", False)]
    return {each for param in shown for each in param.opts if each.startswith("--")} - {"--help"}


def documented(name: str) -> set[str]:
    return set(re.findall(r"(?<!\w)--[a-z][a-z-]+", section(name)))


@pytest.mark.parametrize("name", outer.COMMANDS)
def test_every_option_is_documented_and_no_other(name):
    inherited = options("send") if "as for [send]" in section(name) else set()
    assert options(name) - documented(name) - inherited == set()
    assert documented(name) - options(name) == {"--help", "--version"} & documented(name)


def test_every_exit_status_is_documented():
    table = section("send").split("### Exit status")[1]
    shown = {
        int(code) for row in re.findall(r"(?m)^\| ([\d, ]+) \|", table) for code in row.split(",")
    }
    ours = {value for value in vars(exits).values() if type(value) is int}
    assert shown == ours | {outer.EX_CONFIG, 143}  # 143: SIGTERM


# -- figures and pictures -----------------------------------------------------


def script(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


RUNS = json.loads(read("performance.json"))["runs"]


def tables(text: str) -> list[list[list[str]]]:
    """The rows of a page's tables of ratios, which have a column for each codec."""
    found = re.findall(r"(?m)(?:^\|.*\n)+", text)
    rows = [
        [re.split(r" *\| *", line.strip("|").strip()) for line in t.splitlines()] for t in found
    ]
    return [table for table in rows if table[0][-2:] == ["C", "Python"]]


def test_the_page_has_the_figures_of_the_data():
    text = read("performance.md")
    assert [table[2:] for table in tables(text)] == [run["rows"] for run in RUNS]
    for run in RUNS:
        assert f"{run['environment']}. From one run of `{run['command']}`." in text


def test_the_readme_has_no_other_figures():
    known = [row for run in RUNS for row in run["rows"]]
    shown = [row for table in tables((ROOT / "README.md").read_text("utf-8")) for row in table[2:]]
    assert shown
    assert [row for row in shown if row not in known] == []


def test_the_figures_in_the_text_are_of_the_tables():
    said = re.findall(r"\d[\d.]* x\b", read("performance.md").split("## The tables")[0])
    cells = " ".join(cell for run in RUNS for row in run["rows"] for cell in row)
    floor = {"3.3 x", "4.7 x"}  # of the bare loop, which no table has
    assert {figure for figure in said if figure not in cells} <= floor


def test_the_plots_are_drawn_from_the_data():
    plots = script("plots")
    for plot in plots.PLOTS:
        picture = (DOCS / "img" / f"{plot.name}.svg").read_text("utf-8")
        assert plots.fingerprint(plot, RUNS) in picture, "run: python docs/plots.py"


@pytest.fixture(scope="module")
def diagrams() -> types.ModuleType:
    return script("diagrams")


def test_the_diagrams_are_drawn_from_the_code(diagrams):
    for name, picture in diagrams.pictures().items():
        kept = (DOCS / "img" / name).read_text("utf-8")
        assert picture == kept, f"{name} has changed: python docs/diagrams.py"


def test_imports_point_downwards(diagrams):
    house = read("how-it-works.md")
    order = re.findall(r"(?m)^\| `(\w+)` \|", house)
    graph = diagrams.imports()
    assert sorted(order) == sorted(graph)
    for place, name in enumerate(order):
        assert graph[name] <= set(order[place + 1 :]), f"{name} imports what stands above it"
