"""`fastsmtp send --template --data`: one letter, a row of data for each message."""

from __future__ import annotations

import email
import email.policy
import hashlib
import json
import os
import re
import subprocess
import sys
from email.message import EmailMessage

import pytest
from click.testing import CliRunner
from support import EXTENSIONS, ModelServer, not_on_pypy

from fastsmtp.cli import preview, rows
from fastsmtp.cli.merge import Merge, parse_letter, read_template
from fastsmtp.cli.rows import open_table
from fastsmtp.cli.send import LARGE, command
from fastsmtp.cli.sources import Letter

LETTER = """\
From: The Library <library@example.org>
To: {{name}} <{{email}}>
Subject: {{name}}, your books are due

Dear {{name}},

please bring back “{{title}}”.
"""
CSV = """\
email,name,title
ann@example.org,Ann,Emma
zoe@example.org,Zoë,"Wuthering Heights, vol. 2"
"""
SEMICOLONS = """\
email;name;title
ann@example.org;Ann;Emma
zoe@example.org;Zoë;Wuthering Heights, vol. 2
"""
PEOPLE = [
    {"email": "ann@example.org", "name": "Ann", "title": "Emma"},
    {"email": "zoe@example.org", "name": "Zoë", "title": "Wuthering Heights, vol. 2"},
]
JSON_LINES = "".join(json.dumps(person) + "\n" for person in PEOPLE)


@pytest.fixture
def letter(tmp_path):
    """Return a function that writes a letter and gives its path."""

    def write(text: str | bytes = LETTER):
        path = tmp_path / "letter.eml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return path

    return write


@pytest.fixture
def people(tmp_path):
    """Return a function that writes data and gives its path."""

    def write(text: str | bytes = CSV, name: str = "people.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return path

    return write


def invoke(*arguments: object, stdin: str | bytes = ""):
    return CliRunner().invoke(command, [str(a) for a in arguments], input=stdin)


def merge(letter, data, *arguments: object, stdin: str | bytes = ""):
    return invoke("--template", letter, "--data", data, *arguments, stdin=stdin)


def at(server: ModelServer) -> tuple[str, str]:
    return "--server", f"{server.host}:{server.port}"


def results_of(path) -> dict[str, dict]:
    """Return the results by id; each id has one."""
    with open(path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    results = [line for line in lines if line["status"] != "started"]
    found = {line["id"]: line for line in results}
    assert len(found) == len(results)
    return found


def arrived(server: ModelServer) -> dict[str, EmailMessage]:
    """Return the messages that arrived, parsed, by their one recipient."""
    found = {}
    for message in server.messages:
        (recipient,) = message.recipients
        assert recipient not in found
        found[recipient] = email.message_from_bytes(message.data, policy=email.policy.default)
    return found


def usage_error(done) -> str:
    """Return what is said against the command line, without line breaks."""
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("Usage: ")
    assert done.stdout == ""
    return done.stderr.partition("Error: ")[2].rstrip("\n")


# -- what arrives -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("people.csv", CSV),
        ("PEOPLE.CSV", "\ufeff" + CSV),
        ("people.csv", CSV.replace("\n", "\r\n")),
        ("people.csv", CSV.replace("email,name", " email , name ")),
        ("people.csv", "\n" + CSV.replace("\n", "\n\n")),
        ("people.csv", CSV.rstrip("\n")),
        ("people.csv", "\ufeff\r\n" + SEMICOLONS.replace("\n", "\r\n")),
        ("people.csv", SEMICOLONS.replace(";", "\t")),
        ("people.jsonl", JSON_LINES),
        ("people.ndjson", "\ufeff" + JSON_LINES.replace("\n", "\r\n")),
        ("people.jsonl", "\n" + JSON_LINES.replace("\n", "\n \n")),
    ],
)
def test_what_arrives(letter, people, name, data):
    with ModelServer() as server:
        done = merge(letter(), people(data, name), *at(server))
    assert (done.exit_code, done.stderr) == (0, "")
    assert "  accepted           2\n" in done.stdout
    assert {message.sender for message in server.messages} == {"library@example.org"}
    found = arrived(server)
    assert set(found) == {"ann@example.org", "zoe@example.org"}
    ann, zoe = found["ann@example.org"], found["zoe@example.org"]
    assert ann["From"] == zoe["From"] == "The Library <library@example.org>"
    assert (ann["To"], ann["Subject"]) == ("Ann <ann@example.org>", "Ann, your books are due")
    assert (zoe["To"], zoe["Subject"]) == ("Zoë <zoe@example.org>", "Zoë, your books are due")
    assert ann.get_content().splitlines() == ["Dear Ann,", "", "please bring back “Emma”."]
    assert zoe.get_content().splitlines()[2] == "please bring back “Wuthering Heights, vol. 2”."


