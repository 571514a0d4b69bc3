"""SASL mechanisms as pure functions (RFC 4422, RFC 4954).

A mechanism takes the credentials and returns a *responder*: called with None
it gives the initial response, or None if the mechanism has none; called with a
challenge, decoded, it gives the answer, or None if there is none to give.
What it gives is in base64.

A responder serves one exchange.  One to which the server has to prove itself
has an attribute *distrust*: the rule that it has not kept, as text, which is
empty once it has given its proof.
"""

import hmac
import os
import re
from operator import xor

from . import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    Responder = Callable[["bytes | None"], "bytes | None"]
    Mechanism = Callable[[str, str], Responder]
    ChannelBinding = tuple[str, bytes]


def cram_md5(user: str, password: str) -> "Responder":
    """CRAM-MD5: the password keys a digest of the challenge (RFC 2195)."""

    def respond(challenge: "bytes | None") -> "bytes | None":
        if challenge is None:
            return None
        return codec.sasl_cram_md5(user, password, challenge)

    return respond


def plain(user: str, password: str) -> "Responder":
    """PLAIN: user and password in UTF-8 (RFC 4616)."""
    return lambda challenge: codec.sasl_plain(user, password)


def login(user: str, password: str) -> "Responder":
    """LOGIN: the user, then the password, whatever the prompts say."""
    answers = iter((user, password))

    def respond(challenge: "bytes | None") -> "bytes | None":
        answer = next(answers, None)
        return None if answer is None else codec.sasl_base64(answer)

    return respond


def xoauth2(user: str, token: str) -> "Responder":
    """XOAUTH2: an OAuth 2.0 access token; an error comes as a challenge, answered by nothing."""
    return lambda challenge: b"" if challenge else codec.sasl_xoauth2(user, token)


#: The mechanisms by name, in the order smtplib prefers them; XOAUTH2 is ours.
MECHANISMS: "dict[str, Mechanism]" = {
    "CRAM-MD5": cram_md5,
    "PLAIN": plain,
    "LOGIN": login,
    "XOAUTH2": xoauth2,
}


def oauthbearer(user: str, token: str, *, host: str = "", port: int = 0) -> "Responder":
    """OAUTHBEARER: an OAuth 2.0 access token (RFC 7628); an error comes as a challenge.

    *host* and *port* are those connected to; what is empty or 0 is not sent.

    Raises ValueError if a value holds the separator ^A, or cannot be expressed
    in UTF-8; it does not show it.
    """
    if any("\1" in value for value in (user, token, host)):
        separator = b"\1"
        raise ValueError(f"a SASL value holds the separator {separator!r}")
    # RFC 7628, section 3.1; the user is the authzid of RFC 5801, section 4.
    pairs = [f"n,a={_saslname(user)}," if user else "n,,"]
    if host:
        pairs.append(f"host={host}")
    if port:
        pairs.append(f"port={port}")
    initial = codec.sasl_base64("\1".join((*pairs, f"auth=Bearer {token}", "", "")))
    # RFC 7628, section 3.2.3: a lone ^A acknowledges the error.
    return lambda challenge: codec.sasl_base64(b"\1") if challenge else initial


# -- SCRAM --------------------------------------------------------------------


#: How many rounds of hashing a server may ask for.  Fewer would make it cheap to
#: search for the password (RFC 7677, section 4); more would hold us up.
MIN_ITERATIONS = 4096
MAX_ITERATIONS = 10_000_000

# RFC 5802, section 7.  An extension "m" is one that we would have to know.
_BASE64 = rb"((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)"
_EXTENSIONS = rb"(?:,(?!m)[A-Za-z]=[^\0,]+)*"
_SERVER_FIRST = rb"r=([!-+\--~]+),s=(?!,)" + _BASE64 + rb",i=([1-9][0-9]{0,18})" + _EXTENSIONS
_SERVER_FINAL = rb"v=" + _BASE64 + _EXTENSIONS


def scram_sha_256(
    user: str, password: str, *, could_bind: bool = False, nonce: "str | None" = None
) -> "Responder":
    """SCRAM-SHA-256: both sides prove that they know the password (RFC 5802, RFC 7677).

    *could_bind* says that there is channel binding data, but that the server
    offers no SCRAM-SHA-256-PLUS: if it did, and somebody took that out of the
    offer, it will notice.  *nonce* is ours, random by default.

    Raises ValueError if SASLprep refuses the user or the password, or if
    nothing is left of the user.
    """
    return _Scram(user, password, b"y,," if could_bind else b"n,,", b"", nonce)


