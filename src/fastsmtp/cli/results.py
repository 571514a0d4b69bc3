"""The result file of ``fastsmtp send``: JSON Lines, written as it goes, read by --resume.

Before a message is handed to the Mailer, ``{"id": …, "status": "started"}`` is
written; when there is a result, a line with all of it.  Every line is one
write to the kernel: a killed process loses none.
"""

import errno
import json
import os
import threading
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from .exits import CANNOT_CREATE, IO_ERROR, NO_INPUT, TEMPORARY, Failure, describe

if TYPE_CHECKING:
    from ..delivery import Delivery
    from ..reply import Reply

STARTED = "started"
STATUSES = ("accepted", "partial", "deferred", "rejected", "unknown", "not_sent")
SYNC_SECONDS = 1.0

_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


# -- lines ----------------------------------------------------------------------


def delivery_record(delivery: "Delivery") -> dict[str, Any]:
    """Return what the result file says of a delivery."""
    recipients = [
        {"address": address, "status": status, **_reply_fields(reply)}
        for address, status, reply in delivery.recipients
    ]
    reply = None if delivery.reply is None else _reply_fields(delivery.reply)
    return {
        "id": delivery.id,
        "status": delivery.status,
        "recipients": recipients,
        "queue_id": delivery.queue_id,
        "reply": reply,
        "attempts": delivery.attempts,
        "seconds": round(delivery.seconds, 3),
        "error": None if delivery.error is None else describe(delivery.error),
        "time": _now(),
    }


def unsent_record(identity: str, addresses: Iterable[str], error: str) -> dict[str, Any]:
    """Return what the result file says of a message that could not be handed over."""
    nothing = {"code": None, "enhanced": None, "text": None}
    return {
        "id": identity,
        "status": "not_sent",
        "recipients": [{"address": a, "status": "not_sent", **nothing} for a in addresses],
        "queue_id": None,
        "reply": None,
        "attempts": 0,
        "seconds": 0.0,
        "error": error,
        "time": _now(),
    }