def test_a_server_that_takes_ascii_only(letter, people):
    with ModelServer(["PIPELINING"]) as server:
        assert merge(letter(), people(), *at(server)).exit_code == 0
    assert all(message.wire.isascii() for message in server.messages)
    assert "“Emma”" in arrived(server)["ann@example.org"].get_content()


def test_the_sender_of_the_command_line(letter, people):
    with ModelServer() as server:
        assert merge(letter(), people(), *at(server), "--from", "<>").exit_code == 0
    assert [message.sender for message in server.messages] == ["", ""]


def test_all_recipients_of_the_letter(letter, people):
    fields = "Cc: desk@example.org\nBcc: {{title}}@example.org\nSubject:"
    with ModelServer() as server:
        done = merge(
            letter(LETTER.replace("Subject:", fields)), people(CSV), *at(server), "--limit", 1
        )
    assert done.exit_code == 0
    (message,) = server.messages
    assert set(message.recipients) == {"ann@example.org", "desk@example.org", "Emma@example.org"}
    assert b"Bcc" not in message.wire
    assert b"Emma@" not in message.wire


def test_an_address_that_is_there_twice(letter, people):
    with ModelServer() as server:
        text = LETTER.replace("Subject:", "Cc: <{{email}}>\nSubject:")
        assert merge(letter(text), people(), *at(server)).exit_code == 0
    assert set(arrived(server)) == {"ann@example.org", "zoe@example.org"}


def test_options_of_other_sources_hold(letter, people):
    with ModelServer([*EXTENSIONS, "DSN"]) as server:
        done = merge(
            letter(), people(), *at(server), "--notify", "never", "--limit", 1, "--connections", 1
        )
    assert done.exit_code == 0
    (message,) = server.messages
    assert message.parameters[1] == "NOTIFY=NEVER"


def test_refusals_are_accounted_for(letter, people, tmp_path):
    data, path = people(), tmp_path / "results"
    with ModelServer(replies={"RCPT": b"550 5.1.1 no such user\r\n"}) as server:
        done = merge(letter(), data, *at(server), "--results", path)
    assert done.exit_code == 1
    found = results_of(path)
    assert {name: record["status"] for name, record in found.items()} == {
        f"{data}:2": "rejected",
        f"{data}:3": "rejected",
    }


def test_large_messages_are_not_held_while_they_wait(letter, people):
    with ModelServer() as server:
        done = merge(letter(LETTER + "x" * 70 + "\n" + "y\n" * LARGE), people(), *at(server))
    assert done.exit_code == 0
    found = arrived(server)
    assert len(found) == 2
    for recipient, name in (("ann@example.org", "Dear Ann,"), ("zoe@example.org", "Dear Zoë,")):
        text = found[recipient].get_content().replace("\r\n", "\n")
        assert text.startswith(name)
        assert text.count("y\n") == LARGE


# -- letters ------------------------------------------------------------------------

ASCII_LETTER = "From: a@example.org\nTo: {{email}}\nSubject: {{name}}\n\n{{title}}\n"


def text_of(part: EmailMessage) -> str:
    return part.get_content().replace("\r\n", "\n")


def contents(letter_path, data, *arguments: object) -> EmailMessage:
    """Return the message that is made of the first row."""
    with ModelServer() as server:
        done = merge(letter_path, data, *at(server), "--limit", 1, *arguments)
    assert (done.exit_code, done.stderr) == (0, "")
    (message,) = arrived(server).values()
    return message


@pytest.mark.parametrize(
    "fields",
    [
        "",
        "MIME-Version: 1.0\n",
        "Content-Type: text/plain\n",
        "Content-Type: text/plain; charset=utf-8\n",
        "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nX-A: {{name}}\n",
        "Content-Transfer-Encoding: 8bit\n",
    ],
)
def test_utf_8_written_by_hand_with_and_without_mime(letter, people, fields):
    text = "From: Café Zoë <a@example.org>\nTo: {{email}}\nSubject: Grüße,\n für {{name}}\n"
    message = contents(letter(f"{text}{fields}\nSchön, {{{{title}}}}!\n"), people())
    assert message["From"] == "Café Zoë <a@example.org>"
    assert message["Subject"] == "Grüße, für Ann"
    assert message["MIME-Version"] == "1.0"
    assert message.get_content_type() == "text/plain"
    assert message.get_content_charset() == "utf-8"
    assert text_of(message) == "Schön, Emma!\n"


def test_values_outside_ascii_in_a_letter_of_ascii(letter, people):
    message = contents(letter(ASCII_LETTER), people("email,name,title\nz@example.org,Zoë,Größe\n"))
    assert message["Subject"] == "Zoë"
    assert text_of(message) == "Größe\n"


def test_a_letter_with_a_byte_order_mark(letter, people):
    assert contents(letter("\ufeff" + LETTER), people())["Subject"] == "Ann, your books are due"


