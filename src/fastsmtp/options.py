"""What a sender may ask of the server besides delivery, and what the server allows.

Options are checked and written out once, when they are made, and may then be
shared by any number of messages.  Whether a server can do what they ask is
known only after its EHLO reply: check_supported() compares the two.
"""

import re

from .envelope import address_only, path
from .errors import SMTPNotSupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from typing import Literal, NoReturn

_NOTIFY = ("success", "failure", "delay")
#: The extensions by their EHLO keywords, with the options that need them and the RFC.
_EXTENSIONS = {
    "dsn": (("notify", "orcpt", "ret", "envid"), "RFC 3461"),
    "requiretls": (("require_tls",), "RFC 8689"),
    "deliverby": (("deliver_by",), "RFC 2852"),
    "mt-priority": (("priority",), "RFC 6710"),
    "futurerelease": (("hold_for", "hold_until"), "RFC 4865"),
}
_NOT_XCHAR = r"[^!-*,-<>-~]"
_NOT_QCHAR = r"[^!-*,-<>-\[\]-~]"
_NEVER_IN_AN_ADDRESS = r"[\x00-\x1f\x7f\ud800-\udfff]"
_ADDRESS_TYPE = "([A-Za-z0-9-]+);"
_DATE_TIME = (
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]+)?(Z|[+-][0-9:]{5})"
)
_LIMIT = r"([A-Za-z0-9_-]+)(?:=([!-:<-~]+))?"


class _Record:
    """Fields that are set once: a record equals another by them, and shows them."""

    __slots__ = ()
    _fields: "tuple[str, ...]" = ()

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _given(self) -> "dict[str, object]":
        """Return the fields that say something."""
        fields = ((name, getattr(self, name)) for name in self._fields)
        return {name: value for name, value in fields if value is not None and value is not False}

    def __setattr__(self, name: str, value: object) -> "NoReturn":
        raise AttributeError(f"{type(self).__name__} cannot be changed: make another")

    def __delattr__(self, name: str) -> "NoReturn":
        raise AttributeError(f"{type(self).__name__} cannot be changed: make another")

    def __setstate__(self, state: "tuple[None, dict[str, object]]") -> None:
        self._set(**state[1])

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._given() == other._given()

    def __hash__(self) -> int:
        return hash((type(self), *self._given().items()))

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self._given().items())
        return f"{type(self).__name__}({given})"


class DeliverBy(_Record):
    """A time to deliver a message in, and what to do when it is over (RFC 2852).

    *seconds* counts from when the server has the message.  With *mode*
    ``"return"`` the message then comes back undelivered; with ``"notify"`` its
    sender is told and delivery goes on, and *seconds* may be negative: it is
    late already.  With *trace* relays report what they do with it.

    Raises ValueError for less than 1 second to return in, or more than nine
    digits of them.
    """

    __slots__ = _fields = ("seconds", "mode", "trace")
    seconds: int
    mode: "Literal['return', 'notify']"
    trace: bool

    def __init__(
        self, seconds: int, mode: "Literal['return', 'notify']" = "return", trace: bool = False
    ) -> None:
        rule = "RFC 2852, section 4"
        _one_of("mode", mode, ("return", "notify"), rule)
        least = 1 if mode == "return" else -999_999_999
        _integer("seconds", seconds, least, 999_999_999, f"with mode {mode!r}, {rule}")
        self._set(seconds=seconds, mode=mode, trace=_flag("trace", trace, rule))

    @property
    def parameter(self) -> str:
        """The parameter of MAIL."""
        return f"BY={self.seconds:d};{self.mode[0].upper()}{'T' if self.trace else ''}"


