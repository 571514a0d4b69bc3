"""One connection of the blocking client: its socket and its session."""

import select
import socket
import sys
from collections import deque
from time import monotonic

from .errors import SMTPException, SMTPProtocolError, SMTPServerDisconnected
from .protocol import Session

try:
    import ssl
except ImportError:  # pragma: no cover - a Python built without OpenSSL
    _TLS_SOCKETS: "tuple[type[socket.socket], ...]" = ()
    _READ_FIRST: "tuple[type[OSError], ...]" = ()
    _NOT_NOW: "tuple[type[OSError], ...]" = (BlockingIOError, TimeoutError)
else:
    _TLS_SOCKETS = (ssl.SSLSocket,)
    _READ_FIRST = (ssl.SSLWantReadError,)
    _NOT_NOW = (BlockingIOError, TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .codec import ReplyParser
    from .reply import Reply

    Buffer = bytes | bytearray | memoryview

_RECEIVE = 16384
_MOST_AT_A_TIME = 64
# A flight of this many bytes fits any socket's buffer: writing it cannot block.
_SMALL_FLIGHT = 2048
# Up to here, in bytes, two buffers are joined for TLS rather than sent in two records.
_JOINED = 65536
_READING_AND_WRITING = frozenset(
    ("recv", "recv_into", "send", "sendall", "sendmsg", "makefile", "fileno", "settimeout")
)


def is_standard(sock: "Any") -> bool:
    """Say whether a socket reads and writes as the standard library's do."""
    standard: tuple[Any, ...] = (*_TLS_SOCKETS, socket.socket)
    for known in standard:
        if isinstance(known, type) and isinstance(sock, known):  # socket.socket may be a mock
            kind = type(sock)
            return _READING_AND_WRITING.isdisjoint(getattr(sock, "__dict__", ())) and all(
                getattr(kind, name, None) is getattr(known, name, None)
                for name in _READING_AND_WRITING
            )
    return False


class _Until:
    """A socket to read from for as long, all in all, as its time-out is now."""

    __slots__ = ("_end", "_sock", "_timeout")

    def __init__(self, sock: "Any") -> None:
        self._sock = sock
        self._timeout = sock.gettimeout()
        self._end = None if self._timeout is None else monotonic() + self._timeout

    def recv(self, size: int) -> bytes:
        """Receive as the socket does; TimeoutError when the time is over."""
        if self._end is None:
            return self._sock.recv(size)  # type: ignore[no-any-return]
        left = self._end - monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        try:
            return self._sock.recv(size)  # type: ignore[no-any-return]
        finally:
            if self._sock.fileno() >= 0:
                self._sock.settimeout(self._timeout)


class Wire:
    """A socket with a session on it.

    *file* is what replies are read from, line by line, if the socket is not to
    be read itself: it is not a standard one, or somebody has set a file.  A
    wire without one is itself what smtplib has as ``SMTP.file``.
    """

    __slots__ = ("_early", "_message", "_poll", "_tls", "broken", "file", "session", "sock")

    def __init__(self, sock: "Any", file: "Any" = None) -> None:
        self.sock = sock
        self.file = file
        self.session = Session(strict=False)
        self.session.owed = 0
        #: Writing has failed; what the server said before may still be read.
        self.broken = False
        self._message = False  # whether what was written last is message data
        self._early: deque[Reply] = deque()
        self._poll: Any = None
        self._tls = isinstance(sock, _TLS_SOCKETS)

    # -- as a file --

    def readline(self, limit: int = -1) -> bytes:
        """Return a line, or at most *limit* bytes of it; b"" at the end of the stream."""
        if self.file is not None:
            return self.file.readline(limit)  # type: ignore[no-any-return]
        return self._take_line(limit if limit >= 0 else sys.maxsize, self.sock.recv)

    def _take_line(self, limit: int, receive: "Callable[[int], bytes]") -> bytes:
        parser = self.session.parser
        while (line := parser.take_line(limit)) is None:
            parser.feed(receive(_RECEIVE))
        return line

    def close(self) -> None:
        """Close the file, if there is one; the socket is closed by itself."""
        if self.file is not None:
            self.file.close()

    # -- replies --

    def read_reply(self) -> "Reply":
        """Return the next reply, waiting for it as long as the socket does.

        Once it has begun, it must end within the socket's time-out too: octets
        that trickle in do not extend it.

        Raises SMTPServerDisconnected at the end of the stream, what the
        session raises, and OSError.
        """
        reply = self.read_replies(1)[0]
        if self.broken and self._message and reply.code < 400:
            raise SMTPServerDisconnected("Server not connected")
        return reply

    def read_replies(self, most: int) -> "list[Reply]":
        """Return the replies that are here: at most *most*, none after a 421; wait for the first.

        Raises what read_reply() does.
        """
        if self._early:
            return [self._early.popleft()]
        session, until = self.session, None
        replies = session.next_replies(most)
        while not replies:
            if self.broken:
                raise SMTPServerDisconnected("Server not connected")
            data = (until or self.sock).recv(_RECEIVE)
            session.receive(data)
            replies = session.next_replies(most)
            if not replies:
                if not data:
                    raise SMTPServerDisconnected("Connection unexpectedly closed")
                until = until or _Until(self.sock)
        return replies

    def read_reply_by_lines(
        self, parser: "ReplyParser", observe: "Callable[[bytes], None]"
    ) -> "Reply":
        """Return the next reply, each line read by itself and shown to *observe*."""
        parsed = None
        if self.file is None:
            if not self.session.pending:
                self.session.receive(self.sock.recv(_RECEIVE))
            receive = _Until(self.sock).recv

            def readline(limit: int) -> bytes:
                return self._take_line(limit, receive)
        else:
            readline = self.file.readline
        while parsed is None:
            line = readline(parser.max_line + 1)
            if not line:
                raise SMTPServerDisconnected("Connection unexpectedly closed")
            observe(line)
            parser.feed(line)
            if not line.endswith(b"\n"):
                parser.feed(b"")
            parsed = parser.next_reply()
        return self.session.took(parsed)

    def check_in_step(self) -> None:
        """Before a command: hold that the server has sent nothing unasked, not even its end.

        Raises SMTPServerDisconnected or SMTPProtocolError.
        """
        session = self.session
        if session.owed or self.file is not None:
            return
        ended = not session.pending and self._readable() and self._receive_what_is_there()
        session.check_in_step()
        if ended:
            raise SMTPServerDisconnected("Connection unexpectedly closed")

    def read_last_words(self) -> None:
        """After a failure: take what the server still said, as the session's last reply."""
        if self.file is None:
            self._receive_what_is_there()
            try:
                while self.session.next_reply() is not None:
                    pass
            except SMTPException:
                pass  # what cannot be read is no last word

    def _readable(self) -> bool:
        if self.sock.fileno() < 0:
            return True  # closed by somebody else: reading will tell
        if not hasattr(select, "poll"):  # pragma: no cover - Windows
            return bool(select.select([self.sock], [], [], 0)[0])
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.sock, select.POLLIN)
        # Under TLS, bytes may have been read off the socket and not yet asked for.
        return bool(self._poll.poll(0)) or (self._tls and self.sock.pending() > 0)

    def _receive_what_is_there(self) -> bool:
        """Receive without waiting; return whether the end of the stream is reached."""
        timeout = self.sock.gettimeout()
        try:
            self.sock.settimeout(0)
            for _ in range(_MOST_AT_A_TIME):
                data = self.sock.recv(_RECEIVE)
                if not data:
                    return True
                self.session.receive(data)
            return False
        except _NOT_NOW:
            return False
        except OSError:
            return True  # reset, or closed by our side
        finally:
            if self.sock.fileno() >= 0:
                self.sock.settimeout(timeout)

    # -- writing --

    def write(self, buffers: "Sequence[Buffer]", replies: int, message: bool = True) -> None:
        """Write buffers that bring *replies* replies; a failure shows in `broken`.

        The server may answer while we write, and stop reading if we do not
        read; so a long flight is written with an eye on what comes.
        """
        self.session.sent(replies)
        self._message = message
        try:
            if len(buffers) == 1:
                if len(buffers[0]) > _SMALL_FLIGHT:
                    self._write_flight(buffers[0])
                else:
                    self.sock.sendall(buffers[0])
            elif self._tls or not hasattr(self.sock, "sendmsg"):
                self._write_in_turn(buffers)
            else:
                self._write_at_once(buffers)
        except SMTPException:
            raise  # what came in was not in order
        except OSError:
            self.broken = True
            self._receive_what_is_there()

    def _write_at_once(self, buffers: "Sequence[Buffer]") -> None:
        sent = self.sock.sendmsg(buffers)
        left = sum(map(len, buffers)) - sent
        while left:
            self._hold_no_reply()
            views = [memoryview(buffer) for buffer in buffers]
            while sent >= len(views[0]):
                sent -= len(views.pop(0))
            buffers = [views[0][sent:], *views[1:]]
            sent = self.sock.sendmsg(buffers)
            left -= sent

    def _hold_no_reply(self) -> None:
        """In the middle of a message: hold that the server has not said that it took it."""
        if self._readable():
            self._receive_what_is_there()
            while (reply := self.session.next_reply()) is not None:
                if reply.code == 250:
                    raise SMTPProtocolError("the server accepted a message before it had all of it")
                self._early.append(reply)

    def _write_in_turn(self, buffers: "Sequence[Buffer]") -> None:
        data, end = buffers
        view = memoryview(data)
        # A short last write would wait for the one before to be acknowledged.
        cut = max(len(view) - _JOINED, 0)
        if cut:
            self.sock.sendall(view[:cut])
            self._hold_no_reply()
        self.sock.sendall(b"".join((view[cut:], end)))

    def _write_flight(self, flight: "Buffer") -> None:
        """Write commands and take replies in turn (RFC 2920, section 3.1: avoid the deadlock)."""
        timeout = self.sock.gettimeout()
        left = memoryview(flight)
        self.sock.settimeout(0)
        try:
            while left:
                try:
                    left = left[self.sock.send(left[:_JOINED]) :]
                except _NOT_NOW as wanted:
                    self._wait(wanted, timeout)
                    if self._take_early_replies():
                        return  # the server closed; what it said tells why
        finally:
            self.sock.settimeout(timeout)

    def _wait(self, wanted: OSError, timeout: "float | None") -> None:
        """Wait until there is something to read, or room to write if that is wanted."""
        reads_only = isinstance(wanted, _READ_FIRST)
        if not hasattr(select, "poll"):  # pragma: no cover - Windows
            ready = select.select([self.sock], [] if reads_only else [self.sock], [], timeout)
            if not (ready[0] or ready[1]):
                raise TimeoutError("timed out")
            return
        poll = select.poll()
        poll.register(self.sock, select.POLLIN | (0 if reads_only else select.POLLOUT))
        if not poll.poll(None if timeout is None else timeout * 1000):
            raise TimeoutError("timed out")

    def _take_early_replies(self) -> bool:
        ended = self._receive_what_is_there()
        while self.session.owed and (reply := self.session.next_reply()) is not None:
            self._early.append(reply)
        self.session.check_in_step()
        return ended