def test_html_whose_charset_is_not_named(letter, people):
    text = ASCII_LETTER.replace("\n\n", "\nContent-Type: text/html\n\n<p>Ü ")
    message = contents(letter(text), people())
    assert message.get_content_type() == "text/html"
    assert text_of(message) == "<p>Ü Emma\n"


def test_a_letter_in_a_charset_of_its_own(letter, people):
    text = ASCII_LETTER.replace("\n\n", "\nContent-Type: text/plain; charset=iso-8859-1\n\nÜ ")
    assert text_of(contents(letter(text.encode("iso-8859-1")), people())) == "Ü Emma\n"


def test_a_letter_with_an_attachment(letter, people):
    written = EmailMessage()
    written["From"], written["To"] = "a@example.org", "{{name}} <{{email}}>"
    written["Subject"] = "{{title}}"
    written.set_content("Text for {{name}}\n")
    written.add_alternative("<p>HTML for {{name}}</p>\n", subtype="html")
    written.add_attachment(b"\x00{{name}}\xff", "application", "octet-stream", filename="a.bin")
    message = contents(letter(written.as_bytes()), people())
    assert text_of(message.get_body(["plain"])) == "Text for Ann\n"
    assert text_of(message.get_body(["html"])) == "<p>HTML for Ann</p>\n"
    (attachment,) = message.iter_attachments()
    assert attachment.get_content() == b"\x00{{name}}\xff"


def test_an_attached_text_of_which_nobody_knows_the_charset(letter, people):
    text = """\
From: a@example.org
To: {{email}}
Subject: {{name}}
Content-Type: multipart/mixed; boundary=x

--x

{{title}}
--x
Content-Type: text/csv
Content-Disposition: attachment; filename=list.csv
Content-Transfer-Encoding: base64

/ADk
--x--
"""
    (attachment,) = contents(letter(text), people()).iter_attachments()
    assert attachment["Content-Type"] == "text/csv"
    assert attachment.get_payload(decode=True) == b"\xfc\x00\xe4"


def test_values_in_html_are_text(letter, people):
    text = LETTER.replace("\n\nDear", "\nContent-Type: text/html\n\nDear")
    message = contents(letter(text), people("email,name,title\na@example.org,<b>,R&D\n"))
    assert message["To"].addresses[0].display_name == "<b>"
    assert text_of(message).startswith("Dear &lt;b&gt;,")
    assert "“R&amp;D”" in text_of(message)


def test_parts_written_by_hand(letter, people):
    text = """\
From: a@example.org
To: {{email}}
Subject: {{name}}
Content-Type: multipart/alternative; boundary=x

--x

Grüße, {{title}}
--x
Content-Type: text/html

<p>Grüße, {{title}}</p>
--x--
"""
    message = contents(letter(text), people())
    assert text_of(message.get_body(["plain"])) == "Grüße, Emma"
    assert text_of(message.get_body(["html"])) == "<p>Grüße, Emma</p>"


def test_what_was_signed_and_what_is_passed_on_stays_as_it_is(letter, people):
    mime = "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n"
    inner = f"Subject: für Ü\n{mime}\nÜ\n"
    text = f"""\
From: a@example.org
To: {{{{email}}}}
Subject: {{{{name}}}} {{{{title}}}}
Content-Type: multipart/mixed; boundary=x

--x
Content-Type: message/rfc822
Content-Transfer-Encoding: 8bit

{inner}
--x
Content-Type: multipart/signed; boundary=y; protocol="application/pgp-signature"

--y

Signed.
--y
Content-Type: application/pgp-signature

=none
--y--
--x--
"""
    passed_on, signed = parse_letter(text.encode()).iter_parts()
    untouched = email.message_from_bytes(inner.encode(), policy=email.policy.default)
    assert list(passed_on.get_payload(0).raw_items()) == list(untouched.raw_items())
    assert b"\n--y\n\nSigned.\n--y\n" in signed.as_bytes()
    done = merge(letter(text), people(), "--preview", 1)
    assert (done.exit_code, done.stderr) == (0, "")
    assert re.search(r"\n----- message/rfc822\n\(\d+ octets\)\n----- text/plain\n", done.stdout)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "it has no header"),
        (b"\nDear {{name}},\n", "it has no header"),
        (b"Dear {{name}},\n\nhow are you?\n", "it has no header"),
        (b"Subject: x\nDear {{name}},\n\nhow are you?\n", "it is no message as RFC 5322"),
        (
            b"From: a@example.org\nTo: {{email}}\nContent-Type: multipart/mixed\n\nx\n",
            "it is no message as RFC 5322",
        ),
        (
            b"From: a@example.org\nTo: {{email}}\n\n{{name}} {{title}} \xfc\n",
            "a text is neither ASCII nor UTF-8, and no Content-Type names its charset",
        ),
        (
            b"From: \xfc <a@example.org>\nTo: {{email}}\n\n{{name}} {{title}}\n",
            "the field From is neither ASCII nor UTF-8",
        ),
        (
            "From: a@example.org\nTo: {{email}}\nSubject: ü\u2028x\n\n{{name}}\n".encode(),
            "the field Subject cannot be read: ",
        ),
        (b"From: a@example.org\nTo: {{email}}\n\n{{name {{title}}\n", "'{{name {{title}}"),
        (b"To: {{email}}\n\n{{name}} {{title}}\n", "the template has no sender"),
        (b"From: a@example.org\nTo: {{email}}\nCc: <a@[b\n\n{{name}} {{title}}\n", "the Cc field"),
        ("From: (ü):\nTo: {{email}}\n\nx\n".encode(), "the field From cannot be read"),
        (b"From: {{email}}\n\n{{name}} {{title}}\n", "the template has no recipient"),
    ],
)
def test_letters_that_are_none(letter, people, text, reason):
    path = letter(text)
    assert usage_error(merge(path, people())).startswith(f"{path}: {reason}")