def scram_sha_256_plus(
    user: str, password: str, binding: "ChannelBinding", *, nonce: "str | None" = None
) -> "Responder":
    """SCRAM-SHA-256-PLUS: SCRAM-SHA-256, valid on this TLS connection only (RFC 5802, section 6).

    *binding* is the connection's type of channel binding and its data, as
    channel_binding() returns them.  *nonce* is ours, random by default.

    Raises ValueError as scram_sha_256() does.
    """
    kind, data = binding
    return _Scram(user, password, b"p=%b,," % kind.encode("ascii"), data, nonce)


class _Distrust(Exception):
    """The server has broken a rule by which it would have proven itself."""


class _Scram:
    """The responder of SCRAM, to which the server has to prove itself.

    *header* is the gs2-header, *bound* the channel binding data.
    """

    __slots__ = (
        "_bare",
        "_bound",
        "_header",
        "_next",
        "_nonce",
        "_password",
        "_server_signature",
        "distrust",
    )

    def __init__(
        self, user: str, password: str, header: bytes, bound: bytes, nonce: "str | None"
    ) -> None:
        name = saslprep(user)
        if not name:
            raise ValueError("SCRAM needs a user name (RFC 5802, section 5.1)")
        self._nonce = codec.sasl_base64(os.urandom(18)) if nonce is None else nonce.encode("ascii")
        self._bare = b"n=%b,r=%b" % (_saslname(name).encode("utf-8"), self._nonce)
        self._header = header
        self._bound = bound
        self._password = saslprep(password).encode("utf-8")
        self._server_signature = b""
        self._next: Callable[[_Scram, bytes], bytes] | None = _Scram._first
        self.distrust = "the server has not proven that it knows the password (RFC 5802, section 5)"

    def __call__(self, challenge: "bytes | None") -> "bytes | None":
        step, self._next = self._next, None
        challenge = challenge or b""
        if step is None:
            return None
        if challenge.startswith(b"e="):
            return b""  # server-error; the reply to this is the refusal
        try:
            return step(self, challenge)
        except _Distrust as distrust:
            self.distrust = str(distrust)
            return None

    def _first(self, challenge: bytes) -> bytes:
        self._next = _Scram._final
        return codec.sasl_base64(self._header + self._bare)

    def _final(self, server_first: bytes) -> bytes:
        """Answer server-first-message by client-final-message."""
        match = _parsed(_SERVER_FIRST, server_first)
        nonce, salt, iterations = match[1], codec.decode_challenge(match[2]), int(match[3])
        if not nonce.startswith(self._nonce) or nonce == self._nonce:
            raise _Distrust("the server's nonce does not continue ours (RFC 5802, section 5.1)")
        if not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
            raise _Distrust(
                f"the server asks for {iterations} iterations, not {MIN_ITERATIONS} "
                f"(RFC 7677, section 4) to {MAX_ITERATIONS}"
            )
        binding = codec.sasl_base64(self._header + self._bound)
        client_final = b"c=%b,r=%b" % (binding, nonce)
        proof = self._prove(salt, iterations, b",".join((self._bare, server_first, client_final)))
        self._next = _Scram._verify
        return codec.sasl_base64(b"%b,p=%b" % (client_final, codec.sasl_base64(proof)))

    def _prove(self, salt: bytes, iterations: int, message: bytes) -> bytes:
        """Return our proof, and note what the server's has to be (RFC 5802, section 3)."""
        from hashlib import pbkdf2_hmac, sha256

        salted = pbkdf2_hmac("sha256", self._password, salt, iterations)
        self._password = b""
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        server_key = hmac.digest(salted, b"Server Key", "sha256")
        self._server_signature = hmac.digest(server_key, message, "sha256")
        client_signature = hmac.digest(sha256(client_key).digest(), message, "sha256")
        return bytes(map(xor, client_key, client_signature))

    def _verify(self, server_final: bytes) -> bytes:
        """Take server-final-message, which leaves nothing to say."""
        signature = codec.decode_challenge(_parsed(_SERVER_FINAL, server_final)[1])
        if not hmac.compare_digest(signature, self._server_signature):
            raise _Distrust("the server's signature is wrong (RFC 5802, section 5)")
        self.distrust = ""
        return b""


