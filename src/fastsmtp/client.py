"""SMTP, SMTP_SSL and LMTP: blocking, and drop-ins for smtplib's.

The classes do all that smtplib's do, method by method, so that subclasses,
mocks and patches see what they would see there.  Where nobody could tell but
by the clock, sendmail() runs the same operation straight on the socket.

Names that people replace in smtplib (``smtplib.socket``, ``smtplib._MAXLINE``)
are looked up in the package when they are needed, so that they may be replaced
there, too.
"""

import functools
import hmac
import operator
import smtplib as _smtplib
import socket as _socket
import sys
from _thread import RLock
from collections import deque
from datetime import datetime
from email.base64mime import body_encode
from types import MappingProxyType

from . import auth as _auth
from . import codec, operations
from .compat import (
    LocalHostname,
    debug_logger,
    fix_eols,
    log,
    quote_periods,
    running_verbs,
    without_credentials,
)
from .envelope import (
    Envelope,
    Flight,
    command_line,
    control_character_error,
    needs_smtputf8,
    path,
    quoteaddr,
)
from .errors import (
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPDataError,
    SMTPException,
    SMTPHeloError,
    SMTPNotSupportedError,
    SMTPProtocolError,
    SMTPRecipientsRefused,
    SMTPResponseException,
    SMTPSenderRefused,
    SMTPServerDisconnected,
)
from .operations import NEED_REPLY, START_TLS, Replies, Send
from .protocol import parse_extensions
from .reply import TELLING, Reply
from .wire import Wire, is_standard

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from _socket import _Address as SourceAddress
    from collections.abc import Callable, Iterable, Sequence
    from types import ModuleType
    from typing import Any, TypeVar

    from _typeshed import ReadableBuffer, SizedBuffer, StrOrBytesPath
    from typing_extensions import Self

    from .message import AnyMessage
    from .operations import Buffer, Operation

    F = TypeVar("F", bound="Callable[..., Any]")
    T = TypeVar("T")
    ReplyTuple = tuple[int, bytes]

_api: "ModuleType" = sys.modules[__name__.rpartition(".")[0]]
_VERBS = running_verbs()


class _Lock(RLock):  # type: ignore[misc]
    """A lock that stays behind: a client without a connection can be copied and pickled."""

    def __reduce__(self) -> "Any":
        return _Lock, ()


class _Turn:
    """The lock that lets one thread at a time converse; an instance's own, made when needed."""

    def __get__(self, instance: "Any", owner: object) -> "Any":
        return self if instance is None else instance.__dict__.setdefault("_turn", _Lock())


def _in_turn(method: "F") -> "F":
    """Have a method wait until other threads have the replies to what they sent."""

    @functools.wraps(method)
    def in_turn(self: "Any", *args: "Any", **keywords: "Any") -> "Any":
        if not isinstance(self, SMTP):
            return method(self, *args, **keywords)  # an unbound call, on what is like one
        with self._turn:
            return method(self, *args, **keywords)

    return in_turn  # type: ignore[return-value]


