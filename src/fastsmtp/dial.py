"""Reaching a server without waiting: addresses, and a race over them (RFC 8305)."""

import errno
import os
import socket
import threading
from selectors import EVENT_WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from selectors import BaseSelector
    from typing import Any

    #: Address family and socket address, as socket.getaddrinfo() has them.
    Address = tuple[int, Any]
    Done = Callable[[socket.socket | None, Exception | None], None]
    SocketFactory = Callable[[tuple[str, int], float, tuple[str, int] | None], socket.socket]

#: Seconds that one address has before the next one is tried, too (RFC 8305, section 5).
HEAD_START = 0.25
#: Seconds for which a host's addresses are taken to hold.
ADDRESSES_HOLD = 60.0
# 10035 is Windows' WSAEWOULDBLOCK.  EAGAIN is a failure: a Unix socket's backlog is full.
_UNDER_WAY = (0, errno.EINPROGRESS, 10035)
_NOW, _NEVER = float("-inf"), float("inf")


def interleaved(addresses: "Iterable[Address]") -> "list[Address]":
    """Return addresses with the families in turn, each in its order (RFC 8305, section 4)."""
    families: dict[int, list[Address]] = {}
    for address in dict.fromkeys(addresses):
        families.setdefault(address[0], []).append(address)
    longest = max(map(len, families.values()), default=0)
    return [
        of_family[turn]
        for turn in range(longest)
        for of_family in families.values()
        if turn < len(of_family)
    ]


class Dialer:
    """How to reach one server.

    *host* is a name, an address, or the path of a Unix socket.  What can only
    be done by waiting, looking up a name and calling *socket_factory*, is done
    in a thread of its own; *call_soon* has its result taken up by the thread
    that drives.  *clock* tells the time, *timeout* is, in seconds.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        selector: "BaseSelector",
        clock: "Callable[[], float]",
        call_soon: "Callable[[Callable[[], None]], None]",
        timeout: float,
        source_address: "tuple[str, int] | None" = None,
        socket_factory: "SocketFactory | None" = None,
    ) -> None:
        self.host = host
        self.port = port
        self.selector = selector
        self.source_address = source_address
        self.clock = clock
        self._call_soon = call_soon
        self._timeout = timeout
        self._socket_factory = socket_factory
        self._addresses: list[Address] = []
        self._known_until = _NOW

    def dial(self, done: "Done") -> "Dial":
        """Begin to connect; *done* is called once, with a socket or an error."""
        dial = Dial(self, done)
        if self._socket_factory is not None:
            self._aside(self._make_socket, dial.take_socket, dial)
        elif self.host.startswith("/"):
            dial.take_addresses([(socket.AF_UNIX, self.host)])
        elif self.clock() < self._known_until:
            dial.take_addresses(self._addresses)
        else:

            def take(addresses: "list[Address]") -> None:
                self._addresses = addresses
                self._known_until = self.clock() + ADDRESSES_HOLD
                dial.take_addresses(addresses)

            self._look_up(take, dial)
        return dial

    def _look_up(self, take: "Callable[[list[Address]], None]", dial: "Dial") -> None:
        try:
            addresses = self._resolve(socket.AI_NUMERICHOST)  # they need no looking up
        except (OSError, ValueError):
            self._aside(self._resolve, take, dial)
        else:
            take(addresses)

    def _resolve(self, flags: int = 0) -> "list[Address]":
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=flags)
        return interleaved((family, address) for family, _, _, _, address in found)

    def _make_socket(self) -> socket.socket:
        assert self._socket_factory is not None
        sock = self._socket_factory((self.host, self.port), self._timeout, self.source_address)
        sock.setblocking(False)
        return sock

    def _aside(
        self, work: "Callable[[], Any]", take: "Callable[[Any], None]", dial: "Dial"
    ) -> None:
        """Do what takes time in a thread, and have its result taken."""

        def run() -> None:
            try:
                result = work()
            except Exception as error:
                failure = error  # the name above ends with the block
                self._call_soon(lambda: dial.fail(failure))
            else:
                self._call_soon(lambda: take(result))

        threading.Thread(target=run, name="fastsmtp-dial", daemon=True).start()


class Dial:
    """An attempt to connect to one of several addresses.

    tick() is to be called every now and then.
    """

    def __init__(self, dialer: Dialer, done: "Done") -> None:
        self._dialer = dialer
        self._done: Done | None = done
        self._left: list[Address] = []
        self._trying: list[socket.socket] = []
        self._error: Exception = OSError(f"{dialer.host!r} has no address")
        self._due = _NEVER

    def take_addresses(self, addresses: "list[Address]") -> None:
        """Begin with the first of them, if it is not too late."""
        if self._done is None:
            return
        self._left = list(addresses)
        self._due = _NOW
        self.tick()

    def take_socket(self, sock: socket.socket) -> None:
        """Be done with a connected socket; or close it, if it comes too late."""
        done, self._done = self._done, None
        self.close()
        if done is None:
            sock.close()
        else:
            done(sock, None)

    def fail(self, error: Exception) -> None:
        """Be done with an error."""
        done, self._done = self._done, None
        self.close()
        if done is not None:
            done(None, error)

    def close(self) -> None:
        """Give up without a word."""
        self._done = None
        for sock in self._trying:
            self._dialer.selector.unregister(sock)
            sock.close()
        self._trying.clear()
        self._due = _NEVER

    def tick(self) -> None:
        """Try the next address, if its time has come."""
        now = self._dialer.clock()
        while now >= self._due:
            if self._left:
                self._due = now + HEAD_START
                self._try(*self._left.pop(0))
            elif self._trying:
                self._due = _NEVER
            else:
                self.fail(self._error)

    def _try(self, family: int, address: "Any") -> None:
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:  # there is no IPv6 here, or no file left
            self._failed(error)
            return
        try:
            sock.setblocking(False)
            if family != getattr(socket, "AF_UNIX", None):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._dialer.source_address is not None:
                    sock.bind(self._dialer.source_address)
            code = sock.connect_ex(address)
            if code not in _UNDER_WAY:
                raise OSError(code, os.strerror(code))
        except OSError as error:
            sock.close()
            self._failed(error)
        else:
            self._trying.append(sock)
            self._dialer.selector.register(sock, EVENT_WRITE, lambda mask: self._on_event(sock))

    def _on_event(self, sock: socket.socket) -> None:
        if sock not in self._trying:
            return  # another one has won since this one was selected
        self._dialer.selector.unregister(sock)
        self._trying.remove(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            sock.close()
            self._failed(OSError(code, os.strerror(code)))
            self.tick()
        else:
            self.take_socket(sock)

    def _failed(self, error: OSError) -> None:
        self._error = error
        self._due = _NOW  # the next one need not wait any longer