def test_what_a_letter_lacks_is_added_once():
    message = parse_letter(b"From: a@example.org\n\nx\n")
    assert message.items() == [
        ("From", "a@example.org"),
        ("Content-Type", 'text/plain; charset="utf-8"'),
        ("MIME-Version", "1.0"),
    ]
    full = (
        b"MIME-Version: 1.0\nContent-Type: text/plain; charset=us-ascii\n"
        b"Content-Transfer-Encoding: 7bit\n\nx\n"
    )
    assert parse_letter(full).as_bytes() == full


# -- the command line ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "Missing argument 'SOURCE...', or --template and --data."),
        (["--template", "letter.eml"], "--template needs --data"),
        (["--data", "people.csv"], "--data needs --template"),
        (["--template", "letter.eml", "x"], "--template needs --data"),
        (["--data-format", "csv", "x"], "--data-format needs --template and --data"),
        (["--id-column", "email", "x"], "--id-column needs --template and --data"),
        (["--ignore-columns", "x"], "--ignore-columns needs --template and --data"),
        (["--preview", "1", "x"], "--preview needs --template and --data"),
        (["+", "x"], "--template and SOURCE exclude each other"),
        (
            ["+", "--to", "a@example.org"],
            "--template and --to exclude each other: the letter's To, Cc and Bcc count",
        ),
        (["+", "--preview", "1", "--dry-run"], "--preview and --dry-run exclude each other"),
        (["+", "--preview", "0"], "Invalid value for '--preview': 0 is not in the range x>=1."),
        (["--template", "letter.eml", "--data", "-"], "--data - needs --data-format"),
        (
            ["--template", "letter.eml", "--data", "letter.eml"],
            "--data letter.eml needs --data-format (its name ends in none of .csv, .jsonl, .nd",
        ),
        (["+", "--id-column", "id"], "--id-column: people.csv has no column 'id'"),
    ],
)
def test_usage(letter, people, tmp_path, monkeypatch, arguments, reason):
    monkeypatch.chdir(tmp_path)
    letter()
    people()
    people("From: a@example.org\nTo: b@example.org\n\n", "x")
    both = ["--template", "letter.eml", "--data", "people.csv"]
    given = [*both, *arguments[1:]] if arguments[:1] == ["+"] else arguments
    assert usage_error(invoke(*given)).startswith(reason)


def test_files_that_are_not_there(letter, people):
    done = merge("/nowhere.eml", people())
    assert (done.exit_code, done.stderr) == (66, "Error: /nowhere.eml: No such file or directory\n")
    done = merge(letter(), "/nowhere.csv")
    assert (done.exit_code, done.stderr) == (66, "Error: /nowhere.csv: No such file or directory\n")


# -- columns and fields -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("people.csv", "email,name,city\na@example.org,Ann,Rome\n"),
        ("people.csv", "email,name,city\n"),
        ("people.jsonl", '{"email": "a@example.org", "name": "Ann", "city": "Rome"}\n'),
    ],
)
@pytest.mark.parametrize("ignore", [[], ["--ignore-columns"]])
def test_a_field_without_a_column(letter, people, name, data, ignore):
    with ModelServer() as server:
        done = merge(letter(), people(data, name), *at(server), *ignore)
    assert usage_error(done) == (
        f"{name} has no column 'title', which letter.eml asks for; "
        "its columns are 'email', 'name', 'city'"
    )
    assert not server.commands


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("people.csv", CSV.replace("\n", ",x,\n").replace("title,x,", "title,city,")),
        (
            "people.jsonl",
            "".join(json.dumps({**person, "city": 1, "": None}) + "\n" for person in PEOPLE),
        ),
    ],
)
def test_a_column_without_a_field(letter, people, name, data):
    path = people(data, name)
    with ModelServer() as server:
        done = merge(letter(), path, *at(server))
        assert usage_error(done) == (
            f"letter.eml has no field 'city', (without a name), which {name} has a column for; "
            "--ignore-columns lets it have such"
        )
        assert not server.commands
        assert merge(letter(), path, *at(server), "--ignore-columns").exit_code == 0
    assert len(server.messages) == 2