class SMTP(_smtplib.SMTP):
    """A connection to an SMTP server: smtplib.SMTP, faster and stricter.

    *host* (with ``:port`` at its end, if *port* is 0) is connected to at once if
    given; *port* is 25 by default.  *local_hostname* is the name for EHLO, by
    default the host's own, looked up when needed.  *timeout* is in seconds, for
    each wait; None waits for ever, 0 is a ValueError.  *source_address* is the
    (host, port) to connect from.  With *pipelining* false, commands go out one
    by one even if the server would take them together (RFC 2920).

    Raises SMTPConnectError if the greeting is not 220, OSError if there is no
    connection.  As with smtplib, TLS certificates are **not** verified unless a
    *context* that does so is given.
    """

    debuglevel = 0
    sock: "Any" = None
    file: "Any" = None
    helo_resp: "bytes | None" = None
    ehlo_msg = "ehlo"
    ehlo_resp: "bytes | None" = None
    does_esmtp = False
    default_port = _smtplib.SMTP_PORT
    # An instance whose __init__() did nothing has these.
    esmtp_features: "dict[str, str]" = MappingProxyType({})  # type: ignore[assignment]
    timeout: "Any" = _socket._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]
    source_address: "SourceAddress | None" = None
    command_encoding = "ascii"
    local_hostname: str = LocalHostname(_api)  # type: ignore[assignment]
    pipelining = True
    user: str
    password: "str | Callable[[], str]"  # type: ignore[assignment]
    _host = ""
    _auth_challenge_count = 0
    _wire: "Wire | None" = None
    _last_reply: "ReplyTuple | None" = None
    _secrets: "tuple[bytes, ...]" = ()
    _lmtp = False
    _own_hooks: "tuple[Any, ...]"
    _turn = _Turn()

    def __init__(
        self,
        host: str = "",
        port: int = 0,
        local_hostname: "str | None" = None,
        timeout: "float | None" = _socket._GLOBAL_DEFAULT_TIMEOUT,  # type: ignore[attr-defined]
        source_address: "SourceAddress | None" = None,
        *,
        pipelining: bool = True,
    ) -> None:
        self._host = host
        self.timeout = timeout
        self.esmtp_features = {}
        self.command_encoding = "ascii"
        self.source_address = source_address
        self.pipelining = pipelining
        self._auth_challenge_count = 0
        if local_hostname is not None:
            self.local_hostname = local_hostname
        if host:
            code, text = self.connect(host, port)
            if code != 220:
                self.close()
                raise SMTPConnectError(code, text)

    def __enter__(self) -> "Self":
        return self

    @_in_turn
    def __exit__(self, *args: object) -> None:
        try:
            code, text = self.docmd("QUIT")
            if code != 221:
                raise SMTPResponseException(code, text)
        except SMTPServerDisconnected:
            pass
        finally:
            self.close()

    # -- debug output --

    def set_debuglevel(self, debuglevel: int) -> None:
        """Print the conversation to standard error: 1 with, 2 with the time of day.

        Credentials are left out.  The logger ``fastsmtp`` gets the same at
        level DEBUG, whatever the level here, if that is set as its own:
        ``logging.getLogger("fastsmtp").setLevel(logging.DEBUG)``.
        """
        self.debuglevel = debuglevel

    def _print_debug(self, *args: object) -> None:
        if self.debuglevel > 1:
            print(datetime.now().time(), *args, file=sys.stderr)
        else:
            print(*args, file=sys.stderr)

    def _debugging(self) -> bool:
        return self.debuglevel > 0 or debug_logger() is not None

    def _debug(self, *args: object) -> None:
        if self.debuglevel > 0:
            self._print_debug(*args)
        if logger := debug_logger():
            log(logger, *args)

    def _shown(self, sent: "str | ReadableBuffer") -> "str | ReadableBuffer":
        """Return what is sent, as debug output and errors may show it."""
        if self._last_reply is not None and self._last_reply[0] == 334:
            return "***\r\n"
        if isinstance(sent, str):
            return without_credentials(sent)
        if bytes(sent[:4]).upper() == b"AUTH":  # type: ignore[index]
            return without_credentials(bytes(sent).decode("latin-1"))
        return sent

    def _without_secrets(self, text: "Any") -> "Any":
        """Return a text of the server's, in bytes or str, without credentials that it sent back."""
        for secret in self._secrets:
            if isinstance(text, bytes):
                text = text.replace(secret, b"***")
            elif isinstance(text, str):
                text = text.replace(secret.decode("utf-8"), "***")
        return text

    # -- connection --

    def _get_socket(self, host: str, port: int, timeout: "float | None") -> "Any":
        if timeout is not None and not timeout:
            raise ValueError("Non-blocking socket (timeout=0) is not supported")
        if self._debugging():
            self._debug("connect: to", (host, port), self.source_address)
        return _api.socket.create_connection((host, port), timeout, self.source_address)

    @_in_turn
    def connect(
        self, host: str = "localhost", port: int = 0, source_address: "SourceAddress | None" = None
    ) -> "ReplyTuple":
        """Connect to *host*, or ``host:port``, and return the greeting.

        Raises OSError if the port is no number or there is no connection, and
        an audit event ``smtplib.connect`` with *self*, *host*, *port*.
        """
        if source_address:
            self.source_address = source_address
        if not port and host.count(":") == 1:
            host, _, suffix = host.rpartition(":")
            try:
                port = int(suffix)
            except ValueError:
                raise OSError("nonnumeric port") from None
        if not port:
            port = self.default_port
        sys.audit("smtplib.connect", self, host, port)
        self._host = host
        return self._greeted_on(lambda: self._get_socket(host, port, self.timeout))

    def _greeted_on(self, open_socket: "Callable[[], Any]") -> "ReplyTuple":
        """Take up a connection: nothing of an earlier one holds; return the greeting."""
        self._forget_extensions()
        self._last_reply = None
        self._secrets = ()
        self.sock = open_socket()
        self.file = None
        self._wire = None
        code, text = self.getreply()
        if self._debugging():
            self._debug("connect:", repr(text))
        return code, text

    def _forget_extensions(self) -> None:
        self.helo_resp = self.ehlo_resp = None
        self.esmtp_features = {}
        self.does_esmtp = False
        self.command_encoding = "ascii"

    def _open_wire(self) -> Wire:
        """Return the wire for what `sock` and `file` are now."""
        wire, sock, file = self._wire, self.sock, self.file
        if (
            wire is not None
            and wire.sock is sock
            and (file is wire or (file is not None and file is wire.file))
        ):
            return wire
        if file is None or isinstance(file, Wire):
            if sock is None:
                raise self._not_connected()
            wire = Wire(sock, None if is_standard(sock) else sock.makefile("rb"))
            self.file = wire if wire.file is None else wire.file
        else:
            wire = Wire(sock, file)
        self._wire = wire
        return wire

    def close(self) -> None:
        """Close the connection, without a word to the server."""
        file, self.file, self._wire = self.file, None, None
        try:
            if file is not None:
                file.close()
        finally:
            sock, self.sock = self.sock, None
            if sock is not None:
                sock.close()

    @_in_turn
    def quit(self) -> "ReplyTuple":
        """Say QUIT, close, and return the reply."""
        reply = self.docmd("quit")
        self._forget_extensions()
        self.close()
        return reply

    def _lost(
        self, problem: str, kind: "type[SMTPServerDisconnected]" = SMTPServerDisconnected
    ) -> SMTPServerDisconnected:
        """Close, and return the error that says why and what the server said last."""
        last = self._close_and_recall()
        if last is not None:
            said = last[1].decode("utf-8", "replace")
            problem += f" (last reply: {last[0]} {said})"
        error: Any = kind(problem)
        error.last_reply = last
        return error  # type: ignore[no-any-return]

    def _not_connected(self) -> SMTPServerDisconnected:
        """Return the error for a call without a connection, in smtplib's words."""
        error: Any = SMTPServerDisconnected("please run connect() first")
        error.last_reply = self._close_and_recall()
        return error  # type: ignore[no-any-return]

    def _close_and_recall(self) -> "ReplyTuple | None":
        last = self._last_reply
        if self._wire is not None:
            last = self._wire.session.last_reply or last
        self.close()
        if last is not None:
            last = self._last_reply = last[0], self._without_secrets(last[1])
        return last

    def _failure(self, error: BaseException) -> BaseException:
        """Close, and return what to raise for an error met while a reply was owed."""
        if isinstance(error, SMTPServerDisconnected):
            return self._lost(error.args[0], type(error))
        if isinstance(error, OSError) and not isinstance(error, SMTPException):
            return self._lost(f"Connection unexpectedly closed: {error}")
        self.close()  # the reply is still to come, and would be taken for a later one
        return error

    # -- commands and replies --

    @_in_turn
    def send(self, s: "str | ReadableBuffer") -> None:
        """Write text, in `command_encoding`, or bytes, as they are.

        Raises SMTPServerDisconnected if they cannot be written, and an audit
        event ``smtplib.send`` with *self* and the bytes.
        """
        if self._debugging():
            self._debug("send:", repr(self._shown(s)))
        if not self.sock:
            raise self._not_connected()
        if isinstance(s, str):
            s = self._encoded(s)
        sys.audit("smtplib.send", self, s)
        wire = self._open_wire()
        try:
            wire.session.check_in_step()
        except SMTPException as error:
            raise self._failure(error)  # noqa: B904 - often the same one
        if self._last_reply is not None and self._last_reply[0] == 354:
            wire.session.owed = 1  # however often: it is all the one message
        else:
            wire.session.sent(bytes(s).count(b"\n") or 1)
        try:
            self.sock.sendall(s)
        except OSError as error:
            wire.read_last_words()
            raise self._lost("Server not connected") from error
        except BaseException:
            self.close()  # the rest of it would be the beginning of what is sent next
            raise

    def _encoded(self, text: str) -> bytes:
        try:
            return text.encode(self.command_encoding)
        except UnicodeEncodeError:
            if self._shown(text) == text:
                raise
        # The error would carry the credentials.
        raise ValueError(f"command cannot be expressed in {self.command_encoding}")

    def putcmd(self, cmd: str, args: str = "") -> None:
        """Send a command.

        Raises ValueError, and writes nothing, if it would hold a control
        character; SMTPServerDisconnected if the server closed, or has sent
        something that no command asked for.
        """
        command = cmd if args == "" else f"{cmd} {args}"
        if not command.isprintable():
            self._refuse_control_characters(command)
        if self.sock:
            self._check_in_step()
        self.send(f"{command}\r\n")

    def _refuse_control_characters(self, command: str) -> None:
        try:
            command_line(command, "utf-8")
        except UnicodeEncodeError:
            pass  # send() says so, in its own encoding
        except ValueError:
            raise control_character_error(command, str(self._shown(command))) from None

    def _check_in_step(self) -> None:
        try:
            self._open_wire().check_in_step()
        except (SMTPException, OSError) as error:
            raise self._failure(error)  # noqa: B904 - often the same one

    @_in_turn
    def getreply(self) -> "ReplyTuple":
        """Read one reply; return its code, -1 if it has none, and its text.

        Raises SMTPServerDisconnected at the end of the connection and after a
        time-out, SMTPResponseException(500, ...) for a reply over the caps on
        a line (8192 bytes) and in all (1 MiB).  Whatever is raised, and after
        a 421, the connection is closed (RFC 5321, section 3.8).
        """
        wire = self._open_wire()
        try:
            reply = self._read_reply(wire)
        except BaseException as error:
            raise self._failure(error)  # noqa: B904 - often the same one
        self._last_reply = wire.session.last_reply
        if self._debugging():
            text = self._without_secrets(reply[1])
            self._debug(f"reply: retcode ({reply[0]}); Msg: {text!a}")
        if reply[0] == 421:
            self.close()
        return reply

    def _read_reply(self, wire: Wire) -> "ReplyTuple":
        max_line = _api._MAXLINE
        debugging = self._debugging()
        if wire.file is None and not debugging:
            wire.session.parser.max_line = max_line
            code, text = wire.read_reply()
        else:

            def observe(line: bytes) -> None:
                if debugging:
                    self._debug("reply:", repr(self._without_secrets(line)))

            code, text = wire.read_reply_by_lines(codec.ReplyParser(False, max_line), observe)
        if self._secrets:
            shown = self._without_secrets(text)
            wire.session.last_reply = Reply(code, shown)
            if not 200 <= code < 400 or code == 235:  # for errors; the rest means what it says
                text = shown
        return code, text

    @_in_turn
    def docmd(self, cmd: str, args: str = "") -> "ReplyTuple":
        """Send a command and return its reply."""
        self.putcmd(cmd, args)
        return self.getreply()

    @_in_turn
    def helo(self, name: str = "") -> "ReplyTuple":
        """Say HELO, as *name* or as `local_hostname` (RFC 5321, section 4.1.1.1)."""
        self.putcmd("helo", name or self.local_hostname)
        code, text = self.getreply()
        self.helo_resp = text
        return code, text

    @_in_turn
    def ehlo(self, name: str = "") -> "ReplyTuple":
        """Say EHLO, as *name* or as `local_hostname`, and learn the extensions.

        Raises SMTPServerDisconnected for an empty answer.  RFC 5321, 4.1.1.1.
        """
        self.esmtp_features = {}
        self.putcmd(self.ehlo_msg, name or self.local_hostname)
        code, text = self.getreply()
        if code == -1 and len(text) == 0:
            raise self._lost("Server not connected")
        if code == 250:
            self.does_esmtp = True
            self.esmtp_features = parse_extensions(text)
        self.ehlo_resp = text  # last: other threads take it for a sign that all is known
        return code, text

    def ehlo_or_helo_if_needed(self) -> None:
        """Say EHLO, or HELO if that is refused, unless one was said before.

        Raises SMTPHeloError if the server takes neither.
        """
        if not self._said_hello():
            with self._turn:
                if not self._said_hello():  # by another thread
                    self._say_hello()

    def _said_hello(self) -> bool:
        return self.helo_resp is not None or self.ehlo_resp is not None

    def _say_hello(self) -> None:
        code, text = self.ehlo()
        if code != 421 and not 200 <= code <= 299:
            code, text = self.helo()
        if not 200 <= code <= 299:
            raise SMTPHeloError(code, text)

    def has_extn(self, opt: str) -> bool:
        """Say whether the server offers a service extension."""
        return opt.lower() in self.esmtp_features

    @_in_turn
    def help(self, args: str = "") -> bytes:
        """Ask for help and return its text."""
        self.putcmd("help", args)
        return self.getreply()[1]

    @_in_turn
    def rset(self) -> "ReplyTuple":
        """Say RSET: end the transaction, with nothing sent."""
        self.command_encoding = "ascii"
        return self.docmd("rset")

    def _rset(self) -> None:
        """Say RSET; that the server is gone shows with the next command."""
        try:
            self.rset()
        except SMTPServerDisconnected:
            pass

    def noop(self) -> "ReplyTuple":
        """Say NOOP."""
        return self.docmd("noop")

    @_in_turn
    def mail(self, sender: str, options: "Sequence[str]" = ()) -> "ReplyTuple":
        """Say MAIL: begin a transaction (RFC 5321, section 4.1.1.2).

        Raises SMTPNotSupportedError if an option is SMTPUTF8, which the server
        does not offer; ValueError for what cannot be in a command.
        """
        self.command_encoding = "ascii"
        parameters = ""
        if options and self.does_esmtp:
            self.command_encoding = self._encoding(options)
            parameters = " " + " ".join(options)
        self.putcmd(*self._split(_VERBS.mail, sender, parameters))
        return self.getreply()

    @_in_turn
    def rcpt(self, recip: str, options: "Sequence[str]" = ()) -> "ReplyTuple":
        """Say RCPT: name one recipient (RFC 5321, section 4.1.1.3)."""
        parameters = " " + " ".join(options) if options and self.does_esmtp else ""
        self.putcmd(*self._split(_VERBS.rcpt, recip, parameters))
        return self.getreply()

    def _split(self, verb: str, address: str, parameters: str) -> "tuple[str, str]":
        """Return a command and its argument, as putcmd() takes them."""
        command, _, argument = verb.partition(" ")
        return command, argument + path(address, _api.quoteaddr) + parameters

    def _encoding(self, options: "Sequence[str]") -> str:
        """Return the encoding of a transaction's commands (RFC 6531)."""
        if "smtputf8" not in [option.lower() for option in options]:
            return "ascii"
        if not self.has_extn("smtputf8"):
            raise SMTPNotSupportedError("SMTPUTF8 not supported by server")
        return "utf-8"

    @_in_turn
    def data(self, msg: "str | ReadableBuffer") -> "ReplyTuple":
        """Say DATA, send the message, and return the reply to its final dot.

        Dots that begin a line are doubled.  Text must be ASCII, and lone CRs
        and LFs in it become CRLF; bytes are sent as they are.

        Raises SMTPDataError if DATA is refused.  RFC 5321, section 4.1.1.4.
        """
        _, payload = self._payload(msg)
        self.putcmd("data")
        reply = self.getreply()
        if self._debugging():
            self._debug("data:", (reply[0], self._without_secrets(reply[1])))
        if reply[0] != 354:
            raise SMTPDataError(*reply)
        self.send(b"".join(payload))
        reply = self._data_reply()
        if self._debugging():
            self._debug("data:", (reply[0], self._without_secrets(reply[1])))
        return reply

    def _data_reply(self) -> "ReplyTuple":
        return self.getreply()

    def _payload(self, msg: "str | ReadableBuffer") -> "tuple[int, Sequence[Buffer]]":
        """Return a message's size and its buffers, by what does it in the package now."""
        if _api._fix_eols is fix_eols and _api._quote_periods is quote_periods:
            return codec.data_payload(msg, isinstance(msg, str))
        octets = _api._fix_eols(msg).encode("ascii") if isinstance(msg, str) else msg
        stuffed = _api._quote_periods(octets)
        size = len(octets)  # type: ignore[arg-type]
        return size, (stuffed, b".\r\n" if stuffed[-2:] == b"\r\n" else b"\r\n.\r\n")

    @_in_turn
    def verify(self, address: str) -> "ReplyTuple":
        """Say VRFY: ask whether an address is known."""
        self.putcmd("vrfy", _api._addr_only(address))
        return self.getreply()

    vrfy = verify

    @_in_turn
    def expn(self, address: str) -> "ReplyTuple":
        """Say EXPN: ask who is on a mailing list."""
        self.putcmd("expn", _api._addr_only(address))
        return self.getreply()

    # -- authentication --

    @_in_turn
    def auth(
        self,
        mechanism: str,
        authobject: "Callable[..., str | None]",
        *,
        initial_response_ok: bool = True,
    ) -> "ReplyTuple":
        """Go through one AUTH exchange (RFC 4954) and return the reply that ended it.

        *authobject* is called with each challenge, in bytes, and returns the
        answer, which is sent in base64 of its UTF-8.  It is first called with
        none, unless *initial_response_ok* is false, and then may return None.
        EHLO is sent first if it must be.

        Raises SMTPAuthenticationError if the server refuses, and SMTPException,
        with the connection closed, if it goes on with challenges.
        """
        self.ehlo_or_helo_if_needed()
        self._auth_challenge_count = 0

        def respond(challenge: "bytes | None") -> "bytes | None":
            if challenge is None:
                answer = authobject()
                self._auth_challenge_count = 0 if answer is None else 1
            else:
                self._auth_challenge_count += 1
                answer = authobject(challenge)
            return None if answer is None else self._in_base64(answer)

        def perform(effect: Send) -> "list[ReplyTuple]":
            line = bytes(effect.buffers[0][:-2]).decode("ascii")
            return [self.docmd(*line.split(" ", 1)) if effect.verb else self.docmd(line)]

        operation = operations.authenticate(
            mechanism.upper(),
            respond,
            initial_response=initial_response_ok,
            max_challenges=_api._MAXCHALLENGE,
        )
        try:
            return self._by_method(operation, perform)[:]
        except SMTPException as error:
            error.args = tuple(map(self._without_secrets, error.args))
            if isinstance(error, SMTPResponseException):
                error.smtp_error = error.args[1]
            raise
        finally:
            if self._last_reply is not None and self._last_reply[0] == 334:
                self.close()  # the server waits for what will not come

    def _in_base64(self, answer: "str | bytes") -> bytes:
        encoded = codec.sasl_base64(answer)
        if _api.encode_base64 is not body_encode:
            raw = codec.decode_challenge(encoded)
            encoded = _api.encode_base64(raw, eol="").encode("ascii")
        if len(encoded) >= TELLING:
            self._secrets += (encoded,)
        return encoded

    def auth_cram_md5(self, challenge: "ReadableBuffer | None" = None) -> "Any":
        """Authobject for CRAM-MD5 (RFC 2195), with `user` and `password`."""
        if challenge is None:
            return None
        if not _api._have_cram_md5_support:
            raise SMTPException("CRAM-MD5 is not supported")
        answer = codec.sasl_cram_md5(self.user, self._password(), bytes(challenge))
        return codec.decode_challenge(answer).decode("utf-8")

    def auth_plain(self, challenge: "ReadableBuffer | None" = None) -> str:
        """Authobject for PLAIN (RFC 4616), with `user` and `password`."""
        answer = codec.sasl_plain(self.user, self._password())
        return codec.decode_challenge(answer).decode("utf-8")

    def auth_login(self, challenge: "ReadableBuffer | None" = None) -> str:
        """Authobject for LOGIN, with `user` and `password`."""
        if challenge is None or self._auth_challenge_count < 2:
            return self.user
        return self._password()

    def auth_xoauth2(self, challenge: "bytes | None" = None) -> str:
        """Authobject for XOAUTH2, with `user` and, as `password`, an access token.

        An error comes as a challenge, which is answered by an empty line; the
        SMTPAuthenticationError that follows has it in its text.
        """
        if challenge:
            return ""
        answer = codec.sasl_xoauth2(self.user, self._password())
        return codec.decode_challenge(answer).decode("utf-8")

    def _password(self) -> str:
        secret = self.password() if callable(self.password) else self.password
        if len(secret) >= TELLING:
            self._secrets += (secret.encode("utf-8", "replace"),)
        return secret

    @_in_turn
    def login(
        self,
        user: str,
        password: "str | Callable[[], str]",
        *,
        initial_response_ok: bool = True,
    ) -> "ReplyTuple":
        """Authenticate by the first mechanism that works, and return its reply.

        They are CRAM-MD5, PLAIN, LOGIN and XOAUTH2, as far as the server has
        them.  *password* may be a function that returns the password or the
        access token; then XOAUTH2 comes first.  After a 535 no other mechanism
        is tried.

        Raises SMTPNotSupportedError if the server has no AUTH, SMTPException
        if it has no mechanism that we have, SMTPAuthenticationError if it
        refuses, SMTPHeloError as ehlo_or_helo_if_needed() does.
        """
        self.ehlo_or_helo_if_needed()
        if not self.has_extn("auth"):
            raise SMTPNotSupportedError("SMTP AUTH extension not supported by server.")
        offered = self.esmtp_features["auth"].split()
        # A function gives an access token sooner than a password.
        ours = sorted(_auth.MECHANISMS, key=lambda name: callable(password) and name != "XOAUTH2")
        if not _api._have_cram_md5_support:
            ours.remove("CRAM-MD5")
        mechanisms = [mechanism for mechanism in ours if mechanism in offered]
        refused = SMTPException("No suitable authentication method found.")
        if mechanisms:
            self.user = user
            self.password = password  # pyright: ignore[reportIncompatibleVariableOverride]
        for mechanism in mechanisms:
            authobject = getattr(self, "auth_" + mechanism.lower().replace("-", "_"))
            try:
                return self.auth(mechanism, authobject, initial_response_ok=initial_response_ok)
            except SMTPAuthenticationError as error:
                refused = error
                if error.smtp_code in (421, 535):
                    break
        raise refused

    # -- TLS --

    @_in_turn
    def starttls(
        self,
        keyfile: "StrOrBytesPath | None" = None,
        certfile: "StrOrBytesPath | None" = None,
        context: "ssl.SSLContext | None" = None,
    ) -> "ReplyTuple":
        """Put the connection under TLS (RFC 3207) and return the reply to STARTTLS.

        EHLO is sent before if none was, and what it told is forgotten.  Without
        a *context*, **no certificate is verified**, as with smtplib: pass
        ssl.create_default_context().  *keyfile* and *certfile* are deprecated.

        Raises SMTPNotSupportedError if the server has no STARTTLS,
        SMTPResponseException if it refuses, SMTPProtocolError if it sent more
        in clear behind its reply, OSError if there is no agreement on TLS.
        After the last two the connection is closed.
        """
        self.ehlo_or_helo_if_needed()
        if not self.has_extn("starttls"):
            raise SMTPNotSupportedError("STARTTLS extension not supported by server.")
        if not _api._have_ssl:
            raise RuntimeError("No SSL support included in this Python")
        chosen = _tls_context(context, keyfile, certfile, stacklevel=4)

        def perform(effect: Send) -> "list[ReplyTuple]":
            return [self.docmd("STARTTLS")]

        reply = self._by_method(
            operations.starttls(), perform, start_tls=lambda: self._start_tls(chosen)
        )
        if reply.code != 220:
            raise SMTPResponseException(*reply)
        return reply[:]

    def _start_tls(self, context: "Any") -> None:
        try:
            self._open_wire().session.start_tls()
        except SMTPProtocolError as error:
            raise self._failure(error)  # noqa: B904
        try:
            self.sock = context.wrap_socket(self.sock, server_hostname=self._host)
        except BaseException:
            self.close()
            raise
        self.file = None
        # RFC 3207, section 4.2: the client discards what it was told before.
        self._forget_extensions()

    # -- mail --

    def sendmail(
        self,
        from_addr: str,
        to_addrs: "str | Iterable[str]",
        msg: "str | SizedBuffer",
        mail_options: "Iterable[str]" = (),
        rcpt_options: "Iterable[str]" = (),
    ) -> "dict[str, ReplyTuple]":
        """Send one message, and return the recipients that were refused, with replies.

        *to_addrs* is one address or any iterable of them.  *msg* is as data()
        takes it.  *mail_options* and *rcpt_options* are ESMTP parameters; they
        and SIZE are sent if the server does ESMTP.  EHLO is sent before if none
        was.  Everything is checked and encoded before anything is sent.

        Raises SMTPRecipientsRefused if no recipient was accepted (its
        `recipients` is {} if there was none), SMTPSenderRefused, SMTPDataError,
        SMTPNotSupportedError, SMTPHeloError, SMTPServerDisconnected; ValueError
        for an address or an option that cannot be sent.  After all but the
        disconnection and a 421 the connection is open and in no transaction.
        """
        recipients = [to_addrs] if isinstance(to_addrs, str) else list(to_addrs)
        if not recipients:
            raise SMTPRecipientsRefused({})
        mail_options, rcpt_options = tuple(mail_options), tuple(rcpt_options)
        with self._turn:
            return self._transact(from_addr, recipients, msg, mail_options, rcpt_options)

    def _transact(
        self,
        from_addr: str,
        recipients: "list[str]",
        msg: "str | SizedBuffer",
        mail_options: "tuple[str, ...]",
        rcpt_options: "tuple[str, ...]",
    ) -> "dict[str, ReplyTuple]":
        size, payload = self._payload(msg)
        if not self._said_hello():
            # What no server could take is refused before the first word to this one.
            Envelope(
                from_addr, recipients, mail_options, rcpt_options, utf8=True, quote=_api.quoteaddr
            )
        self.ehlo_or_helo_if_needed()
        options = self._mail_options(size, mail_options)
        encoding = self._encoding(options) if mail_options else "ascii"
        unobserved = self._is_unobserved()
        pipelining = unobserved and self.pipelining and "pipelining" in self.esmtp_features
        envelope: Any = None
        if pipelining and not (mail_options or rcpt_options):
            envelope = _flight(from_addr, recipients, options)
        if envelope is None:
            envelope = Envelope(
                from_addr,
                recipients,
                options,
                rcpt_options if self.does_esmtp else (),
                utf8=encoding == "utf-8",
                verbs=_VERBS,
                quote=None if _api.quoteaddr is quoteaddr else _api.quoteaddr,
            )
        if unobserved:
            self.command_encoding = encoding
            outcome = self._run(
                operations.send(envelope, payload, pipelining=pipelining, lmtp=self._lmtp)
            )
            if not outcome.delivered:
                self.command_encoding = "ascii"  # as rset() leaves it
        else:
            if isinstance(msg, str):
                msg = _api._fix_eols(msg).encode("ascii")
            outcome = self._by_method(
                operations.send(envelope, payload, lmtp=self._lmtp),
                self._mail_methods(from_addr, recipients, msg, options, rcpt_options),
            )
        if outcome.closing:
            self.close()
        return self._conclude(outcome, from_addr, recipients)

    def _mail_options(self, size: int, options: "Sequence[str]") -> "list[str]":
        """Return MAIL's parameters: none without ESMTP, SIZE where it is offered (RFC 1870)."""
        if not self.does_esmtp:
            return []
        return [f"size={size}", *options] if self.has_extn("size") else list(options)

    def _mail_methods(
        self,
        from_addr: str,
        recipients: "list[str]",
        msg: "str | SizedBuffer",
        mail_options: "Sequence[str]",
        rcpt_options: "Sequence[str]",
    ) -> "Callable[[Send], Iterable[ReplyTuple]]":
        """Return what does a transaction's commands by our public methods."""
        following = iter(recipients)
        finals: list[ReplyTuple] = []

        def data() -> "list[ReplyTuple]":
            # The method does what are two steps of the operation.
            self._data_replies = []
            try:
                final = self.data(msg)
            except SMTPDataError as error:
                return [(error.smtp_code, error.smtp_error)]  # type: ignore[list-item]
            finals.extend(self._data_replies or [final])
            return [(354, b"")]

        def rset() -> "list[ReplyTuple]":
            self._rset()
            return [(250, b"")]

        methods = {
            "MAIL": lambda: [self.mail(from_addr, mail_options)],
            "RCPT": lambda: [self.rcpt(next(following), rcpt_options)],
            "DATA": data,
            ".": lambda: finals,
            "RSET": rset,
        }
        return lambda effect: methods[effect.verb]()

    def _conclude(
        self, outcome: "operations.Outcome", from_addr: str, recipients: "list[str]"
    ) -> "dict[str, ReplyTuple]":
        """Return the refused recipients of a transaction, or raise what it came to."""
        if outcome.delivered and outcome.accepted == len(recipients) and not self._lmtp:
            return {}
        if outcome.mail.code != 250:
            raise SMTPSenderRefused(outcome.mail.code, outcome.mail.text, from_addr)
        refused: dict[str, ReplyTuple] = {}
        accepted = []
        for recipient, reply in zip(recipients, outcome.rcpts, strict=False):
            if reply.code in operations.ACCEPTED:
                accepted.append(recipient)
            else:
                refused[recipient] = reply[:]
        if outcome.data is None or not accepted:
            raise SMTPRecipientsRefused(refused)
        if outcome.data.code != 354:
            raise SMTPDataError(*outcome.data)
        return self._conclude_data(outcome, accepted, refused)

    def _conclude_data(
        self,
        outcome: "operations.Outcome",
        accepted: "list[str]",
        refused: "dict[str, ReplyTuple]",
    ) -> "dict[str, ReplyTuple]":
        final = outcome.finals[0]
        if final.code != 250:
            raise SMTPDataError(*final)
        return refused

    def send_message(
        self,
        msg: "AnyMessage",
        from_addr: "str | None" = None,
        to_addrs: "str | Iterable[str] | None" = None,
        mail_options: "Iterable[str]" = (),
        rcpt_options: "Iterable[str]" = (),
    ) -> "dict[str, ReplyTuple]":
        """Send an email.message.Message, as sendmail() does.

        Sender and recipients are those of its header (RFC 5322, sections 3.6.2,
        3.6.3 and, if there is one ``Resent-`` block, 3.6.6) if not given.  Bcc
        and Resent-Bcc are not sent; the message is not changed.  If a local
        part is not ASCII, SMTPUTF8 is used (RFC 6531).

        Raises ValueError if there are several ``Resent-`` blocks, or no sender;
        SMTPNotSupportedError if SMTPUTF8 is needed and not offered.
        """
        from . import message  # most of the email package, which a program may not need

        self.ehlo_or_helo_if_needed()
        if to_addrs is not None and not isinstance(to_addrs, str):
            to_addrs = list(to_addrs)
        header = message.header_of(msg)
        sender, recipients = message.envelope_addresses(msg, from_addr, to_addrs, header)
        everybody = [recipients] if isinstance(recipients, str) else recipients
        utf8 = needs_smtputf8([sender, *everybody])
        if utf8:
            if not self.has_extn("smtputf8"):
                raise SMTPNotSupportedError(
                    "One or more source or delivery addresses require internationalized "
                    "email support, but the server does not advertise the required "
                    "SMTPUTF8 capability"
                )
            mail_options = (*mail_options, "SMTPUTF8", "BODY=8BITMIME")
        flat = message.wire_form(msg, header, utf8=utf8)
        return self.sendmail(sender, recipients, flat, mail_options, rcpt_options)

    # -- drivers of operations --

    _data_replies: "list[ReplyTuple]" = []  # noqa: RUF012 - replaced, never added to

    def _is_unobserved(self) -> bool:
        """Say whether nobody could tell if our methods were not called."""
        return (
            _hooks(type(self)) == self._own_hooks
            and _HOOKS.isdisjoint(self.__dict__)
            and _patchable(_api) == _UNPATCHED
            and self.sock is not None
            and not self._debugging()
            and self._open_wire().file is None
        )

    def _run(self, operation: "Operation[T]") -> "T":
        """Do what an operation wants straight on the socket."""
        wire = self._open_wire()
        self._check_in_step()
        wire.session.parser.max_line = _api._MAXLINE
        wire.session.secrets = self._secrets
        reply: Any = None
        error: Any = None
        try:
            while True:
                effect = operation.send(reply) if error is None else operation.throw(error)
                reply = error = None
                try:
                    if effect is NEED_REPLY:
                        reply = wire.read_reply()
                    elif type(effect) is Replies:
                        reply = wire.read_replies(effect.most)
                    else:
                        wire.session.check_in_step()
                        for buffer in effect.buffers:
                            sys.audit("smtplib.send", self, buffer)
                        wire.write(effect.buffers, effect.replies, message=effect.verb == ".")
                        if effect.most:
                            reply = wire.read_replies(effect.most)
                except (SMTPException, OSError) as problem:
                    error = self._failure(problem)
        except StopIteration as done:
            self._last_reply = wire.session.last_reply
            if wire.broken:
                self.close()
            return done.value  # type: ignore[no-any-return]
        except BaseException:
            self.close()  # replies are still to come, and would be taken for later ones
            raise

    def _by_method(
        self,
        operation: "Operation[T]",
        perform: "Callable[[Send], Iterable[ReplyTuple]]",
        start_tls: "Callable[[], None] | None" = None,
    ) -> "T":
        """Do what an operation wants by *perform*, which returns the replies it had."""
        replies: deque[ReplyTuple] = deque()
        reply = None
        while True:
            try:
                effect = operation.send(reply)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            reply = None
            if effect is NEED_REPLY:
                reply = Reply(*(replies.popleft() if replies else self.getreply()))
            elif effect is START_TLS:
                assert start_tls is not None
                start_tls()
            else:
                replies.extend(perform(effect))