def _parsed(pattern: bytes, message: bytes) -> "re.Match[bytes]":
    match = re.fullmatch(pattern, message)
    if match is None:
        raise _Distrust(
            "the server's message is malformed, or needs an extension (RFC 5802, section 7)"
        )
    return match


def _saslname(name: str) -> str:
    """Return a name with what separates it escaped (RFC 5801, section 4)."""
    return name.replace("=", "=3D").replace(",", "=2C")


def saslprep(value: str) -> str:
    """Return a user name or a password as SASLprep prepares it (RFC 4013).

    Code points that Unicode 3.2 does not have pass, as in a query (RFC 3454,
    section 7): no server that prepares passwords has one with such, but one
    that does not may.

    Raises ValueError for what SASLprep prohibits; it does not show it.
    """
    if value.isascii() and value.isprintable():
        return value
    import stringprep
    from unicodedata import ucd_3_2_0

    mapped = "".join(" " if stringprep.in_table_c12(each) else each for each in value)
    kept = "".join(each for each in mapped if not stringprep.in_table_b1(each))
    prepared = ucd_3_2_0.normalize("NFKC", kept)
    if any(map(_prohibited, prepared)) or _mixes_directions(prepared):
        raise ValueError("a SASL value holds what SASLprep prohibits (RFC 4013, section 2)")
    return prepared


def _prohibited(character: str) -> bool:
    """Whether SASLprep has no place for a character (RFC 4013, section 2.3)."""
    import stringprep

    tables = "c12", "c21_c22", "c3", "c4", "c5", "c6", "c7", "c8", "c9"
    return any(getattr(stringprep, f"in_table_{table}")(character) for table in tables)


def _mixes_directions(text: str) -> bool:
    """Whether text is from right to left, but not all of it (RFC 3454, section 6)."""
    from stringprep import in_table_d1, in_table_d2

    if not any(map(in_table_d1, text)):
        return False
    ends = in_table_d1(text[0]) and in_table_d1(text[-1])
    return not ends or any(map(in_table_d2, text))


# -- channel binding ----------------------------------------------------------


#: The hash functions of signature algorithms, by the OBJECT IDENTIFIER in DER.
#: RFC 5929, section 4.1: SHA-256 stands for MD5 and for SHA-1.
_SIGNATURE_HASHES = {
    "2a864886f70d010104": "sha256",  # md5WithRSAEncryption (RFC 8017, appendix A.2.4)
    "2a864886f70d010105": "sha256",  # sha1WithRSAEncryption
    "2a864886f70d01010b": "sha256",
    "2a864886f70d01010c": "sha384",
    "2a864886f70d01010d": "sha512",
    "2a864886f70d01010e": "sha224",
    "2a8648ce3d0401": "sha256",  # ecdsa-with-SHA1 (RFC 3279, section 2.2.3; RFC 5758)
    "2a8648ce3d040301": "sha224",
    "2a8648ce3d040302": "sha256",
    "2a8648ce3d040303": "sha384",
    "2a8648ce3d040304": "sha512",
}


def channel_binding(connection: "Any") -> "ChannelBinding | None":
    """Return the type and the data of what SCRAM can bind to a TLS connection by, or None.

    *connection* is a socket, an SSLSocket or an SSLObject.  The type is
    tls-exporter with TLS 1.3 (RFC 9266), else tls-unique (RFC 5929), as far as
    Python's ssl has it, and tls-server-end-point where it has not.  None is for
    a connection in clear, and for a certificate by whose signature algorithm
    tls-server-end-point is not defined, or not known here.
    """
    version = connection.version() if hasattr(connection, "version") else None
    if version is None:
        return None
    kind = "tls-exporter" if version == "TLSv1.3" else "tls-unique"
    try:
        data = connection.get_channel_binding(kind)
    except ValueError:
        data = None
    if data is None:
        kind, data = "tls-server-end-point", _end_point(connection.getpeercert(True) or b"")
    return None if data is None else (kind, data)


def _end_point(certificate: bytes) -> "bytes | None":
    """Return the hash of a certificate in DER, by the function its signature has."""
    import hashlib

    try:  # RFC 5280, section 4.1: tbsCertificate, signatureAlgorithm, signatureValue
        start, _ = _element(certificate, 0)
        _, end = _element(certificate, start)
        algorithm, _ = _element(certificate, end)
        identifier = certificate[slice(*_element(certificate, algorithm))]
    except IndexError:
        return None
    name = _SIGNATURE_HASHES.get(identifier.hex())
    return None if name is None else hashlib.new(name, certificate).digest()