class Options(_Record):
    """What is asked of the server for a message; it never changes.

    - *notify*: when to report about each recipient: any of ``"success"``,
      ``"failure"``, ``"delay"``, or ``"never"`` alone (RFC 3461, section 4.1).
    - *ret*: whether a report of failure has the ``"full"`` message or its
      ``"hdrs"`` (section 4.3).
    - *envid*: an identifier for such reports to repeat: printable ASCII, up to
      100 characters as xtext (section 4.4).
    - *require_tls*: every hop on the way must use TLS (RFC 8689).
    - *deliver_by*: a DeliverBy, or seconds after which to return (RFC 2852).
    - *priority*: from -9, the lowest, to 9 (RFC 6710).
    - *hold_for*, *hold_until*: seconds to hold the message, up to 999,999,999,
      or an aware datetime to hold it until (RFC 4865); one of them at most.

    Raises ValueError or TypeError, with the name and the value, for what the
    RFCs do not allow.
    """

    _fields = (
        "notify",
        "ret",
        "envid",
        "require_tls",
        "deliver_by",
        "priority",
        "hold_for",
        "hold_until",
    )
    __slots__ = (*_fields, "extensions", "mail_parameters", "rcpt_parameters")
    #: In the order of RFC 3461, or None.
    notify: "tuple[str, ...] | None"
    ret: "Literal['full', 'hdrs'] | None"
    envid: "str | None"
    require_tls: bool
    deliver_by: "DeliverBy | None"
    priority: "int | None"
    hold_for: "int | None"
    hold_until: "datetime | None"
    #: The parameters of MAIL.
    mail_parameters: "tuple[str, ...]"
    #: The parameters of each RCPT; see parameters_of() for recipients with their own.
    rcpt_parameters: "tuple[str, ...]"
    #: The EHLO keywords, in lower case, of the extensions that are needed.
    extensions: "tuple[str, ...]"

    def __init__(
        self,
        *,
        notify: "Iterable[str] | str | None" = None,
        ret: "Literal['full', 'hdrs'] | None" = None,
        envid: "str | None" = None,
        require_tls: bool = False,
        deliver_by: "DeliverBy | int | None" = None,
        priority: "int | None" = None,
        hold_for: "int | None" = None,
        hold_until: "datetime | None" = None,
    ) -> None:
        mail: list[str] = []
        if ret is not None:
            _one_of("ret", ret, ("full", "hdrs"), "RFC 3461, section 4.3")
            mail.append("RET=" + ret.upper())
        if envid is not None:
            mail.append("ENVID=" + _envid(envid))
        if _flag("require_tls", require_tls, "RFC 8689"):
            mail.append("REQUIRETLS")
        if deliver_by is not None:
            if not isinstance(deliver_by, DeliverBy):
                deliver_by = DeliverBy(deliver_by)
            mail.append(deliver_by.parameter)
        if priority is not None:
            mail.append(f"MT-PRIORITY={_integer('priority', priority, -9, 9, 'RFC 6710'):d}")
        if hold_for is not None or hold_until is not None:
            mail.append(_hold_parameter(hold_for, hold_until))
        words = None if notify is None else _notify(notify)
        self._set(notify=words, ret=ret, envid=envid, require_tls=require_tls)
        self._set(deliver_by=deliver_by, priority=priority)
        self._set(hold_for=hold_for, hold_until=hold_until)
        self._set(mail_parameters=tuple(mail), rcpt_parameters=_notify_parameter(words))
        self._set(extensions=_extensions(self._given()))


class Recipient(_Record):
    """A recipient with a say of its own about reports (RFC 3461); it never changes.

    *address* is what a recipient may be as str, and is checked where that is.
    *notify* is as in Options, whose it replaces.  *orcpt* is the address to name
    in reports (section 4.2): an address, or ``"type;value"`` for another type;
    the value is encoded here.

    Raises ValueError or TypeError as Options does.
    """

    _fields = ("address", "notify", "orcpt")
    __slots__ = (*_fields, "parameters")
    address: str
    notify: "tuple[str, ...] | None"
    orcpt: "str | None"
    #: The recipient's own parameters of RCPT.
    parameters: "tuple[str, ...]"

    def __init__(
        self,
        address: str,
        *,
        notify: "Iterable[str] | str | None" = None,
        orcpt: "str | None" = None,
    ) -> None:
        _text("address", address, "RFC 5321, section 4.1.2")
        words = None if notify is None else _notify(notify)
        own = _notify_parameter(words)
        if orcpt is not None:
            own = (*own, _orcpt_parameter(orcpt))
        self._set(address=address, notify=words, orcpt=orcpt, parameters=own)