# What people override or replace, and would then not see called.
_HOOKS = frozenset(
    (
        "putcmd", "getreply", "send", "docmd", "mail", "rcpt", "data", "rset", "ehlo", "helo",
        "close", "has_extn", "_rset", "_print_debug",
    )
)  # fmt: skip
_hooks = operator.attrgetter(*sorted(_HOOKS))
SMTP._own_hooks = _hooks(SMTP)


def _flight(sender: "Any", recipients: "list[str]", options: "Sequence[str]") -> "Flight | None":
    """Return the envelope if all its addresses are plain."""
    if not isinstance(sender, str):
        return None
    parameters = " " + " ".join(options) if options else ""
    commands = codec.envelope_commands(sender, recipients, parameters, "", _VERBS.mail, _VERBS.rcpt)
    return None if commands is None else Flight(commands, len(recipients), _VERBS)


def _tls_context(
    context: "ssl.SSLContext | None",
    keyfile: "StrOrBytesPath | None",
    certfile: "StrOrBytesPath | None",
    stacklevel: int = 3,
) -> "Any":
    """Return the context to use; without one, smtplib's, which verifies nothing."""
    if keyfile is None and certfile is None:
        return _api.ssl._create_stdlib_context() if context is None else context
    if context is not None:
        which = "keyfile" if keyfile is not None else "certfile"
        raise ValueError(f"context and {which} arguments are mutually exclusive")
    import warnings

    warnings.warn(
        "keyfile and certfile are deprecated, use a custom context instead",
        DeprecationWarning,
        stacklevel=stacklevel,
    )
    return _api.ssl._create_stdlib_context(certfile=certfile, keyfile=keyfile)