def test_two_columns_of_one_name(letter, people):
    data = people("email,name,title,name\na@example.org,Ann,Emma,Bob\n")
    assert usage_error(merge(letter(), data)) == "people.csv has two columns 'name'"


@pytest.mark.parametrize(
    ("name", "data", "status", "output"),
    [
        ("people.csv", "email,name,title\n", 0, "Nothing to send.\n"),
        ("people.csv", "email,name,title\n\n\n", 0, "Nothing to send.\n"),
        ("people.jsonl", "", 0, "Nothing to send.\n"),
        ("people.jsonl", "\n", 0, "Nothing to send.\n"),
        ("people.csv", "", 66, ""),
        ("people.csv", "\n\n", 66, ""),
    ],
)
@pytest.mark.parametrize("more", [[], ["--preview", 1]], ids=["send", "preview"])
def test_no_rows(letter, people, name, data, status, output, more):
    path = people(data, name)
    done = merge(letter(), path, "--server", "127.0.0.1:1", *more)
    assert (done.exit_code, done.stdout) == (status, output)
    if status:
        assert done.stderr == (
            f"Error: {path} is empty: a CSV file begins with the names of its columns\n"
        )


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("people.csv", CSV.encode("utf-16"), "is not text in UTF-8"),
        ("people.csv", b"email,name,t\xefttle\n", "is not text in UTF-8"),
        ("people.csv", b'email,name,"title\n', ": line 1: "),
        ("people.jsonl", b"\n{'email': 1}\n", ": line 2: the line is not JSON: Expecting property"),
        ("people.jsonl", b"[]\n", ": line 1: the line is not a JSON object"),
        ("people.jsonl", JSON_LINES.encode("utf-16"), ": line 1: the line is not text in UTF-8"),
    ],
)
def test_data_that_is_none(letter, people, name, data, reason):
    path = people(data, name)
    with ModelServer() as server:
        done = merge(letter(), path, *at(server))
    assert done.exit_code == 66
    assert done.stderr.replace(f"{path} ", f"{path}").startswith(f"Error: {path}{reason}")
    assert not server.commands


# -- rows that are wrong ------------------------------------------------------------

GOOD = '"b@example.org","Bob","Dune"\n'


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a@example.org,Ann", "the row has 2 cells, and the header has 3"),
        ("a@example.org,Ann,Emma,", "the row has 4 cells, and the header has 3"),
        ("a@example.org;Ann;Emma", "the row has 1 cells, and the header has 3"),
        (b"a@example.org,Ann,\xfcber", "the row is not text in UTF-8"),
        (b"a@example.org,Ann,\0", "the row is not text in UTF-8"),
        ('a@example.org,"Ann\nBcc: x@example.org",Emma', ""),
        ('"a@example.org\r\nBcc: x@example.org",Ann,Emma', ""),
        ('"a@example.org>, <x@example.org",Ann,Emma', ""),
        ('"a@example.org, x@example.org",Ann,Emma', ""),
        (",Ann,Emma", ""),
        ("a b@example.org,Ann,Emma", ""),
    ],
)
def test_a_row_that_is_wrong_costs_no_other(letter, people, tmp_path, row, reason):
    octets = row if isinstance(row, bytes) else row.encode()
    data = people(b"email,name,title\n" + GOOD.encode() + octets + b"\n" + CSV.encode()[17:])
    path = tmp_path / "results"
    with ModelServer() as server:
        done = merge(letter(), data, *at(server), "--results", path)
    assert done.exit_code == 1
    assert set(arrived(server)) == {"b@example.org", "ann@example.org", "zoe@example.org"}
    found = results_of(path)
    assert len(found) == 4
    assert found[f"{data}:3"]["status"] == "not_sent"
    error = found[f"{data}:3"]["error"]
    assert error.startswith(reason)
    assert f"Cannot be sent: {data}:3: {error}\n" in done.stderr
    last = 5 + row.count("\n") if isinstance(row, str) else 5
    assert found[f"{data}:{last}"]["status"] == "accepted"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", None),
        ('{"email": "a@example.org", "name": "Ann"}', "title"),
        ('{"email": "a@example.org", "name": "Ann", "title": "x", "city": "y"}', "city"),
        ('{"email": "a@example.org", "name": "Ann", "title": null}', "title"),
        ('{"email": "a@example.org", "name": "Ann", "title": ["x"]}', "title"),
        ('{"email": "a@example.org", "name": "Ann", "title": true}', "title"),
        ('{"email": "a@example.org", "name": "Ann", "title": NaN}', "NaN is no value"),
        ('{"email": "a@example.org", "name": "Ann", "name": "x"}', "'name' is there twice"),
        ('{"email": "a@example.org", "name": "Ann\\nBcc: x@example.org", "title": "x"}', "name"),
        ('{"email": "a@example.org", "name": "\\ud800", "title": "x"}', ""),
        ('{"email": ', "the line is not JSON: Expecting value, column 10"),
        ("[" * 100_000, "the line is not JSON"),
        ("7", "the line is not a JSON object"),
        (b'{"email": "\xff"}', "the line is not text in UTF-8"),
    ],
)
def test_an_object_that_is_wrong_costs_no_other(letter, people, tmp_path, line, reason):
    first, second = JSON_LINES.splitlines()
    octets = line if isinstance(line, bytes) else line.encode()
    data = people(b"\n".join([first.encode(), octets, second.encode()]), "people.jsonl")
    path = tmp_path / "results"
    with ModelServer() as server:
        done = merge(letter(), data, *at(server), "--results", path)
    assert set(arrived(server)) == {"ann@example.org", "zoe@example.org"}
    found = results_of(path)
    if reason is None:
        assert (done.exit_code, len(found)) == (0, 2)
        return
    assert done.exit_code == 1
    error = found[f"{data}:2"]["error"]
    assert reason in error
    assert f"Cannot be sent: {data}:2: {error}\n" in done.stderr


