"""All that is said on one connection of a Mailer, from the greeting to QUIT."""

from . import auth, codec
from .errors import SMTPAuthenticationError, SMTPNotSupportedError, SMTPResponseException
from .operations import (
    START_TLS,
    greet,
    hello,
    login,
    quit_session,
    starttls,
)
from .reply import without_secrets
from .transactions import chunked, one_by_one, overlapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .operations import Operation

    Secret = str | Callable[[], str]
    ChannelBinding = tuple[str, bytes] | None


class Established:
    """An effect: the session is open; go through its transactions(), answer with their result.

    *extensions* is what the server offers in it, nothing after HELO; *secrets*
    is what it was told to log in.
    """

    __slots__ = ("extensions", "secrets")

    def __init__(self, extensions: "dict[str, str]", secrets: "tuple[bytes, ...]" = ()) -> None:
        self.extensions = extensions
        self.secrets = secrets


class Mode:
    """How transactions follow one another: pipelined or not, by BDAT, how many in flight."""

    __slots__ = ("chunking", "depth", "pipelining")

    def __init__(self, pipelining: bool, chunking: bool, depth: int) -> None:
        self.pipelining = pipelining
        self.chunking = chunking
        self.depth = depth


class Credentials:
    """Who logs in, and how; secrets are asked for anew on each connection.

    *mechanisms* are SASL mechanisms in the order to try them, None for the
    strongest first.  With *cleartext* they may be sent without TLS.
    """

    __slots__ = ("cleartext", "mechanisms", "password", "token", "user")

    def __init__(
        self,
        user: str,
        password: "Secret | None",
        token: "Secret | None",
        mechanisms: "Sequence[str] | None",
        cleartext: bool,
    ) -> None:
        self.user = user
        self.password = password
        self.token = token
        self.mechanisms = mechanisms
        self.cleartext = cleartext


class Terms:
    """What a conversation is to be like.

    *tls* is ``implicit``, ``starttls`` (required), ``opportunistic`` or
    ``none``.  *host* and *port* are for mechanisms that name the server.
    """

    __slots__ = ("credentials", "host", "lmtp", "local_hostname", "port", "tls")

    def __init__(
        self,
        *,
        local_hostname: str,
        tls: str,
        lmtp: bool = False,
        credentials: "Credentials | None" = None,
        host: str = "",
        port: int = 0,
    ) -> None:
        self.local_hostname = local_hostname
        self.tls = tls
        self.lmtp = lmtp
        self.credentials = credentials
        self.host = host
        self.port = port


def converse(terms: Terms, binding: "Callable[[], ChannelBinding]") -> "Operation[None]":
    """Open a session, go through transactions, and say QUIT.

    *binding* tells the TLS session's channel binding (RFC 5056).

    Raises what greet() and login() raise, and SMTPNotSupportedError for a
    server that does not offer what *terms* require.
    """
    secure = terms.tls == "implicit"
    if secure:
        yield START_TLS
    verb = "LHLO" if terms.lmtp else "EHLO"
    extensions = (yield from greet(terms.local_hostname, verb=verb)) or {}
    if terms.tls in ("starttls", "opportunistic"):
        if "starttls" in extensions:
            reply = yield from starttls()
            if reply.code != 220:
                raise SMTPResponseException(*reply)
            secure = True
            extensions = (yield from hello(terms.local_hostname, verb=verb)) or {}
        elif terms.tls == "starttls":
            raise SMTPNotSupportedError("STARTTLS is required, and not offered by the server")
    secrets: tuple[bytes, ...] = ()
    if terms.credentials is not None:
        secrets = yield from _log_in(terms, terms.credentials, extensions, secure, binding)
    in_step: bool = yield Established(extensions, secrets)
    if in_step:
        yield from quit_session()


def transactions(mode: "Mode") -> "Operation[bool]":
    """Return the operation of all transactions in one session; its result tells whether to QUIT."""
    if not mode.pipelining:
        return one_by_one()
    return chunked(depth=mode.depth) if mode.chunking else overlapped()


def _log_in(
    terms: Terms,
    credentials: Credentials,
    extensions: "dict[str, str]",
    secure: bool,
    binding: "Callable[[], ChannelBinding]",
) -> "Operation[tuple[bytes, ...]]":
    """Log in, and return what the server was told."""
    if not secure and not credentials.cleartext:
        raise SMTPNotSupportedError(
            "credentials are not sent without TLS, unless cleartext_auth=True says so"
        )
    if "auth" not in extensions:
        raise SMTPNotSupportedError("SMTP AUTH extension not supported by server.")
    password, token = _secret(credentials.password), _secret(credentials.token)
    mechanisms = auth.candidates(
        extensions["auth"],
        user=credentials.user,
        password=password,
        token=token,
        mechanisms=credentials.mechanisms,
        channel_binding=binding() if secure else None,
        host=terms.host,
        port=terms.port,
    )
    secrets = tuple(_told(credentials.user, password, token))
    try:
        yield from login(mechanisms)
        return secrets
    except SMTPAuthenticationError as error:
        code, text = error.smtp_code, without_secrets(error.smtp_error, secrets)
    raise SMTPAuthenticationError(code, text)  # not in the handler: see authenticate()


def _told(user: str, password: "str | None", token: "str | None") -> "Iterator[bytes]":
    """Yield the forms in which the server gets to know the secrets."""
    for secret in (password, token):
        if secret:
            yield secret.encode("utf-8")
            yield codec.sasl_base64(secret)
    if password:
        yield codec.sasl_plain(user, password)
    if token:
        yield codec.sasl_xoauth2(user, token)


def _secret(secret: "Secret | None") -> "str | None":
    return secret() if callable(secret) else secret