def _element(der: bytes, at: int) -> "tuple[int, int]":
    """Return where the content of the DER element at *at* starts and ends (X.690, 8.1)."""
    start, length = at + 2, der[at + 1]
    if length & 0x80:  # the long form: how many octets of length there are
        at, start = start, start + (length & 0x7F)
        length = int.from_bytes(der[at:start], "big")
    return start, start + length


# -- the choice ---------------------------------------------------------------


_PLUS = "SCRAM-SHA-256-PLUS"

#: All mechanisms, strongest first.  SCRAM shows the server nothing that it could
#: use elsewhere; a token is worth less to a thief than a password.
STRONGEST_FIRST = (
    _PLUS,
    "SCRAM-SHA-256",
    "OAUTHBEARER",
    "XOAUTH2",
    "CRAM-MD5",
    "PLAIN",
    "LOGIN",
)


def candidates(
    offered: str,
    *,
    user: str,
    password: "str | None" = None,
    token: "str | None" = None,
    mechanisms: "Iterable[str] | None" = None,
    channel_binding: "ChannelBinding | None" = None,
    host: str = "",
    port: int = 0,
) -> "list[tuple[str, Responder]]":
    """Return the mechanisms to try, in order, each with a new responder: see operations.login().

    *offered* is the parameters of the AUTH extension.  *token* is an OAuth 2.0
    access token.  *mechanisms* names those wanted, in the caller's order; by
    default it is all, strongest first.  Those are left out that the server does
    not offer, for which the credentials or, with -PLUS, the channel_binding()
    is missing, or whose hash function this Python does not have.  *host* and
    *port* are those connected to.

    By default -PLUS is left out, too, where the type of channel binding is
    tls-server-end-point: it has to be asked for.

    Raises ValueError for a name in *mechanisms* that is none, and for
    credentials that a mechanism to try cannot carry.
    """
    offers = frozenset(offered.upper().split())
    makers: dict[str, Callable[[], Responder]] = {}
    if token is not None:
        makers |= _for_token(user, token, host, port)
    if password is not None:
        makers |= _for_password(user, password, channel_binding, _PLUS in offers)
    if mechanisms is not None:
        names = _checked(mechanisms)
    else:
        names = list(STRONGEST_FIRST)
        if channel_binding is not None and channel_binding[0] == "tls-server-end-point":
            # Dovecot, for one, has tls-unique and tls-exporter alone.  That it
            # refuses this type may look like the refusal of a wrong password.
            names.remove(_PLUS)
    return [(name, makers[name]()) for name in names if name in offers and name in makers]


def _checked(mechanisms: "Iterable[str]") -> "list[str]":
    names = [name.upper() for name in mechanisms]
    for name in names:
        if name not in STRONGEST_FIRST:
            raise ValueError(
                f"there is no SASL mechanism {name!r} here; there are {', '.join(STRONGEST_FIRST)}"
            )
    return names


def _for_token(user: str, token: str, host: str, port: int) -> "dict[str, Callable[[], Responder]]":
    return {
        "OAUTHBEARER": lambda: oauthbearer(user, token, host=host, port=port),
        "XOAUTH2": lambda: xoauth2(user, token),
    }


def _for_password(
    user: str, password: str, binding: "ChannelBinding | None", plus_offered: bool
) -> "dict[str, Callable[[], Responder]]":
    import hashlib

    makers: dict[str, Callable[[], Responder]] = {
        "PLAIN": lambda: plain(user, password),
        "LOGIN": lambda: login(user, password),
    }
    if _have_md5():
        makers["CRAM-MD5"] = lambda: cram_md5(user, password)
    if hasattr(hashlib, "pbkdf2_hmac"):  # it comes with OpenSSL
        could_bind = binding is not None and not plus_offered
        makers["SCRAM-SHA-256"] = lambda: scram_sha_256(user, password, could_bind=could_bind)
        if binding is not None:
            makers[_PLUS] = lambda: scram_sha_256_plus(user, password, binding)
    return makers


def _have_md5() -> bool:
    """Whether MD5 is to be had: FIPS 140 does not allow it."""
    try:
        codec.sasl_cram_md5("", "", b"")
    except ValueError:
        return False
    return True