if hasattr(_smtplib, "SMTP_SSL"):

    class SMTP_SSL(SMTP, _smtplib.SMTP_SSL):  # pyright: ignore[reportIncompatibleVariableOverride]
        """SMTP over TLS from the first byte, on port 465 by default (RFC 8314).

        As with smtplib, **no certificate is verified** unless a *context* that
        does so is given: ssl.create_default_context().
        """

        default_port = _smtplib.SMTP_SSL_PORT

        def __init__(
            self,
            host: str = "",
            port: int = 0,
            local_hostname: "str | None" = None,
            keyfile: "str | None" = None,
            certfile: "str | None" = None,
            timeout: "float | None" = _socket._GLOBAL_DEFAULT_TIMEOUT,  # type: ignore[attr-defined]
            source_address: "SourceAddress | None" = None,
            context: "ssl.SSLContext | None" = None,
            *,
            pipelining: bool = True,
        ) -> None:
            self.keyfile = keyfile
            self.certfile = certfile
            self.context = _tls_context(context, keyfile, certfile)
            SMTP.__init__(
                self, host, port, local_hostname, timeout, source_address, pipelining=pipelining
            )

        def _get_socket(self, host: str, port: int, timeout: "float | None") -> "Any":
            if self._debugging():
                self._debug("connect:", (host, port))
            plain = super()._get_socket(host, port, timeout)
            try:
                return self.context.wrap_socket(plain, server_hostname=self._host)
            except BaseException:
                plain.close()
                raise