def test_numbers_stay_as_they_are_written(letter, people):
    line = '{"email": "a@example.org", "name": 12.50, "title": 100000000000000000000001}\n'
    message = contents(letter(), people(line, "people.jsonl"))
    assert message["Subject"] == "12.50, your books are due"
    assert "“100000000000000000000001”" in text_of(message)


def test_quotes_that_do_not_match_end_the_run(letter, people, tmp_path):
    data, path = people(CSV + 'x@example.org,"X" x,Y\ny@example.org,Y,Z\n'), tmp_path / "results"
    with ModelServer() as server:
        done = merge(letter(), data, *at(server), "--results", path)
    assert done.exit_code == 66
    assert f"Error: {data}: line 4: " in done.stderr
    assert set(arrived(server)) == {"ann@example.org", "zoe@example.org"}
    assert {record["status"] for record in results_of(path).values()} == {"accepted"}


def test_newlines_in_cells_do_not_shift_the_lines(letter, people, tmp_path):
    data = people(
        'email,name,title\n\na@example.org,Ann,"one\ntwo\r\nthree"\n\nbad\nb@example.org,Bob,x\n'
    )
    path = tmp_path / "results"
    with ModelServer() as server:
        done = merge(letter(), data, *at(server), "--results", path)
    assert done.exit_code == 1
    found = {name: record["status"] for name, record in results_of(path).items()}
    assert found == {
        f"{data}:3": "accepted",
        f"{data}:7": "not_sent",
        f"{data}:8": "accepted",
    }
    text = arrived(server)["a@example.org"].get_content()
    assert "“one\ntwo\nthree”" in text.replace("\r\n", "\n")


# -- ids ----------------------------------------------------------------------------


def test_resume(letter, people, tmp_path):
    data, path = people(CSV + "bad\n"), tmp_path / "results"
    replies = {("RCPT", 2): b"451 4.2.0 later\r\n"}
    with ModelServer(replies=replies) as server:
        arguments = [*at(server), "--connections", 1, "--resume", path]
        first = merge(letter(), data, *arguments)
        assert first.exit_code == 1
        people(CSV + "bob@example.org,Bob,Dune\n")
        server.replies.clear()
        second = merge(letter(), data, *arguments)
        assert second.exit_code == 0
        assert "  skipped            1\n" in second.stdout
        assert merge(letter(), data, *arguments).stdout.startswith("0 messages to ")
    assert set(arrived(server)) == {"ann@example.org", "zoe@example.org", "bob@example.org"}


def test_resume_sends_to_those_who_have_not_got_it(letter, people, tmp_path):
    path = tmp_path / "results"
    template = letter(LETTER.replace("Subject:", "Cc: desk@example.org\nSubject:"))
    with ModelServer(replies={("RCPT", 2): b"451 4.2.0 later\r\n"}) as server:
        arguments = [*at(server), "--connections", 1, "--limit", 1, "--resume", path]
        assert merge(template, people(), *arguments).exit_code == 75
        server.replies.clear()
        assert merge(template, people(), *arguments).exit_code == 0
    first, second = server.messages
    assert first.recipients + second.recipients == ["ann@example.org", "desk@example.org"]
    assert first.wire == second.wire


def test_ids_from_a_column(letter, people, tmp_path):
    data, path = (
        people("id," + CSV.replace("\na", "\n007,a").replace("\nz", "\n,z")),
        tmp_path / "r",
    )
    arguments = ["--id-column", "id", "--resume", path]
    with ModelServer() as server:
        done = merge(letter(), data, *at(server), *arguments)
        assert done.exit_code == 1
        reason = "the column 'id' has no id: ''"
        assert f"Cannot be sent: {data}:3: {reason}\n" in done.stderr
        assert {n: r["status"] for n, r in results_of(path).items()} == {
            "007": "accepted",
            f"{data}:3": "not_sent",
        }
        header, ann, zoe = data.read_text("utf-8").splitlines()
        moved = people("\n".join([header, "8" + zoe, "9,x", ann]), "moved.csv")
        done = merge(letter(), moved, *at(server), *arguments)
        assert done.exit_code == 1
        assert f"Cannot be sent: {moved}:3: the row has 2 cells" in done.stderr
    assert set(arrived(server)) == {"ann@example.org", "zoe@example.org"}


