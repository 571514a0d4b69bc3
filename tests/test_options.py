"""Options: what is asked is written as the RFCs have it, or refused with the reason."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from datetime import date, datetime, time, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastsmtp.errors import SMTPNotSupportedError
from fastsmtp.options import (
    NO_OPTIONS,
    DeliverBy,
    Limits,
    Options,
    Recipient,
    check_supported,
    domain_of,
    parameters_of,
    parse_limits,
    size_limit,
    xtext,
)
from fastsmtp.protocol import parse_extensions

UTC = timezone.utc
NOON = datetime(2030, 1, 2, 12, 0, 0, tzinfo=UTC)


def extensions(*lines: str) -> dict[str, str]:
    return parse_extensions("\n".join(("greets", *lines)).encode("latin-1"))


# -- options, and how they are written ------------------------------------------

WRITTEN = [
    ({}, (), (), ()),
    ({"notify": "never"}, (), ("NOTIFY=NEVER",), ("dsn",)),
    ({"notify": ["never", "never"]}, (), ("NOTIFY=NEVER",), ("dsn",)),
    ({"notify": "failure"}, (), ("NOTIFY=FAILURE",), ("dsn",)),
    (
        {"notify": iter(["delay", "success", "failure", "delay"])},
        (),
        ("NOTIFY=SUCCESS,FAILURE,DELAY",),
        ("dsn",),
    ),
    ({"notify": {"delay", "failure"}}, (), ("NOTIFY=FAILURE,DELAY",), ("dsn",)),
    ({"ret": "full"}, ("RET=FULL",), (), ("dsn",)),
    ({"ret": "hdrs"}, ("RET=HDRS",), (), ("dsn",)),
    ({"envid": "a b=c+d"}, ("ENVID=a+20b+3Dc+2Bd",), (), ("dsn",)),
    ({"envid": "x" * 100}, ("ENVID=" + "x" * 100,), (), ("dsn",)),
    ({"require_tls": True}, ("REQUIRETLS",), (), ("requiretls",)),
    ({"require_tls": False}, (), (), ()),
    ({"deliver_by": 3600}, ("BY=3600;R",), (), ("deliverby",)),
    ({"deliver_by": DeliverBy(1, "return", True)}, ("BY=1;RT",), (), ("deliverby",)),
    ({"deliver_by": DeliverBy(0, "notify")}, ("BY=0;N",), (), ("deliverby",)),
    (
        {"deliver_by": DeliverBy(-999_999_999, "notify", trace=True)},
        ("BY=-999999999;NT",),
        (),
        ("deliverby",),
    ),
    ({"priority": 0}, ("MT-PRIORITY=0",), (), ("mt-priority",)),
    ({"priority": -9}, ("MT-PRIORITY=-9",), (), ("mt-priority",)),
    ({"priority": 9}, ("MT-PRIORITY=9",), (), ("mt-priority",)),
    ({"hold_for": 1}, ("HOLDFOR=1",), (), ("futurerelease",)),
    ({"hold_for": 999_999_999}, ("HOLDFOR=999999999",), (), ("futurerelease",)),
    ({"hold_until": NOON}, ("HOLDUNTIL=2030-01-02T12:00:00Z",), (), ("futurerelease",)),
]


@pytest.mark.parametrize(("fields", "mail", "rcpt", "needed"), WRITTEN)
def test_options_are_written_and_name_their_extension(fields, mail, rcpt, needed):
    options = Options(**fields)
    assert options.mail_parameters == mail
    assert options.rcpt_parameters == rcpt
    assert options.extensions == needed


def test_all_options_at_once():
    options = Options(
        notify=("success", "delay"),
        ret="hdrs",
        envid="id",
        require_tls=True,
        deliver_by=60,
        priority=3,
        hold_for=5,
    )
    assert options.mail_parameters == (
        "RET=HDRS",
        "ENVID=id",
        "REQUIRETLS",
        "BY=60;R",
        "MT-PRIORITY=3",
        "HOLDFOR=5",
    )
    assert options.rcpt_parameters == ("NOTIFY=SUCCESS,DELAY",)
    assert options.extensions == ("dsn", "requiretls", "deliverby", "mt-priority", "futurerelease")
    assert options.notify == ("success", "delay")
    assert options.deliver_by == DeliverBy(60)
    assert (options.ret, options.envid, options.require_tls) == ("hdrs", "id", True)
    assert (options.priority, options.hold_for, options.hold_until) == (3, 5, None)


REFUSED = [
    (ValueError, {"notify": "sometimes"}, "notify='sometimes'", "RFC 3461, section 4.1"),
    (ValueError, {"notify": "success,failure"}, "notify='success,failure'", "RFC 3461"),
    (ValueError, {"notify": ["FAILURE"]}, "notify='FAILURE'", "success, failure, delay"),
    (ValueError, {"notify": ("never", "delay")}, "notify=('never', 'delay')", "alone"),
    (ValueError, {"notify": ()}, "notify=()", 'say "never"'),
    (ValueError, {"notify": ""}, "notify=''", "RFC 3461"),
    (TypeError, {"notify": b"never"}, "notify=110", "RFC 3461"),
    (TypeError, {"notify": True}, "notify=True", "RFC 3461"),
    (ValueError, {"ret": "headers"}, "ret='headers'", "full, hdrs (RFC 3461, section 4.3)"),
    (TypeError, {"ret": b"full"}, "ret=b'full'", "RFC 3461"),
    (ValueError, {"envid": ""}, "envid=''", "RFC 3461, section 4.4"),
    (ValueError, {"envid": "é"}, "envid='é'", "printable ASCII"),
    (ValueError, {"envid": "a\r\nRSET"}, r"envid='a\r\nRSET'", "printable ASCII"),
    (ValueError, {"envid": "a\n"}, r"envid='a\n'", "printable ASCII"),
    (ValueError, {"envid": "x" * 101}, "envid='xxx", "100 characters"),
    (ValueError, {"envid": "=" * 34}, "envid='===", "100 characters"),
    (TypeError, {"envid": 7}, "envid=7", "RFC 3461"),
    (TypeError, {"require_tls": "no"}, "require_tls='no'", "RFC 8689"),
    (TypeError, {"require_tls": None}, "require_tls=None", "RFC 8689"),
    (ValueError, {"deliver_by": 0}, "seconds=0", "with mode 'return', RFC 2852"),
    (ValueError, {"deliver_by": 10**9}, "seconds=1000000000", "RFC 2852"),
    (TypeError, {"deliver_by": 1.5}, "seconds=1.5", "RFC 2852"),
    (TypeError, {"deliver_by": True}, "seconds=True", "RFC 2852"),
    (ValueError, {"priority": 10}, "priority=10", "from -9 to 9 (RFC 6710)"),
    (ValueError, {"priority": -10}, "priority=-10", "RFC 6710"),
    (TypeError, {"priority": "3"}, "priority='3'", "RFC 6710"),
    (ValueError, {"hold_for": 0}, "hold_for=0", "RFC 4865"),
    (ValueError, {"hold_for": 10**9}, "hold_for=1000000000", "RFC 4865"),
    (TypeError, {"hold_for": timedelta(1)}, "hold_for=datetime.timedelta", "RFC 4865"),
    (ValueError, {"hold_for": 5, "hold_until": NOON}, "hold_for=5 and hold_until=", "RFC 4865"),
    (ValueError, {"hold_until": NOON.replace(tzinfo=None)}, "hold_until=datetime", "naive"),
    (TypeError, {"hold_until": "2030-01-02"}, "hold_until='2030-01-02'", "RFC 4865"),
    (TypeError, {"hold_until": date(2030, 1, 2)}, "hold_until=datetime.date", "RFC 4865"),
    (TypeError, {"hold_until": time(12, tzinfo=UTC)}, "hold_until=datetime.time", "RFC 4865"),
    (
        ValueError,
        {"hold_until": datetime.max.replace(tzinfo=UTC)},
        "hold_until=datetime",
        "four digits",
    ),
    (
        ValueError,
        {"hold_until": datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))},
        "hold_until=datetime",
        "four digits",
    ),
]


@pytest.mark.parametrize(("kind", "fields", "shown", "reason"), REFUSED)
def test_what_the_rfcs_do_not_allow_is_refused_by_name_and_value(kind, fields, shown, reason):
    with pytest.raises(kind) as raised:
        Options(**fields)
    assert str(raised.value).startswith(shown)
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "fields", "shown"),
    [
        (ValueError, {"seconds": -1}, "seconds=-1"),
        (ValueError, {"seconds": -(10**9), "mode": "notify"}, "seconds=-1000000000"),
        (ValueError, {"seconds": 10**9, "mode": "notify"}, "seconds=1000000000"),
        (ValueError, {"seconds": 1, "mode": "R"}, "mode='R'"),
        (TypeError, {"seconds": 1, "trace": 1}, "trace=1"),
    ],
)
def test_what_deliver_by_does_not_allow(kind, fields, shown):
    with pytest.raises(kind, match="RFC 2852, section 4") as raised:
        DeliverBy(**fields)
    assert str(raised.value).startswith(shown)


@pytest.mark.parametrize(
    ("moment", "written"),
    [
        (datetime(2030, 1, 2, 1, tzinfo=timezone(timedelta(hours=2))), "2030-01-01T23:00:00Z"),
        (datetime(2030, 1, 2, tzinfo=timezone(-timedelta(minutes=30))), "2030-01-02T00:30:00Z"),
        (NOON.replace(second=59, microsecond=1), "2030-01-02T12:01:00Z"),
        (datetime(987, 6, 5, tzinfo=UTC), "0987-06-05T00:00:00Z"),
    ],
)
def test_a_time_is_written_in_utc_and_never_early(moment, written):
    assert Options(hold_until=moment).mail_parameters == (f"HOLDUNTIL={written}",)


@given(
    moment=st.datetimes(
        datetime(1000, 1, 3),
        datetime(9999, 12, 29),
        timezones=st.builds(timezone, st.timedeltas(-timedelta(hours=23), timedelta(hours=23))),
    )
)
def test_a_time_is_the_next_full_second(moment):
    (parameter,) = Options(hold_until=moment).mail_parameters
    written = datetime.strptime(parameter, "HOLDUNTIL=%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert timedelta(0) <= written - moment < timedelta(seconds=1)


def from_xtext(text: str) -> str:
    assert re.fullmatch(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*", text)
    return re.sub(r"\+(..)", lambda match: chr(int(match[1], 16)), text)


@given(text=st.text(st.characters(max_codepoint=0x7F)))
@example(text="+=\\ ~!\x00\x7f")
def test_xtext_is_one_word_and_reads_back(text):
    assert from_xtext(xtext(text)) == text


def test_xtext_leaves_alone_what_it_may():
    assert xtext("a@x.example;~!") == "a@x.example;~!"
    with pytest.raises(ValueError, match="only express ASCII"):
        xtext("é")


@given(envid=st.text(max_size=110))
@example(envid=" ")
def test_an_envid_reads_back_or_is_refused(envid):
    printable = bool(re.fullmatch("[ -~]+", envid))
    try:
        (parameter,) = Options(envid=envid).mail_parameters
    except ValueError:
        assert not printable or len(xtext(envid)) > 100
    else:
        assert printable
        assert from_xtext(parameter.removeprefix("ENVID=")) == envid


# -- recipients -----------------------------------------------------------------


def from_utf_8_xtext(text: str) -> str:
    assert re.fullmatch(r"(?:[!-*,-<>-\[\]-~]|\\x\{[0-9A-F]{2,6}\})*", text)
    return re.sub(r"\\x\{(.+?)\}", lambda match: chr(int(match[1], 16)), text)


@pytest.mark.parametrize(
    ("orcpt", "written"),
    [
        ("a@x.example", "rfc822;a@x.example"),
        ("Ann <a+b@x.example>", "rfc822;a+2Bb@x.example"),
        ('"a b"@x', 'rfc822;"a+20b"@x'),
        ('"a;b"@x', 'rfc822;"a;b"@x'),
        ("rfc822;a=b@x", "rfc822;a+3Db@x"),
        ("x400;/S=ann/C=no", "x400;/S+3Dann/C+3Dno"),
        ("é@x", r"utf-8;\x{E9}@x"),
        ("a@bücher.example", r"utf-8;a@b\x{FC}cher.example"),
        ("例\U0001f4e7+\\=@x", r"utf-8;\x{4F8B}\x{1F4E7}\x{2B}\x{5C}\x{3D}@x"),
        ("utf-8;é @x", r"utf-8;\x{E9}\x{20}@x"),
        ("UTF-8;é@x", r"UTF-8;\x{E9}@x"),
        ("utf-8;a@x", "utf-8;a@x"),
        ("x" * 487, "rfc822;" + "x" * 487),
    ],
)
def test_an_original_recipient_is_written_with_its_type(orcpt, written):
    recipient = Recipient("b@x", orcpt=orcpt)
    assert recipient.parameters == ("ORCPT=" + written,)
    assert recipient.orcpt == orcpt


@pytest.mark.parametrize(
    ("kind", "orcpt", "reason"),
    [
        (ValueError, "", "no address"),
        (ValueError, "rfc822;", "no address"),
        (ValueError, "rfc822;é@x", "RFC 6533"),
        (ValueError, "a@x\r\nRSET", "cannot be printed"),
        (ValueError, "rfc822;\0", "cannot be printed"),
        (ValueError, "\udcff@x", "cannot be printed"),
        (ValueError, "x" * 488, "500 characters"),
        (ValueError, "é" * 82, "500 characters"),
        (TypeError, b"a@x", "RFC 3461, section 4.2"),
    ],
)
def test_an_original_recipient_that_cannot_be(kind, orcpt, reason):
    with pytest.raises(kind) as raised:
        Recipient("b@x", orcpt=orcpt)
    assert str(raised.value).startswith("orcpt=" + repr(orcpt))
    assert reason in str(raised.value)


@given(local=st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cs"]), min_size=1))
def test_an_address_beyond_ascii_reads_back(local):
    try:
        (parameter,) = Recipient("b@x", orcpt=f"utf-8;{local}@x").parameters
    except ValueError as error:
        assert "\x7f" in local or "500" in str(error)  # noqa: PT017
    else:
        assert from_utf_8_xtext(parameter.removeprefix("ORCPT=utf-8;")) == local + "@x"


def test_a_recipient_s_own_notify_stands_in_for_the_message_s():
    options = Options(notify="never")
    asking = Recipient("a@x", notify=["success"], orcpt="b@x")
    assert asking.parameters == ("NOTIFY=SUCCESS", "ORCPT=rfc822;b@x")
    assert parameters_of(asking, options) == parameters_of(asking, None) == asking.parameters
    named = Recipient("a@x", orcpt="b@x")
    assert parameters_of(named, options) == ("NOTIFY=NEVER", "ORCPT=rfc822;b@x")
    assert parameters_of(named, None) == named.parameters
    assert parameters_of(Recipient("a@x"), options) == ("NOTIFY=NEVER",)
    assert parameters_of("a@x", options) is options.rcpt_parameters
    assert parameters_of("a@x", None) == parameters_of("a@x", NO_OPTIONS) == ()


def test_a_recipient_that_cannot_be():
    with pytest.raises(TypeError, match=r"address=None is not a str \(RFC 5321"):
        Recipient(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="notify='always'"):
        Recipient("a@x", notify="always")


# -- records --------------------------------------------------------------------

RECORDS = [
    (Options(), "Options()"),
    (Options(notify="never", priority=0), "Options(notify=('never',), priority=0)"),
    (
        Options(require_tls=True, deliver_by=5),
        "Options(require_tls=True, deliver_by=DeliverBy(seconds=5, mode='return'))",
    ),
    (
        Options(hold_until=NOON, ret="full", envid="x"),
        f"Options(ret='full', envid='x', hold_until={NOON!r})",
    ),
    (Recipient("a@x"), "Recipient(address='a@x')"),
    (
        Recipient("a@x", notify="delay", orcpt="b@x"),
        "Recipient(address='a@x', notify=('delay',), orcpt='b@x')",
    ),
    (DeliverBy(0, "notify", True), "DeliverBy(seconds=0, mode='notify', trace=True)"),
    (Limits(1, rcpt_domain_max=2), "Limits(mail_max=1, rcpt_domain_max=2)"),
]


@pytest.mark.parametrize(("record", "shown"), RECORDS)
def test_a_record_shows_what_makes_an_equal_one(record, shown):
    assert repr(record) == shown
    fields = {name: getattr(record, name) for name in record._fields}
    again = type(record)(**fields)
    assert again == record
    assert hash(again) == hash(record)
    assert [other for other, _ in RECORDS if other == record] == [record]
    assert record != shown


@pytest.mark.parametrize(("record", "shown"), RECORDS)
def test_a_record_cannot_be_changed_and_can_be_copied(record, shown):
    name = record._fields[0]
    before = getattr(record, name)
    with pytest.raises(AttributeError, match="cannot be changed"):
        setattr(record, name, "success")
    with pytest.raises(AttributeError, match="cannot be changed"):
        record.other = 1
    with pytest.raises(AttributeError, match="cannot be changed"):
        delattr(record, name)
    assert getattr(record, name) == before
    assert not hasattr(record, "__dict__")
    for copied in (
        copy.copy(record),
        copy.deepcopy(record),
        pickle.loads(pickle.dumps(record)),
    ):
        assert copied == record
        assert repr(copied) == shown


def test_a_copy_has_its_parameters():
    options = Options(notify="delay", ret="full")
    assert pickle.loads(pickle.dumps(options)).mail_parameters == options.mail_parameters
    recipient = Recipient("a@x", notify="delay")
    assert copy.deepcopy(recipient).parameters == recipient.parameters


def test_a_time_is_the_same_in_every_zone():
    elsewhere = NOON.astimezone(timezone(timedelta(hours=5)))
    assert Options(hold_until=NOON) == Options(hold_until=elsewhere)


# -- what a server can do -------------------------------------------------------

EVERYTHING = extensions(
    "DSN",
    "REQUIRETLS",
    "DELIVERBY 60",
    "MT-PRIORITY MIXER",
    "FUTURERELEASE 3600 2030-01-02T12:00:00Z",
)


def test_a_server_that_can():
    for options in (
        None,
        NO_OPTIONS,
        Options(
            notify="never", ret="full", require_tls=True, deliver_by=60, priority=1, hold_for=3600
        ),
        Options(hold_until=NOON),
        Options(deliver_by=DeliverBy(59, "notify")),
    ):
        check_supported(options, [Recipient("a@x", orcpt="a@x")], EVERYTHING, tls=True)


def test_nothing_asked_is_always_supported():
    class Untouchable(dict):
        def __getitem__(self, key):
            raise AssertionError(key)

    for options in (None, NO_OPTIONS):
        check_supported(options, (), Untouchable(), tls=False)
        check_supported(options, ["a@x", Recipient("b@x")], {}, tls=False)


@pytest.mark.parametrize(
    ("fields", "extension", "rfc"),
    [
        ({"notify": "never"}, "DSN", "RFC 3461"),
        ({"ret": "hdrs"}, "DSN", "RFC 3461"),
        ({"envid": "x"}, "DSN", "RFC 3461"),
        ({"require_tls": True}, "REQUIRETLS", "RFC 8689"),
        ({"deliver_by": DeliverBy(5)}, "DELIVERBY", "RFC 2852"),
        ({"priority": 0}, "MT-PRIORITY", "RFC 6710"),
        ({"hold_for": 5}, "FUTURERELEASE", "RFC 4865"),
        ({"hold_until": NOON}, "FUTURERELEASE", "RFC 4865"),
    ],
)
def test_an_extension_that_is_not_offered(fields, extension, rfc):
    lacking = {name: value for name, value in EVERYTHING.items() if name != extension.lower()}
    with pytest.raises(SMTPNotSupportedError) as raised:
        check_supported(Options(**fields), (), lacking, tls=True)
    ((name, value),) = Options(**fields)._given().items()
    assert str(raised.value) == (
        f"{name}={value!r} needs {extension}, which the server does not offer ({rfc})"
    )


def test_the_error_names_all_that_needs_the_extension():
    with pytest.raises(SMTPNotSupportedError, match=r"^ret='hdrs', envid='x' needs DSN,"):
        check_supported(Options(envid="x", ret="hdrs", priority=1), (), {}, tls=False)


def test_recipients_of_their_own_need_dsn():
    recipients = ["a@x", Recipient("b@x"), Recipient("c@x", notify="delay", orcpt="d@x")]
    check_supported(None, recipients, {"dsn": ""}, tls=False)
    with pytest.raises(SMTPNotSupportedError, match=r"^notify=\('delay',\), orcpt='d@x' needs DSN"):
        check_supported(NO_OPTIONS, recipients, {}, tls=False)


def test_require_tls_needs_tls():
    with pytest.raises(SMTPNotSupportedError, match=r"require_tls=True .* TLS session.*RFC 8689"):
        check_supported(Options(require_tls=True), (), EVERYTHING, tls=False)


@pytest.mark.parametrize("parameters", ["", " 60", " 60,FUTURE=1", " soon", " ²", " " + "9" * 21])
def test_deliver_by_and_what_the_server_asks_for(parameters):
    offered = extensions("DELIVERBY" + parameters)
    check_supported(Options(deliver_by=60), (), offered, tls=False)
    check_supported(Options(deliver_by=DeliverBy(1, "notify")), (), offered, tls=False)
    if "60" in parameters:
        with pytest.raises(SMTPNotSupportedError, match=r"seconds=59.*60 seconds.*RFC 2852"):
            check_supported(Options(deliver_by=59), (), offered, tls=False)
    else:
        check_supported(Options(deliver_by=59), (), offered, tls=False)


@pytest.mark.parametrize("parameters", ["", " 3600 2030-01-02T12:00:00Z", " 3600", " later"])
def test_hold_for_and_what_the_server_allows(parameters):
    offered = extensions("FUTURERELEASE" + parameters)
    check_supported(Options(hold_for=3600), (), offered, tls=False)
    if "3600" in parameters:
        with pytest.raises(SMTPNotSupportedError, match=r"hold_for=3601.*3600 seconds.*RFC 4865"):
            check_supported(Options(hold_for=3601), (), offered, tls=False)
    else:
        check_supported(Options(hold_for=3601), (), offered, tls=False)


@pytest.mark.parametrize(
    "latest",
    [
        "2030-01-02T12:00:00Z",
        "2030-01-02t12:00:00z",
        "2030-01-02T12:00:00.75Z",
        "2030-01-02T13:30:00+01:30",
        "2030-01-02T12:00:00-00:00",
    ],
)
def test_hold_until_and_what_the_server_allows(latest):
    offered = extensions(f"FUTURERELEASE 3600 {latest}")
    check_supported(Options(hold_until=NOON), (), offered, tls=False)
    elsewhere = NOON.astimezone(timezone(-timedelta(hours=9)))
    check_supported(Options(hold_until=elsewhere), (), offered, tls=False)
    for late in (timedelta(seconds=1), timedelta(microseconds=1)):
        with pytest.raises(SMTPNotSupportedError, match=r"later than 2030-01-02T12:00:00Z.*4865"):
            check_supported(Options(hold_until=NOON + late), (), offered, tls=False)


@pytest.mark.parametrize(
    "parameters", ["", "3600", "3600 999", "3600 2000-02-30T00:00:00Z", "3600 2000-01-01T00:00:00"]
)
def test_a_latest_time_that_is_none_is_the_server_s_to_explain(parameters):
    offered = extensions(f"FUTURERELEASE {parameters}")
    check_supported(Options(hold_until=NOON), (), offered, tls=False)


@pytest.mark.parametrize(
    ("line", "limit"),
    [
        ("SIZE 10240000", 10240000),
        ("SIZE 1", 1),
        ("SIZE 0", None),
        ("SIZE", None),
        ("SIZE 35882577 octets", 35882577),
        ("SIZE -1", None),
        ("SIZE ²", None),
        ("SIZE " + "9" * 20, int("9" * 20)),
        ("SIZE " + "9" * 5000, None),
        ("DSN", None),
    ],
)
def test_size_limit(line, limit):
    assert size_limit(extensions(line)) == limit


# -- limits ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("", Limits()),
        ("MAILMAX=100 RCPTMAX=50 RCPTDOMAINMAX=1", Limits(100, 50, 1)),
        ("rcptmax=999999", Limits(rcpt_max=999_999)),
        ("FUTURE RCPTMAX=5 OTHER=a=b", Limits(rcpt_max=5)),
        ("  RCPTMAX=5  MAILMAX=1 ", Limits(1, 5)),
        # A value that is wrong concerns its limit alone.
        ("RCPTMAX=0 MAILMAX=3", Limits(3)),
        ("RCPTMAX=05 MAILMAX=3", Limits(3)),
        ("RCPTMAX=1000000 MAILMAX=3", Limits(3)),
        ("RCPTMAX MAILMAX=3", Limits(3)),
        ("RCPTMAX=-1 MAILMAX=3", Limits(3)),
        ("RCPTMAX=many MAILMAX=3", Limits(3)),
        ("RCPTMAX=7 RCPTMAX=5 RCPTMAX=6", Limits(rcpt_max=5)),
        # What does not fit the grammar concerns them all.
        ("RCPTMAX=5; MAILMAX=3", Limits()),
        ("RCPTMAX=5 =3", Limits()),
        ("RCPTMAX=5 MAILMAX=", Limits()),
        ("RCPTMAX=5 MAIL.MAX=3", Limits()),
        ("RCPTMAX=5\xb2", Limits()),
    ],
)
def test_limits(text, limits):
    assert parse_limits(text) == limits
    assert parse_limits(extensions("LIMITS " + text)["limits"]) == limits


@given(text=st.text(st.characters(max_codepoint=0xFF)))
def test_any_text_makes_limits(text):
    assert isinstance(parse_limits("RCPTMAX=5 " + text), Limits)


@pytest.mark.parametrize("limit", [0, -1, 1_000_000])
def test_limits_that_cannot_be(limit):
    with pytest.raises(ValueError, match=f"rcpt_max={limit} .*RFC 9422"):
        Limits(rcpt_max=limit)


@pytest.mark.parametrize(
    ("recipient", "domain"),
    [
        ("a@X.Example", "x.example"),
        ("Ann <a@x.example>", "x.example"),
        (Recipient("a@x"), "x"),
        ("a@bücher.example", "xn--bcher-kva.example"),
        ("é@BÜCHER.example", "xn--bcher-kva.example"),
        ('"a@b"@x', "x"),
        ("postmaster", ""),
    ],
)
def test_domain_of(recipient, domain):
    assert domain_of(recipient) == domain


def test_a_domain_that_is_none():
    with pytest.raises(ValueError, match="not one path"):
        domain_of("<@ X=y>")


def test_datetime_is_not_imported_for_options():
    code = (
        "import sys, types; sys.modules['typing'] = sys.modules['dataclasses'] = None; "
        f"sys.path[:] = {sys.path!r}; import fastsmtp; sys.modules['datetime'] = None; "
        "import fastsmtp.options as o; print(*o.Options(priority=1).mail_parameters)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], check=True, capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "MT-PRIORITY=1\n"