def _reply_fields(reply: "Reply | None") -> dict[str, Any]:
    if reply is None:
        return {"code": None, "enhanced": None, "text": None}
    enhanced = reply.enhanced
    return {
        "code": reply.code,
        "enhanced": enhanced and ".".join(map(str, enhanced)),
        "text": reply.text.decode("utf-8", "replace"),
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


# -- what an earlier run has done -----------------------------------------------


class Earlier:
    """What a result file says: what need not be sent, and what may have been.

    *done*: ids of messages that were accepted for all recipients.  *partly*:
    by id, the status of each recipient that has one of "accepted" and
    "unknown", where not all are accepted.  *unknown*: ids of messages whose
    fate nobody knows.  *started*: ids, in order, that were begun and have no
    result.
    """

    def __init__(self) -> None:
        self.done: set[str] = set()
        self.partly: dict[str, dict[str, str]] = {}
        self.unknown: set[str] = set()
        self.started: dict[str, None] = {}
        #: Octets up to the end of the last whole line.
        self.length = 0

    def add(self, record: dict[str, Any]) -> None:
        """Take in one line.  Raises LookupError or TypeError for what is no such line."""
        identity, status = record["id"], record["status"]
        if not isinstance(identity, str) or (status != STARTED and status not in STATUSES):
            raise TypeError
        if status == STARTED:
            self.started[identity] = None
            return
        self.started.pop(identity, None)
        self.unknown.discard(identity)
        if status == "accepted":
            self.done.add(identity)
            self.partly.pop(identity, None)
            return
        self.done.discard(identity)
        fates = {
            recipient["address"]: recipient["status"]
            for recipient in record["recipients"]
            if recipient["status"] in ("accepted", "unknown")
        }
        if fates:
            self.partly.setdefault(identity, {}).update(fates)
        elif status == "unknown":
            self.unknown.add(identity)

    def remaining(self, identity: str, recipients: list[str], resend_unknown: bool) -> list[str]:
        """Return those of a message's recipients that it is to be sent to.

        That is none of those who were in a message that was accepted, and of
        those who were in one of unknown fate only with *resend_unknown*.
        """
        if identity in self.done:
            return []
        if identity in self.unknown:
            return recipients if resend_unknown else []
        fates = self.partly.get(identity)
        if fates is None:
            return recipients
        not_again = ("accepted",) if resend_unknown else ("accepted", "unknown")
        return [address for address in recipients if fates.get(address) not in not_again]

    def is_unknown(self, identity: str) -> bool:
        """Say whether nobody knows if the message arrived, at some recipient at least."""
        return identity in self.unknown or "unknown" in self.partly.get(identity, {}).values()


def read(path: str) -> Earlier:
    """Return what a result file says.  A torn last line is passed over.

    Raises FileNotFoundError; Failure if the file is not readable or not one.
    """
    earlier = Earlier()
    number = 0
    try:
        with open(path, "rb") as file:
            for line in file:
                number += 1
                if not line.endswith(b"\n"):
                    break
                if line.strip():
                    earlier.add(json.loads(line))
                earlier.length += len(line)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", NO_INPUT) from None
    except (ValueError, LookupError, TypeError):
        raise Failure(f"{path}: line {number} is not a line of a result file", NO_INPUT) from None
    return earlier


# -- the file -------------------------------------------------------------------


class Results:
    """An open result file.  One thread writes, another one syncs every second.

    *earlier* is what it said when it was opened to go on with it.
    """

    def __init__(self, path: str, descriptor: int, earlier: Earlier) -> None:
        self.earlier = earlier
        self._path = path
        self._descriptor = descriptor
        self._length = earlier.length
        self._dirty = False
        self._ending = threading.Event()
        self._syncing = threading.Thread(target=self._sync_often, daemon=True)
        self._syncing.start()

    def started(self, identity: str) -> None:
        """Write that a message is about to be sent.  Raises Failure."""
        self._write(f'{{"id":{_encode(identity)},"status":"{STARTED}"}}\n')

    def add(self, record: dict[str, Any]) -> None:
        """Write a result.  Raises Failure."""
        self._write(_encode(record) + "\n")

    def _write(self, line: str) -> None:
        octets = line.encode("ascii")  # the encoder escapes all else
        try:
            written = os.write(self._descriptor, octets)
            while written < len(octets):  # as on a full disk, which the next one reports
                written += os.write(self._descriptor, octets[written:])
        except OSError as error:
            self._cut()
            raise Failure(f"{self._path}: {error.strerror}", IO_ERROR) from None
        self._length += len(octets)
        self._dirty = True

    def _cut(self) -> None:
        """Leave no part of a line behind."""
        try:
            os.ftruncate(self._descriptor, self._length)
            os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError:
            pass  # a pipe

    def sync(self) -> None:
        """Have what is written so far put on the disk.  Raises Failure."""
        if self._dirty:
            self._dirty = False
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a pipe or a terminal
                    raise Failure(f"{self._path}: {error.strerror}", IO_ERROR) from None

    def _sync_often(self) -> None:
        while not self._ending.wait(SYNC_SECONDS):
            try:
                self.sync()
            except Failure:
                self._dirty = True  # the last sync() reports it
                return

    def close(self) -> None:
        """Sync and close the file.  Raises Failure."""
        self._ending.set()
        self._syncing.join()
        try:
            self.sync()
        finally:
            os.close(self._descriptor)


def open_results(path: str, *, resume: bool = False, overwrite: bool = False) -> Results:
    """Open a result file.

    With *resume* what it says is read, and it is written on to.  Else it must
    not be there, or be empty, or *overwrite* must say that it may go.

    Raises Failure if it cannot be had.
    """
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", CANNOT_CREATE) from None
    try:
        # Locked before it is read: a run that ends just now has more to say.
        _lock(path, descriptor)
        earlier = read(path) if resume else Earlier()
        _begin(path, descriptor, earlier.length, resume or overwrite)
    except BaseException:
        os.close(descriptor)
        raise
    return Results(path, descriptor, earlier)


def _begin(path: str, descriptor: int, length: int, may_cut: bool) -> None:
    """Make a file ready to be written from *length* on."""
    try:
        size = os.fstat(descriptor).st_size
        if size and not may_cut:
            raise Failure(
                f"{path} is there already: --resume {path} goes on with it, --overwrite "
                "begins anew and forgets what it says was sent",
                CANNOT_CREATE,
            )
        if size != length:
            os.ftruncate(descriptor, length)  # a torn line
        if length:
            os.lseek(descriptor, length, os.SEEK_SET)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", CANNOT_CREATE) from None
    _sync_directory(path)


def _lock(path: str, descriptor: int) -> None:
    """Hold that no other process writes this file: both would send the same messages."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Failure(f"{path} is being written by another process", TEMPORARY) from None
    except OSError:
        pass  # a file system without locks


def _sync_directory(path: str) -> None:
    """Have the file's name on the disk as well as the file."""
    try:
        directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(directory)
    except OSError:
        pass
    finally:
        os.close(directory)
