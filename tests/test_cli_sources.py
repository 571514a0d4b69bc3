"""Where `fastsmtp send` takes messages from, and what it makes of their headers."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from email.message import EmailMessage

import pytest
from support import not_on_pypy

from fastsmtp.cli import sources
from fastsmtp.cli.exits import NO_INPUT, Failure
from fastsmtp.cli.sources import find, open_letter

ONE = b"From: a@example.org\nTo: b@example.org\nSubject: one\n\nBody.\n"


def entries(*arguments: object):
    """Return (id, content) of all messages of the sources."""
    found = find([str(argument) for argument in arguments])
    return [(entry.id, entry.read()) for source in found for entry in source.entries()]


def counts(*arguments: object):
    return [source.count() for source in find([str(argument) for argument in arguments])]


# -- files and folders ----------------------------------------------------------


def test_a_file(tmp_path):
    path = tmp_path / "one.eml"
    path.write_bytes(ONE)
    assert entries(path) == [(str(path), ONE)]
    assert counts(path) == [1]


def test_a_file_s_id_does_not_depend_on_how_it_is_called(tmp_path, monkeypatch):
    (tmp_path / "one.eml").write_bytes(ONE)
    (tmp_path / "today").symlink_to(tmp_path)
    expected = [(str(tmp_path / "one.eml"), ONE)]
    monkeypatch.chdir(tmp_path)
    assert entries("one.eml") == entries("./one.eml") == entries("today/one.eml") == expected


def test_the_same_source_twice_is_one(tmp_path):
    path = tmp_path / "one.eml"
    path.write_bytes(ONE)
    assert len(entries(path, path)) == 1


@pytest.mark.parametrize("at_a_time", [1, 3, 10, 11, 1000])
def test_a_folder_by_name(tmp_path, monkeypatch, at_a_time):
    monkeypatch.setattr(sources, "NAMES_AT_A_TIME", at_a_time)
    names = [f"{number:02}.eml" for number in range(9)] + ["A.EML"]
    for name in reversed(names):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "notes.txt").write_bytes(ONE)
    (tmp_path / "folder.eml").mkdir()
    (tmp_path / "folder.eml" / "x.eml").write_bytes(ONE)
    expected = [(str(tmp_path / name), name.encode()) for name in sorted(names)]
    assert entries(tmp_path) == expected
    assert counts(tmp_path) == [10]


def test_a_folder_is_read_when_its_turn_comes(tmp_path):
    (tmp_path / "a.eml").write_bytes(ONE)
    (tmp_path / "b.eml").write_bytes(ONE)
    (source,) = find([str(tmp_path)])
    iterator = source.entries()
    assert next(iterator).read() == ONE
    (tmp_path / "b.eml").unlink()
    entry = next(iterator)
    assert entry.id.endswith("b.eml")
    with pytest.raises(FileNotFoundError):
        entry.read()


@not_on_pypy("no tracemalloc")
def test_the_memory_for_a_folder_does_not_grow_with_it(tmp_path):
    """What a folder of 30,000 holds in memory, and what one of 1,000 does, is about the same."""
    script = """
