"""SASL mechanisms as pure functions (RFC 4422, RFC 4954).

A mechanism takes the credentials and returns a *responder*: called with None
it gives the initial response, or None if the mechanism has none; called with a
challenge, decoded, it gives the answer, or None if there is none to give.
What it gives is in base64.
"""

from . import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Responder = Callable[["bytes | None"], "bytes | None"]
    Mechanism = Callable[[str, str], Responder]


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