def parameters_of(recipient: "str | Recipient", options: "Options | None") -> "tuple[str, ...]":
    """Return the parameters of a recipient's RCPT: its own, and those of the message."""
    shared = () if options is None else options.rcpt_parameters
    if isinstance(recipient, str):
        return shared
    # NOTIFY must not appear twice (RFC 3461, section 4.5).
    return recipient.parameters if recipient.notify else shared + recipient.parameters


# -- what may be asked, and how it is written ---------------------------------


def _text(name: str, value: str, rule: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r} is not a str ({rule})")
    return value


def _flag(name: str, value: bool, rule: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is not a bool ({rule})")
    return value


def _integer(name: str, value: object, least: int, most: int, rule: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is not an int ({rule})")
    if not least <= value <= most:
        raise ValueError(f"{name}={value!r} is not from {least} to {most} ({rule})")
    return value


def _one_of(name: str, value: str, words: "tuple[str, ...]", rule: str) -> str:
    if _text(name, value, rule) not in words:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(words)} ({rule})")
    return value


def _notify(notify: "Iterable[str] | str") -> "tuple[str, ...]":
    rule = "RFC 3461, section 4.1"
    try:
        words = (notify,) if isinstance(notify, str) else tuple(notify)
    except TypeError:
        raise TypeError(f"notify={notify!r} is neither a str nor several ({rule})") from None
    for word in words:
        _one_of("notify", word, ("never", *_NOTIFY), rule)
    if not words:
        raise ValueError(f'notify={notify!r} is empty: for no report say "never" ({rule})')
    if "never" not in words:
        return tuple([word for word in _NOTIFY if word in words])
    if set(words) != {"never"}:
        raise ValueError(f'notify={notify!r}: "never" must stand alone ({rule})')
    return ("never",)


def _notify_parameter(words: "tuple[str, ...] | None") -> "tuple[str, ...]":
    return () if words is None else ("NOTIFY=" + ",".join(words).upper(),)


def xtext(text: str) -> str:
    """Return ASCII text as it may stand in a parameter (RFC 3461, section 4).

    Raises ValueError if it is not ASCII.
    """
    if not text.isascii():
        raise ValueError(f"xtext can only express ASCII (RFC 3461, section 4): {text!r}")
    return re.sub(_NOT_XCHAR, lambda match: f"+{ord(match[0]):02X}", text)


def _envid(envid: str) -> str:
    rule = "RFC 3461, section 4.4"
    if not re.fullmatch("[ -~]+", _text("envid", envid, rule)):
        raise ValueError(f"envid={envid!r} is not printable ASCII ({rule})")
    encoded = xtext(envid)
    if len(encoded) > 100:
        raise ValueError(f"envid={envid!r} is longer than 100 characters as xtext ({rule})")
    return encoded


def _orcpt_parameter(orcpt: str) -> str:
    rule = "RFC 3461, section 4.2"
    if re.search(_NEVER_IN_AN_ADDRESS, _text("orcpt", orcpt, rule)):
        raise ValueError(f"orcpt={orcpt!r} has characters that cannot be printed ({rule})")
    if typed := re.match(_ADDRESS_TYPE, orcpt):
        kind, value = typed[1], orcpt[typed.end() :]
    else:
        value = address_only(orcpt)
        kind = "rfc822" if value.isascii() else "utf-8"
    if not value:
        raise ValueError(f"orcpt={orcpt!r} has no address ({rule})")
    if kind.lower() == "utf-8":
        value = _utf_8_address(value)
    elif value.isascii():
        value = xtext(value)
    else:
        raise ValueError(f"orcpt={orcpt!r} is not ASCII, but not of type utf-8 (RFC 6533)")
    parameter = f"ORCPT={kind};{value}"
    if len(parameter) > 500:
        raise ValueError(f"orcpt={orcpt!r} is longer than 500 characters as written ({rule})")
    return parameter


def _utf_8_address(address: str) -> str:
    r"""Return an address as utf-8-addr-xtext, with ``\x{E9}`` for what is not ASCII.

    It is the one form that servers without SMTPUTF8 take, too (RFC 6533,
    section 3).
    """
    return re.sub(_NOT_QCHAR, lambda match: f"\\x{{{ord(match[0]):02X}}}", address)


def _hold_parameter(hold_for: "int | None", hold_until: "datetime | None") -> str:
    if hold_until is None:
        return f"HOLDFOR={_integer('hold_for', hold_for, 1, 999_999_999, 'RFC 4865'):d}"
    if hold_for is not None:
        both = f"hold_for={hold_for!r} and hold_until={hold_until!r}"
        raise ValueError(f"{both}: one message has one of them (RFC 4865)")
    return "HOLDUNTIL=" + _utc(hold_until)


def _utc(moment: "datetime") -> str:
    """Return an aware datetime as RFC 3339, section 5.6, has it, in UTC.

    It is rounded up to seconds: nothing is to be released early.
    """
    if not hasattr(moment, "timestamp"):  # without importing datetime to say isinstance()
        raise TypeError(f"hold_until={moment!r} is not a datetime (RFC 4865)")
    offset = moment.utcoffset()
    if offset is None:
        raise ValueError(f"hold_until={moment!r} is naive: it has no tzinfo (RFC 4865)")
    try:
        utc = moment.replace(tzinfo=None) - offset
        if utc.microsecond:
            utc = utc.replace(microsecond=0) + type(offset)(seconds=1)
    except OverflowError:
        raise ValueError(f"hold_until={moment!r} has no year of four digits (RFC 3339)") from None
    return utc.isoformat(timespec="seconds") + "Z"


def _extensions(given: "Mapping[str, object]") -> "tuple[str, ...]":
    needed = [
        keyword
        for keyword, (names, _) in _EXTENSIONS.items()
        if any(name in given for name in names)
    ]
    return tuple(needed)


#: Nothing is asked for.
NO_OPTIONS = Options()


# -- what a server can do -----------------------------------------------------


def check_supported(
    options: "Options | None",
    recipients: "Iterable[str | Recipient]",
    extensions: "Mapping[str, str]",
    *,
    tls: bool,
) -> None:
    """Hold that a server can do what is asked of it.

    *extensions* are as protocol.parse_extensions() gives them.  *tls* says
    that the session is under TLS, with the server's certificate verified: both
    are conditions of REQUIRETLS (RFC 8689, section 2).  *recipients* matter
    only if there are Recipients among them.

    Raises SMTPNotSupportedError with the option, the extension and the RFC.
    """
    if options is not None and options.extensions:
        _check_options(options, extensions, tls)
    if "dsn" not in extensions:
        for recipient in recipients:
            if not isinstance(recipient, str) and recipient.parameters:
                raise _not_offered(recipient, "dsn")


def _check_options(options: Options, extensions: "Mapping[str, str]", tls: bool) -> None:
    if options.require_tls and not tls:
        raise SMTPNotSupportedError(
            "require_tls=True needs REQUIRETLS, and for that an active TLS session, "
            "with the server's certificate verified (RFC 8689, section 2)"
        )
    for keyword in options.extensions:
        if keyword not in extensions:
            raise _not_offered(options, keyword)
    if options.deliver_by is not None:
        _check_deliver_by(options.deliver_by, extensions["deliverby"])
    if options.hold_for is not None:
        _check_hold_for(options.hold_for, extensions["futurerelease"])
    if options.hold_until is not None:
        _check_hold_until(options.hold_until, extensions["futurerelease"])


def _not_offered(asking: "Options | Recipient", keyword: str) -> SMTPNotSupportedError:
    names, rfc = _EXTENSIONS[keyword]
    given = asking._given()
    asked = ", ".join([f"{name}={given[name]!r}" for name in names if name in given])
    need = f"{asked} needs {keyword.upper()}, which the server does not offer ({rfc})"
    return SMTPNotSupportedError(need)


def _check_deliver_by(deliver_by: DeliverBy, parameters: str) -> None:
    # Options of the future stand behind commas (RFC 2852, section 2).
    least = _number(parameters.partition(",")[0])
    if least is not None and deliver_by.mode == "return" and deliver_by.seconds < least:
        raise SMTPNotSupportedError(
            f"deliver_by={deliver_by!r} is less than the {least} seconds "
            "which the server's DELIVERBY asks for (RFC 2852, section 2)"
        )


def _check_hold_for(seconds: int, parameters: str) -> None:
    most = _number(parameters.partition(" ")[0])
    if most is not None and seconds > most:
        raise SMTPNotSupportedError(
            f"hold_for={seconds!r} is more than the {most} seconds "
            "which the server's FUTURERELEASE allows (RFC 4865)"
        )


def _check_hold_until(moment: "datetime", parameters: str) -> None:
    latest = re.fullmatch(_DATE_TIME, parameters.partition(" ")[2].strip().upper())
    if latest is None:
        return
    zone = "+00:00" if latest[2] == "Z" else latest[2]  # Python 3.10 has no Z
    try:
        limit = _utc(type(moment).fromisoformat(latest[1] + zone))
    except ValueError:
        return  # the server knows what it means
    if _utc(moment) > limit:
        raise SMTPNotSupportedError(
            f"hold_until={moment!r} is later than {limit}, "
            "the last the server's FUTURERELEASE allows (RFC 4865)"
        )


def _number(text: str) -> "int | None":
    """Return a number that a server gave, or None if it gave none."""
    return int(text) if re.fullmatch("[0-9]{1,20}", text.strip()) else None


def size_limit(extensions: "Mapping[str, str]") -> "int | None":
    """Return the most octets a message may have, or None if no limit is known (RFC 1870)."""
    return _number(extensions.get("size", "").partition(" ")[0]) or None


class Limits(_Record):
    """The limits a server sets (RFC 9422), each an int, or None for no limit.

    - *mail_max*: transactions in one session.
    - *rcpt_max*: recipients in one transaction.
    - *rcpt_domain_max*: domains of recipients, different ones, in one session:
      who sends several transactions must count them together.
    """

    __slots__ = _fields = ("mail_max", "rcpt_max", "rcpt_domain_max")
    mail_max: "int | None"
    rcpt_max: "int | None"
    rcpt_domain_max: "int | None"

    def __init__(
        self,
        mail_max: "int | None" = None,
        rcpt_max: "int | None" = None,
        rcpt_domain_max: "int | None" = None,
    ) -> None:
        limits = {"mail_max": mail_max, "rcpt_max": rcpt_max, "rcpt_domain_max": rcpt_domain_max}
        for name, limit in limits.items():
            if limit is not None:
                _integer(name, limit, 1, 999_999, "RFC 9422, section 4")
        self._set(**limits)


_LIMITS = {"MAILMAX": "mail_max", "RCPTMAX": "rcpt_max", "RCPTDOMAINMAX": "rcpt_domain_max"}


def parse_limits(text: str) -> Limits:
    """Return the limits that the parameters of the LIMITS extension set (RFC 9422).

    Limits that are not known, and values that are not from 1 to 999999, are
    passed over; parameters that cannot be told apart are, all of them.
    """
    limits: dict[str, int] = {}
    for parameter in text.split(" "):
        limit = re.fullmatch(_LIMIT, parameter)
        if limit is None:
            if parameter:
                return Limits()
            continue
        name = _LIMITS.get(limit[1].upper())
        if name and re.fullmatch("[1-9][0-9]{0,5}", limit[2] or ""):
            # Of two that contradict each other the smaller one is safe.
            limits[name] = min(int(limit[2]), limits.get(name, 999_999))
    return Limits(**limits)


def domain_of(recipient: "str | Recipient") -> str:
    """Return the domain of a recipient, in lower case and ASCII, or "" if it has none.

    Raises ValueError as envelope.path() does.
    """
    address = recipient if isinstance(recipient, str) else recipient.address
    _, at, domain = path(address)[1:-1].rpartition("@")
    return domain.lower() if at else ""