import sys, tracemalloc
from fastsmtp.cli import sources
sources.NAMES_AT_A_TIME = 500
tracemalloc.start()
(source,) = sources.find([sys.argv[1]])
assert sum(1 for _ in source.entries()) == int(sys.argv[2])
print(tracemalloc.get_traced_memory()[1])
"""
    peaks = []
    for number in (1_000, 30_000):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in range(number):
            os.close(os.open(folder / f"{name:08}.eml", os.O_CREAT | os.O_WRONLY))
        command = [sys.executable, "-c", script, str(folder), str(number)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True).stdout))
    assert peaks[1] < 1.25 * peaks[0]


def test_a_maildir(tmp_path):
    for folder in ("new", "cur", "tmp"):
        (tmp_path / folder).mkdir()
    (tmp_path / "new" / "2.x.host").write_bytes(b"2")
    (tmp_path / "cur" / "1.x.host:2,S").write_bytes(b"1")
    (tmp_path / "cur" / "3.x.host:2,").write_bytes(b"3")
    (tmp_path / "cur" / ".hidden").write_bytes(b"no")
    (tmp_path / "tmp" / "4.x.host").write_bytes(b"not yet")
    expected = [(str(tmp_path / f"{n}.x.host"), str(n).encode()) for n in (1, 2, 3)]
    assert entries(tmp_path) == expected
    assert counts(tmp_path) == [3]
    # A reader moves and flags it: the id stays.
    (tmp_path / "new" / "2.x.host").rename(tmp_path / "cur" / "2.x.host:2,RS")
    assert entries(tmp_path) == expected


def test_stdin_by_its_content(monkeypatch, tmp_path):
    path = tmp_path / "in"
    path.write_bytes(ONE)
    with path.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert entries("-") == [(f"sha256:{hashlib.sha256(ONE).hexdigest()}", ONE)]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_one_message(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with subprocess.Popen(["sh", "-c", 'printf "%s" "$1" >"$2"', "sh", ONE.decode(), path]):
        assert entries(path) == [(f"sha256:{hashlib.sha256(ONE).hexdigest()}", ONE)]


def test_what_is_not_there(tmp_path):
    with pytest.raises(Failure, match=r"nowhere\.eml: No such file") as caught:
        find([str(tmp_path / "nowhere.eml")])
    assert caught.value.exit_code == NO_INPUT


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_what_may_not_be_read(tmp_path):
    tmp_path.chmod(0)
    try:
        with pytest.raises(Failure, match="Permission denied"):
            find([str(tmp_path)])
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_goes_away(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (source,) = find([str(folder)])
    iterator = source.entries()
    folder.rmdir()
    with pytest.raises(Failure, match="No such file"):
        next(iterator)


# -- mbox -----------------------------------------------------------------------

FIRST = b"From: a@example.org\nSubject: 1\n\nFrom here on\n>From me\n>>From you\nmore\n"
SECOND = b"From: a@example.org\nSubject: 2\n\n\nthe end\n"


def mbox(*messages: bytes) -> bytes:
    return b"".join(b"From a@example.org Mon Jan  1 00:00:00 2024\n" + m + b"\n" for m in messages)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_an_mbox(tmp_path, newline):
    path = tmp_path / "box"
    octets = mbox(FIRST.replace(b"\nFrom here", b"\n>From here"), SECOND).replace(b"\n", newline)
    path.write_bytes(octets)
    (one, first), (two, second) = entries(path)
    assert one == f"{path}:0"
    assert two == f"{path}:{octets.rindex(b'From a@')}"
    assert open_letter(first, "", ["x@y"]).content == FIRST.replace(b"\n>", b"\n").replace(
        b"\n", newline
    )
    assert open_letter(second, "", ["x@y"]).content == SECOND.replace(b"\n", newline)
    assert counts(path) == [2]


def test_a_line_from_without_an_empty_one_before_is_text(tmp_path):
    path = tmp_path / "box"
    path.write_bytes(mbox(b"Subject: 1\n\nhello\nFrom x\n"))
    assert len(entries(path)) == 1
    assert counts(path) == [1]


def test_an_mbox_without_a_last_newline(tmp_path):
    path = tmp_path / "box"
    path.write_bytes(mbox(SECOND, SECOND).rstrip(b"\n"))
    assert [content[-4:] for _, content in entries(path)] == [b"end\n", b" end"]


def test_an_empty_mbox(tmp_path):
    path = tmp_path / "box"
    path.touch()
    assert entries(path) == []
    assert counts(path) == [0]


def test_a_large_mbox_is_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "COUNTED_OCTETS", 10)
    path = tmp_path / "box"
    path.write_bytes(mbox(FIRST))
    assert counts(path) == [None]


def test_an_eml_file_with_an_mbox_line_is_one_message(tmp_path):
    path = tmp_path / "one.eml"
    path.write_bytes(b"From a@example.org Mon Jan  1 00:00:00 2024\n" + ONE)
    ((_, content),) = entries(path)
    assert open_letter(content, None, None).content == ONE


# -- the envelope ---------------------------------------------------------------


def header(*fields: str, newline: str = "\n") -> bytes:
    return (newline.join(fields) + newline + newline + "Bcc: in@the.body" + newline).encode()


@pytest.mark.parametrize(
    ("fields", "sender", "recipients"),
    [
        (["From: a@x", "To: b@x"], "a@x", ["b@x"]),
        (["From: a@x", "Sender: s@x", "To: b@x"], "s@x", ["b@x"]),
        (["from : A <a@x>", "TO:b@x,", " C <c@x>", "cc: d@x"], "a@x", ["b@x", "c@x", "d@x"]),
        (["From: a@x", 'To: "C, D" <d@x>, b@x'], "a@x", ["d@x", "b@x"]),
        (["From: a@x", "To: b@x", "To: c@x", "Cc: b@x"], "a@x", ["b@x", "c@x"]),
        (["From: a@x", "To: undisclosed-recipients:;", "Bcc: b@x"], "a@x", ["b@x"]),
        (["From: =?utf-8?q?=C3=89?= <a@x>", "To: É <é@x>"], "a@x", ["é@x"]),
        (
            ["Resent-Date: now", "Resent-From: r@x", "Resent-To: t@x", "From: a@x", "To: b@x"],
            "r@x",
            ["t@x"],
        ),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_envelope_in_the_header(fields, sender, recipients, newline):
    letter = open_letter(header(*fields, newline=newline), None, None)
    assert (letter.sender, letter.recipients) == (sender, recipients)


def test_the_envelope_of_the_command_line():
    content = header("From: a@x", "To: b@x")
    assert open_letter(content, "s@x", ["t@x", "t@x"]) == ("s@x", ["t@x"], content)
    assert open_letter(content, "", None) == ("", ["b@x"], content)
    assert open_letter(b"Subject: x\n\n", "s@x", ["t@x"]).sender == "s@x"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "empty"),
        (b"\r\n\n", "empty"),
        (header("To: b@x"), "no Sender and no From"),
        (header("From: ", "To: b@x"), "no Sender and no From"),
        (header("From: <>", "To: b@x"), "sender cannot be read"),
        (header("From: a@x"), "no recipient"),
        (header("From: a@x", "To: undisclosed-recipients:;"), "no recipient"),
        (header("Resent-Date: 1", "Resent-Date: 2", "From: a@x", "To: b@x"), "more than one"),
        (b"From: a@x\nTo: \xe9@x\n\n", "not UTF-8"),
        (b"\n" + header("From: a@x", "To: b@x"), "no Sender and no From"),
        (b"just text", "no Sender and no From"),
    ],
)
def test_what_has_no_envelope(content, error):
    with pytest.raises(ValueError, match=error):
        open_letter(content, None, None)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("end", [b"\n\nBcc: stays@x\n\n", b"\n", b""])
@pytest.mark.parametrize(
    "field", [b"Bcc: x@x", b"BCC : x@x,\n\ty@x,\n  \n z@x", b"Bcc:", b"Resent-Bcc: x@x"]
)
def test_blind_copies_are_cut(field, end, newline):
    before = b"From: a@x\nSubject: a\n Bcc: folded\nTo: b@x\n"
    after = b"X-Bcc: stays" + end
    content = (before + field + b"\n" + after).replace(b"\n", newline)
    expected = (before + after).replace(b"\n", newline)
    assert open_letter(content, None, None).content == expected
    at_the_end = (before + field + end).replace(b"\n", newline)
    assert b"cc" not in open_letter(at_the_end, None, None).content.partition(2 * newline)[
        0
    ].lower().replace(b" bcc: folded", b"")


def test_a_blind_copy_behind_a_lone_cr_is_cut():
    """A CR on its own goes out as CRLF: what stands behind it is a field."""
    letter = open_letter(b"From: a@x\nTo: b@x\nSubject: x\rBcc: c@x\n\nBody\n", None, None)
    assert letter.recipients == ["b@x", "c@x"]
    assert letter.content == b"From: a@x\r\nTo: b@x\r\nSubject: x\r\n\r\nBody\r\n"
    letter = open_letter(b"From: a@x\rTo: b@x\rBcc: c@x\r\rBody: x\r", None, None)
    assert letter.content == b"From: a@x\r\nTo: b@x\r\n\r\nBody: x\r\n"


def test_the_content_is_not_touched():
    content = b"From: a@x\nTo: b@x\nSubject: \xff\xfe\nX: y  \n\nbody\r\n\rmore\n\xff"
    assert open_letter(content, None, None).content is content


def test_a_message_of_the_email_package():
    message = EmailMessage()
    message["From"] = "Ä <a@example.org>"
    message["To"] = [f'"Bob, {number}" <b{number}@example.org>' for number in range(50)]
    message["Bcc"] = "c@example.org"
    message.set_content("text")
    with io.BytesIO(bytes(message)) as file:
        letter = open_letter(file.read(), None, None)
    expected = [f"b{number}@example.org" for number in range(50)]
    assert letter.recipients == [*expected, "c@example.org"]
    assert b"c@example.org" not in letter.content
