"""Message data and replies: the codecs against what smtplib does for the same result."""

import importlib
import io
import smtplib
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from measure import SIZES, Contenders, text

CODECS = {"c": "_codec", "python": "_codec_py"}


class Case(NamedTuple):
    """Contenders for one result, which `normal` makes of what each returns."""

    what: str
    size: str
    against: str
    target: str
    contenders: Contenders
    expected: object
    normal: Callable[[Any], object]


def codecs() -> dict[str, ModuleType]:
    """Return the codecs that can be imported, by what fastsmtp.implementation() calls them."""
    found = {}
    for name, module in CODECS.items():
        try:
            found[name] = importlib.import_module(f"fastsmtp.{module}")
        except ModuleNotFoundError:
            assert name == "c"
    return found


# -- message data -------------------------------------------------------------


def smtplib_payload(data: str | bytes) -> bytes:
    """Do what smtplib's sendmail() and data() do to a message before they write it."""
    if isinstance(data, str):
        data = smtplib._fix_eols(data).encode("ascii")
    quoted = smtplib._quote_periods(data)
    if quoted[-2:] != b"\r\n":
        quoted = quoted + b"\r\n"
    return quoted + b".\r\n"


def joined(payload: "bytes | tuple[int, tuple[Any, ...]]") -> bytes:
    return payload if isinstance(payload, bytes) else b"".join(payload[1])


def by_lines(data: str | bytes) -> bytes:
    """Return the payload as RFC 5321, section 4.5.2 puts it: line by line."""
    octets = data.encode("ascii") if isinstance(data, str) else data
    lines = [b"." + line if line.startswith(b".") else line for line in octets.splitlines()]
    return b"\r\n".join([*lines, b".", b""])


def payload_case(what: str, size: str, target: str, data: str | bytes) -> Case:
    contenders: dict[str, Callable[[], object]] = {"smtplib": partial(smtplib_payload, data)}
    for name, codec in codecs().items():
        contenders[name] = partial(codec.data_payload, data, isinstance(data, str))
    functions = "`_fix_eols` + `_quote_periods`" if isinstance(data, str) else "`_quote_periods`"
    return Case(what, size, f"smtplib's {functions}", target, contenders, by_lines(data), joined)


def payload_cases() -> list[Case]:
    cases = []
    for newline, name in (("\n", "LF"), ("\r\n", "CRLF")):
        for size, octets in SIZES.items():
            data = text(octets, newline)
            cases.append(payload_case(f"DATA payload, str, {name}", size, "40 x, 5 x", data))
    for dotted, name in ((False, "clean"), (True, "1 % dot lines")):
        for size, octets in SIZES.items():
            wire = text(octets, "\r\n", dotted).encode("ascii")
            cases.append(payload_case(f"DATA payload, bytes, {name}", size, "25 x, 4 x", wire))
    return cases


def copy_case() -> Case:
    """Clean bytes, which the C codec looks at in less time than a copy takes."""
    octets = text(SIZES["10 MB"], "\r\n").encode("ascii")
    contenders: dict[str, Callable[[], object]] = {"copy": lambda: bytes(bytearray(octets))}
    for name, codec in codecs().items():
        contenders[name] = lambda codec=codec: codec.data_payload(octets, False)[1][0]
    against = "`bytes(bytearray(x))`"
    return Case("DATA payload, clean bytes", "10 MB", against, "1 x, -", contenders, octets, bytes)


# -- replies ------------------------------------------------------------------

REPLIES = b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 End data with <CR><LF>.<CR><LF>\r\n"
PARSED = [(250, b"2.1.0 Ok"), (250, b"2.1.5 Ok"), (354, b"End data with <CR><LF>.<CR><LF>")]


def smtplib_replies() -> Callable[[], object]:
    smtp = smtplib.SMTP()
    smtp.file = io.BytesIO(REPLIES)

    def read() -> object:
        smtp.file.seek(0)
        return smtp.getreply(), smtp.getreply(), smtp.getreply()

    return read


def codec_replies(codec: ModuleType) -> Callable[[], object]:
    parser = codec.ReplyParser()

    def read() -> object:
        parser.feed(REPLIES)
        return parser.next_reply(), parser.next_reply(), parser.next_reply()

    return read


def reply_case() -> Case:
    contenders = {"smtplib": smtplib_replies()}
    contenders |= {name: codec_replies(codec) for name, codec in codecs().items()}
    against = "smtplib's `getreply` over BytesIO"
    return Case("reply parsing", "3 replies", against, "4 x, 1.5 x", contenders, PARSED, list)


CASES = [*payload_cases(), copy_case(), reply_case()]

# -- pytest -------------------------------------------------------------------


def parameters() -> list[Any]:
    return [
        pytest.param(
            case,
            contender,
            id=f"{case.what}, {case.size}: {contender}",
            marks=pytest.mark.benchmark(group=f"{case.what}, {case.size}"),
        )
        for case in CASES
        for contender in case.contenders
    ]


@pytest.mark.parametrize(("case", "contender"), parameters())
def test_codec(benchmark, case, contender):
    assert case.normal(benchmark(case.contenders[contender])) == case.expected