class LMTP(SMTP, _smtplib.LMTP):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A connection to an LMTP server, over TCP or a Unix socket (RFC 2033).

    A *host* that begins with ``/`` is the path of a Unix socket.  After the
    data the server has a reply for each recipient that it accepted; sendmail()
    returns those that are refusals with the recipients refused before.
    """

    ehlo_msg = "lhlo"
    _lmtp = True
    _accepted = 0

    def __init__(
        self,
        host: str = "",
        port: int = _smtplib.LMTP_PORT,
        local_hostname: "str | None" = None,
        source_address: "SourceAddress | None" = None,
        timeout: "float | None" = _socket._GLOBAL_DEFAULT_TIMEOUT,  # type: ignore[attr-defined]
        *,
        pipelining: bool = True,
    ) -> None:
        SMTP.__init__(
            self, host, port, local_hostname, timeout, source_address, pipelining=pipelining
        )

    @_in_turn
    def connect(
        self, host: str = "localhost", port: int = 0, source_address: "SourceAddress | None" = None
    ) -> "ReplyTuple":
        """Connect to *host*, or to the Unix socket whose path it is, and return the greeting."""
        if not host.startswith("/"):
            return super().connect(host, port, source_address)
        if self.timeout is not None and not self.timeout:
            raise ValueError("Non-blocking socket (timeout=0) is not supported")
        self._host = host
        return self._greeted_on(lambda: self._unix_socket(host))

    def _unix_socket(self, path: str) -> "Any":
        sock = _api.socket.socket(_api.socket.AF_UNIX, _api.socket.SOCK_STREAM)
        try:
            if self.timeout is not _api.socket._GLOBAL_DEFAULT_TIMEOUT:
                sock.settimeout(self.timeout)
            sock.connect(path)
        except BaseException:
            if self._debugging():
                self._debug("connect fail:", path)
            sock.close()
            raise
        return sock

    @_in_turn
    def mail(self, sender: str, options: "Sequence[str]" = ()) -> "ReplyTuple":
        """Say MAIL: begin a transaction (RFC 5321, section 4.1.1.2)."""
        reply = super().mail(sender, options)
        if reply[0] == 250:  # what is refused as nested leaves the transaction that is open
            self._accepted = 0
        return reply

    @_in_turn
    def rcpt(self, recip: str, options: "Sequence[str]" = ()) -> "ReplyTuple":
        """Say RCPT: name one recipient (RFC 5321, section 4.1.1.3)."""
        reply = super().rcpt(recip, options)
        self._accepted += reply[0] in (250, 251)
        return reply

    def _data_reply(self) -> "ReplyTuple":
        """Read the reply for each accepted recipient; return the first refusal, or the last."""
        replies = [self.getreply()]
        while len(replies) < self._accepted and replies[-1][0] != 421:
            replies.append(self.getreply())
        self._accepted = 0
        self._data_replies = replies
        return next((reply for reply in replies if reply[0] != 250), replies[-1])

    def _conclude_data(
        self,
        outcome: "operations.Outcome",
        accepted: "list[str]",
        refused: "dict[str, ReplyTuple]",
    ) -> "dict[str, ReplyTuple]":
        late = {
            recipient: reply[:]
            for recipient, reply in zip(accepted, outcome.finals, strict=True)
            if reply.code != 250
        }
        refused.update(late)
        if not outcome.delivered:
            raise SMTPRecipientsRefused(refused)
        return refused


LMTP._own_hooks = _hooks(LMTP)

try:
    hmac.digest(b"", b"", "md5")
except ValueError:  # pragma: no cover - an OpenSSL without MD5
    _have_cram_md5_support = False
else:
    _have_cram_md5_support = True

_patchable = operator.attrgetter("quoteaddr", "_fix_eols", "_quote_periods")
_UNPATCHED = (quoteaddr, fix_eols, quote_periods)
