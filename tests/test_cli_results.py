"""The result file of `fastsmtp send`: what is written, what is read again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import datetime, timezone
from types import SimpleNamespace

import pytest

from fastsmtp.cli import results
from fastsmtp.cli.exits import CANNOT_CREATE, IO_ERROR, NO_INPUT, TEMPORARY, Failure
from fastsmtp.cli.results import Earlier, delivery_record, open_results, read, unsent_record
from fastsmtp.delivery import Delivery, RecipientResult
from fastsmtp.reply import Reply

OK = Reply(250, b"2.0.0 Ok: queued as 4F00ABCD12")


def delivery(identity="m", status="accepted", recipients=(), **fields):
    values = {"reply": OK, "attempts": 1, "connection": 1, "seconds": 0.25, "error": None}
    values.update(fields)
    return Delivery(SimpleNamespace(id=identity), status, tuple(recipients), **values)


def line(identity: str, status: str, **recipients: str) -> str:
    found = [{"address": name, "status": fate} for name, fate in recipients.items()]
    return json.dumps({"id": identity, "status": status, "recipients": found}) + "\n"


def started(identity: str) -> str:
    return json.dumps({"id": identity, "status": "started"}) + "\n"


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "results.jsonl")


def write(path: str, *lines: str) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)


def lines_of(path: str):
    with open(path, encoding="utf-8") as file:
        return [json.loads(each) for each in file]


# -- records --------------------------------------------------------------------


def test_a_record():
    refused = Reply(550, b"5.1.1 no such\nuser \xff")
    record = delivery_record(
        delivery(
            "/m.eml",
            "partial",
            [
                RecipientResult("a@x", "accepted", OK),
                RecipientResult("b@x", "rejected", refused),
                RecipientResult("c@x", "not_sent", None),
            ],
            attempts=2,
        )
    )
    fields = "id, status, recipients, queue_id, reply, attempts, seconds, error, time"
    assert ", ".join(record) == fields
    ok = {"code": 250, "enhanced": "2.0.0", "text": "2.0.0 Ok: queued as 4F00ABCD12"}
    no = {"code": 550, "enhanced": "5.1.1", "text": "5.1.1 no such\nuser \ufffd"}
    assert record["recipients"] == [
        {"address": "a@x", "status": "accepted", **ok},
        {"address": "b@x", "status": "rejected", **no},
        {"address": "c@x", "status": "not_sent", "code": None, "enhanced": None, "text": None},
    ]
    assert record["reply"] == ok
    assert (record["id"], record["status"]) == ("/m.eml", "partial")
    assert (record["queue_id"], record["attempts"]) == ("4F00ABCD12", 2)
    assert (record["seconds"], record["error"]) == (0.25, None)
    moment = datetime.fromisoformat(record["time"])
    assert moment.utcoffset().total_seconds() == 0
    assert abs((datetime.now(timezone.utc) - moment).total_seconds()) < 10


def test_a_record_of_an_error():
    error = ConnectionResetError(104, "Connection reset by peer")
    record = delivery_record(delivery(status="unknown", reply=None, error=error))
    assert record["error"] == "Connection reset by peer"
    assert record["reply"] is None
    assert record["queue_id"] is None


def test_records_of_all_kinds_have_the_same_fields():
    unsent = unsent_record("m", ["a@x"], "why")
    sent = delivery_record(delivery(recipients=[RecipientResult("a@x", "accepted", OK)]))
    assert list(unsent) == list(sent)
    assert list(unsent["recipients"][0]) == list(sent["recipients"][0])


# -- writing --------------------------------------------------------------------


def test_lines_are_in_the_kernel_at_once(path):
    file = open_results(path)
    try:
        file.started("\udcff/ü")
        assert lines_of(path) == [{"id": "\udcff/ü", "status": "started"}]
        file.add({"id": "\udcff/ü", "status": "accepted"})
        assert len(lines_of(path)) == 2
    finally:
        file.close()
    with open(path, "rb") as octets:
        assert octets.read().isascii()


def test_it_is_synced_every_second_and_at_the_end(path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), fsync(fd)))
    monkeypatch.setattr(results, "SYNC_SECONDS", 0.01)
    file = open_results(path)
    file.started("a")
    size = os.path.getsize(path)
    deadline = time.monotonic() + 10
    while size not in synced and time.monotonic() < deadline:
        time.sleep(0.005)
    assert size in synced
    monkeypatch.setattr(results, "SYNC_SECONDS", 1000)
    time.sleep(0.05)
    file.add({"id": "a"})
    file.close()
    assert synced[-1] == os.path.getsize(path)


def test_a_file_that_is_there_is_not_touched(path):
    write(path, line("a", "accepted"))
    with pytest.raises(Failure, match=r"--resume .* goes on") as caught:
        open_results(path)
    assert caught.value.exit_code == CANNOT_CREATE
    assert len(lines_of(path)) == 1


def test_overwrite(path):
    write(path, line("a", "accepted"))
    file = open_results(path, overwrite=True)
    file.started("b")
    file.close()
    assert [each["id"] for each in lines_of(path)] == ["b"]
    assert file.earlier.done == set()


@pytest.mark.parametrize(
    "torn", ["", '{"id": "c", "sta', "\0\0\0", '{"id":"c","status":"accepted"}']
)
def test_going_on_with_a_file(path, torn):
    """What has no newline at its end may not be all that was written: it does not count."""
    write(path, line("a", "accepted"), started("b"), torn)
    file = open_results(path, resume=True)
    file.started("d")
    file.close()
    assert [each["id"] for each in lines_of(path)] == ["a", "b", "d"]
    assert file.earlier.done == {"a"}
    assert list(file.earlier.started) == ["b"]


def test_going_on_with_a_file_that_is_not_there_yet(path):
    file = open_results(path, resume=True)
    file.started("a")
    file.close()
    assert len(lines_of(path)) == 1


def test_two_processes_do_not_write_one_file(path):
    pytest.importorskip("fcntl")
    script = (
        "import sys; from fastsmtp.cli.results import open_results\n"
        "open_results(sys.argv[1], resume=True)"
    )
    file = open_results(path)
    try:
        with pytest.raises(Failure, match="another process") as caught:
            open_results(path, resume=True)
        assert caught.value.exit_code == TEMPORARY
        done = subprocess.run(
            [sys.executable, "-c", script, path], capture_output=True, check=False
        )
        assert b"another process" in done.stderr
    finally:
        file.close()
    open_results(path, resume=True).close()


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(Failure, match="No such file") as caught:
        open_results(str(tmp_path / "nowhere" / "results"))
    assert caught.value.exit_code == CANNOT_CREATE


def test_a_full_disk(monkeypatch, path):
    file = open_results(path)
    file.started("a")
    write_all = os.write
    left = [10]

    def write_some(descriptor: int, octets: bytes) -> int:
        if not left[0]:
            raise OSError(28, "No space left on device")
        written = write_all(descriptor, octets[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", write_some)
    with pytest.raises(Failure, match="No space left") as caught:
        file.started("b")
    assert caught.value.exit_code == IO_ERROR
    left[0] = 1000
    file.started("c")
    file.close()
    assert [each["id"] for each in lines_of(path)] == ["a", "c"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_device_that_is_full():
    file = open_results("/dev/full")
    with pytest.raises(Failure, match="No space left"):
        file.started("a")
    file.close()


def test_a_pipe_cannot_be_synced_and_need_not_be(tmp_path):
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    file = open_results(path)
    file.started("a")
    file.close()
    assert json.loads(os.read(reader, 1000)) == {"id": "a", "status": "started"}
    os.close(reader)


# -- reading --------------------------------------------------------------------


def earlier(path: str, *lines: str) -> Earlier:
    write(path, *lines)
    return read(path)


def test_accepted_is_not_sent_again(path):
    found = earlier(path, started("a"), line("a", "accepted", x="accepted"))
    assert found.remaining("a", ["x"], resend_unknown=True) == []
    assert found.remaining("b", ["x"], resend_unknown=False) == ["x"]
    assert not found.started


@pytest.mark.parametrize("status", ["deferred", "rejected", "not_sent"])
def test_not_accepted_is_sent_again(path, status):
    found = earlier(path, started("a"), line("a", status, x=status, y=status))
    assert found.remaining("a", ["x", "y"], resend_unknown=False) == ["x", "y"]


def test_what_is_left_of_a_partial_one(path):
    found = earlier(path, line("a", "partial", x="accepted", y="rejected", z="deferred"))
    assert found.remaining("a", ["x", "y", "z"], resend_unknown=False) == ["y", "z"]


def test_what_is_left_after_several_runs(path):
    found = earlier(
        path,
        line("a", "partial", x="accepted", y="deferred", z="deferred"),
        started("a"),
        line("a", "partial", y="accepted", z="deferred"),
        started("a"),
    )
    assert found.remaining("a", ["x", "y", "z"], resend_unknown=False) == ["z"]
    assert list(found.started) == ["a"]
    found = earlier(
        path,
        line("a", "partial", x="accepted", y="deferred"),
        line("a", "accepted", y="accepted"),
    )
    assert found.remaining("a", ["x", "y"], resend_unknown=False) == []


@pytest.mark.parametrize(
    "lines",
    [
        [line("a", "unknown", x="unknown", y="unknown")],
        [json.dumps({"id": "a", "status": "unknown", "recipients": []}) + "\n"],
    ],
)
def test_unknown_is_sent_again_when_asked(path, lines):
    found = earlier(path, *lines)
    assert found.remaining("a", ["x", "y"], resend_unknown=False) == []
    assert found.remaining("a", ["x", "y"], resend_unknown=True) == ["x", "y"]
    assert found.is_unknown("a")


def test_unknown_for_some(path):
    found = earlier(path, line("a", "unknown", x="accepted", y="unknown", z="deferred"))
    assert found.remaining("a", ["x", "y", "z"], resend_unknown=False) == ["z"]
    assert found.remaining("a", ["x", "y", "z"], resend_unknown=True) == ["y", "z"]
    assert found.is_unknown("a")
    assert not found.is_unknown("b")


def test_unknown_that_was_cleared_up(path):
    found = earlier(path, line("a", "unknown"), started("a"), line("a", "accepted", x="accepted"))
    assert found.remaining("a", ["x"], resend_unknown=False) == []
    assert not found.is_unknown("a")


def test_started_without_a_result(path):
    found = earlier(path, started("a"), started("b"), started("c"), line("b", "deferred"))
    assert list(found.started) == ["a", "c"]
    assert found.remaining("a", ["x"], resend_unknown=False) == ["x"]


@pytest.mark.parametrize(
    "text",
    [
        "Subject: not ours\n",
        "[]\n",
        "3\n",
        '{"id": "a"}\n',
        '{"id": 3, "status": "accepted"}\n',
        '{"id": "a", "status": "great"}\n',
        '{"id": "a", "status": "partial"}\n',
        '{"id": "a", "status": "partial", "recipients": [3]}\n',
    ],
)
def test_a_file_of_another_kind(path, text):
    with pytest.raises(Failure, match="line 2 is not") as caught:
        earlier(path, started("x"), text, started("y"))
    assert caught.value.exit_code == NO_INPUT


def test_a_file_of_another_kind_is_not_written(path):
    write(path, "Dear diary\n")
    with pytest.raises(Failure):
        open_results(path, resume=True)
    with open(path, encoding="utf-8") as file:
        assert file.read() == "Dear diary\n"
    open_results(path, overwrite=True).close()


def test_a_file_that_is_not_there(path):
    with pytest.raises(FileNotFoundError):
        read(path)