def test_an_id_that_does_not_tell_the_line(letter, people, tmp_path):
    data = people(CSV + '"c@example.org, d@example.org",Bob,x\n')
    path = tmp_path / "results"
    with ModelServer() as server:
        done = merge(letter(), data, *at(server), "--id-column", "title", "--results", path)
    assert done.exit_code == 1
    record = results_of(path)["x"]
    assert record["error"].startswith("line 4: ")
    assert f"Cannot be sent: x: {record['error']}\n" in done.stderr


def test_a_number_as_an_id(letter, people, tmp_path):
    lines = "".join(json.dumps({**p, "id": n}) + "\n" for n, p in enumerate(PEOPLE))
    path = tmp_path / "results"
    arguments = ["--id-column", "id", "--results", path]
    with ModelServer() as server:
        data = people(lines + '{"id": null}\n', "people.jsonl")
        assert merge(letter(), data, *at(server), *arguments).exit_code == 1
    assert set(results_of(path)) == {"0", "1", f"{data}:3"}


@pytest.mark.parametrize(("form", "data"), [("csv", CSV), ("jsonl", JSON_LINES)])
def test_stdin(letter, tmp_path, form, data):
    path = tmp_path / "results"
    with ModelServer() as server:
        arguments = [*at(server), "--data-format", form, "--resume", path]
        done = merge(letter(), "-", *arguments, stdin=data)
        assert (done.exit_code, done.stderr) == (0, "")
        found = results_of(path)
        assert all(name.startswith("sha256:") for name in found)
        # Another stream, with the same rows and one more.
        more = (
            data.replace("ann@", "bob@").splitlines()[-2]
            + "\n"
            + "".join(line + "\n" for line in data.splitlines()[-2:])
        )
        header = "email,name,title\n" if form == "csv" else ""
        done = merge(letter(), "-", *arguments, stdin=header + more)
        assert done.exit_code == 0
        assert "  skipped            2\n" in done.stdout
    assert set(arrived(server)) == {"ann@example.org", "zoe@example.org", "bob@example.org"}


def test_what_is_wrong_on_stdin_is_told_with_its_line(letter, tmp_path):
    path = tmp_path / "results"
    with ModelServer() as server:
        arguments = [*at(server), "--data-format", "csv", "--results", path]
        done = merge(letter(), "-", *arguments, stdin=CSV + "bad\n")
    assert done.exit_code == 1
    identity = "sha256:" + hashlib.sha256(b'["bad"]').hexdigest()
    reason = "line 4: the row has 1 cells, and the header has 3"
    assert results_of(path)[identity]["error"] == reason
    assert f"Cannot be sent: {identity}: {reason}\n" in done.stderr
    assert "  1 x the row has 1 cells, and the header has 3\n" in done.stdout


# -- looking at it first ------------------------------------------------------------


def test_preview(letter, people):
    data = people(CSV + "bad\n")
    done = merge(letter(), data, "--preview", 2, "--server", "127.0.0.1:1", "--from", "b@x")
    assert (done.exit_code, done.stderr) == (0, "")
    first, second = done.stdout.split("=====")[1:]
    lines = first.splitlines()
    assert lines[:6] == [
        f" {data}:2",
        "MAIL FROM:<b@x>",
        "RCPT TO:<ann@example.org>",
        "-----",
        "From: The Library <library@example.org>",
        "To: Ann <ann@example.org>",
    ]
    assert lines[-5:] == ["-----", "Dear Ann,", "", "please bring back “Emma”.", ""]
    assert "\nTo: Zoë <zoe@example.org>\nSubject: Zoë, your books are due\n" in second
    assert "\nplease bring back “Wuthering Heights, vol. 2”.\n" in second


def test_preview_of_what_cannot_be_made(letter, people):
    data = people(CSV + "bad\n")
    done = merge(letter(), data, "--preview", 9)
    assert done.exit_code == 1
    assert done.stdout.count("=====") == 2
    assert done.stderr == (f"Cannot be sent: {data}:4: the row has 1 cells, and the header has 3\n")


def test_preview_of_parts(letter, people):
    written = EmailMessage()
    written["From"], written["To"] = "a@example.org", "{{name}} <{{email}}>"
    written["Subject"] = "{{title}} \u00fc"
    written.set_content("Text for {{name}}\n")
    written.add_alternative("<p>HTML for {{name}} \u00fc</p>\n", subtype="html", cte="base64")
    written.add_attachment(b"\x00" * 1234, "application", "octet-stream", filename="a.bin")
    data = people(CSV.replace("Emma", "Emma\x1b[31m\x07"))
    done = merge(letter(written.as_bytes()), data, "--preview", 2)
    if done.exit_code:  # a control character may be refused as well
        assert "\x1b" not in done.output
    assert "----- text/html\n<p>HTML for Zoë ü</p>\n" in done.stdout
    assert "----- text/plain\nText for Zoë\n" in done.stdout
    assert "----- application/octet-stream, a.bin\n(1,234 octets)\n" in done.stdout
    assert "Subject: Wuthering Heights, vol. 2 ü\n" in done.stdout
    assert "\x1b" not in done.stdout


def test_preview_of_what_nobody_can_decode():
    content = (
        b"To: (x):\r\nSubject: \xc3\xbc \xff\x1b\r\nX:\r\n a\r\n"
        b"Content-Type: text/plain; charset=x-none\r\n\r\na\tb\xff\x1b[31m\r\n\r\nc\r\n"
    )
    assert list(preview.lines("i\nd", Letter("s\x1b", ["r"], content))) == [
        "===== i d",
        "MAIL FROM:<s?>",
        "RCPT TO:<r>",
        "-----",
        "To: (x):",
        "Subject: ü \ufffd?",
        "X: a",
        'Content-Type: text/plain; charset="x-none"',
        "-----",
        "a\tb\ufffd?[31m",
        "",
        "c",
        "",
    ]


def test_dry_run(letter, people):
    data = people(CSV + "bad\n")
    done = merge(letter(), data, "--dry-run", "--server", "127.0.0.1:1")
    assert done.exit_code == 1
    first, second, summary = done.stdout.splitlines()
    assert first == f"{data}:2: <library@example.org> to ann@example.org"
    assert second == f"{data}:3: <library@example.org> to zoe@example.org"
    assert summary.startswith("Would be sent to 127.0.0.1:1: 2 messages, 2 recipients, ")
    assert summary.endswith("; 0 skipped, 1 cannot be sent, 0 may have arrived before")
    assert done.stderr == (f"Cannot be sent: {data}:4: the row has 1 cells, and the header has 3\n")


# -- how many, and how much of it is held -------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "count"),
    [
        ("people.csv", CSV, 2),
        ("people.csv", 'email,name,title\n\n1,2,"3\n4"\n\nbad', 2),
        ("people.csv", 'email,name,title\n1,2,"3', None),
        ("people.jsonl", "\n{}\n\n[]\n7", 3),
    ],
)
def test_counts(people, monkeypatch, name, data, count):
    path = str(people("{}\n" * name.endswith("jsonl") + data, name))
    if name.endswith("jsonl"):
        count += 1
    table = open_table(path, None)
    table.close()
    assert table.count() == count
    monkeypatch.setattr(rows, "COUNTED_OCTETS", 3)
    assert table.count() is None


def test_a_count_leaves_the_rows_where_they_are(letter, people):
    table = open_table(str(people()), None)
    source = Merge(read_template(str(letter())), table).source()
    entries = source.entries()
    assert next(entries).id.endswith(":2")
    assert source.count() == 2
    assert [entry.id.rpartition(":")[2] for entry in entries] == ["3"]
    table.close()


def test_named_pipes_are_streams(tmp_path):
    path = tmp_path / "people.csv"
    os.mkfifo(path)
    writer = subprocess.Popen([sys.executable, "-c", f"open({str(path)!r}, 'w').write({CSV!r})"])
    table = open_table(str(path), None)
    assert (table.path, table.count()) == (None, None)
    assert [row.fields for row in table.rows] == PEOPLE
    table.close()
    assert writer.wait(30) == 0


@not_on_pypy("no tracemalloc")
def test_the_memory_does_not_grow_with_the_data(letter, tmp_path):
    """What 5,000 rows hold in memory, and what 500 do, is about the same."""
    script = """
import sys, tracemalloc
from fastsmtp.cli.merge import Merge, read_template
from fastsmtp.cli.rows import open_table
merge = Merge(read_template(sys.argv[1]), open_table(sys.argv[2], None))
for entry in merge.entries():
    entry.letter(None, None)
    if entry.id.endswith(":200"):
        tracemalloc.start()
print(tracemalloc.get_traced_memory()[1])
"""
    for name, line in (
        ("people.csv", CSV.splitlines()[1]),
        ("people.jsonl", json.dumps(PEOPLE[0])),
    ):
        peaks = []
        for number in (500, 5_000):
            path = tmp_path / name
            header = "email,name,title\n" if name == "people.csv" else ""
            path.write_text(header + f"{line}\n" * number, "utf-8")
            run = [sys.executable, "-c", script, str(letter()), str(path)]
            peaks.append(int(subprocess.run(run, check=True, capture_output=True).stdout))
        assert peaks[1] < 1.5 * peaks[0] + 20_000, name
