"""Deliveries and their totals: what is told of a message, and of many."""

from __future__ import annotations

import itertools
import pickle
from email.message import EmailMessage, Message

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsmtp
from fastsmtp.delivery import STATUSES, Delivery, RecipientResult, Totals, overall
from fastsmtp.reply import Reply

OK = Reply(250, b"2.0.0 Ok: queued as 4XyZ")
ONE = tuple(status for status in STATUSES if status != "partial")


def delivery(*results, message=None, reply=OK, seconds=0.0, error=None):
    """Return a delivery to a0@x, a1@x ... with these statuses, or (status, reply)."""
    made = []
    for number, result in enumerate(results):
        status, own = (result, None) if isinstance(result, str) else result
        made.append(RecipientResult(f"a{number}@x", status, own))
    status = overall(tuple(made))
    return Delivery(message, status, tuple(made), reply, 1, 1, seconds, error)


# -- of one message -----------------------------------------------------------


@pytest.mark.parametrize("statuses", [
    mixture for count in range(4) for mixture in itertools.product(ONE, repeat=count)
])  # fmt: skip
def test_overall(statuses):
    status = overall(tuple(RecipientResult("a@x", each, None) for each in statuses))
    present = set(statuses)
    if not present:
        assert status == "not_sent"
    elif len(present) == 1:
        assert {status} == present
    elif "unknown" in present:
        assert status == "unknown"  # some may have it, and some may get a double
    elif "accepted" in present:
        assert status == "partial"
    elif "not_sent" in present:
        assert status == "not_sent"
    else:
        assert status == "deferred"  # and rejected: a further attempt is worth it


QUEUE_IDS = [
    ("2.0.0 Ok: queued as 4XyZ", "4XyZ"),  # Postfix
    ("2.0.0 Ok: queued as 4bBcT84rWgz3Fx1", "4bBcT84rWgz3Fx1"),
    ("Ok: queued as 9F2C1A0B3D", "9F2C1A0B3D"),
    ("2.0.0 Ok: 4096 bytes queued as 4XyZ", "4XyZ"),  # to BDAT
    ("2.0.0 from MTA(smtp:[127.0.0.1]:10025): 250 2.0.0 Ok: queued as 4XyZ", "4XyZ"),  # amavisd
    ("OK id=1tABC-000000001-AB2c", "1tABC-000000001-AB2c"),  # Exim
    ("OK id=1pQrSt-0003Ab-9Z", "1pQrSt-0003Ab-9Z"),
    ("2.0.0 4AB Message accepted for delivery", "4AB"),  # Sendmail
    ("2.0.0 4ABCdEf0012345 Message accepted for delivery", "4ABCdEf0012345"),
    ("2.0.0 1a2b3c4d Message accepted for delivery", "1a2b3c4d"),  # OpenSMTPD
    ("2.0.0: 1a2b3c4d Message accepted for delivery", "1a2b3c4d"),
    (  # Amazon SES
        "Ok 0102018f1c2d3e4f-01234567-89ab-cdef-0123-456789abcdef-000000",
        "0102018f1c2d3e4f-01234567-89ab-cdef-0123-456789abcdef-000000",
    ),
    (  # Exchange
        (
            "2.6.0 <1@host.example> [InternalId=1234567890, Hostname=EX1.example.com] "
            "1234 bytes in 0.123, 9.80 KB/sec Queued mail for delivery"
        ),
        "1234567890",
    ),
    (  # Gmail
        "2.0.0 OK  1700000000 d2e1a72fcca58-6c4d5e6f7a8sm1234567b3a.12 - gsmtp",
        "d2e1a72fcca58-6c4d5e6f7a8sm1234567b3a.12",
    ),
    ("2.0.0 <a@x> OGaZL8gp2k5MDAAAPgNsVg Saved", "OGaZL8gp2k5MDAAAPgNsVg"),  # Dovecot
    ("2.0.0 OK", None),
    ("OK", None),
    ("", None),
    ("Message received", None),
    # No name is told, and a word or a status code is none.
    ("2.0.0 Message accepted for delivery", None),
    ("2.6.0 Message queued", None),
    ("2.0.0 OK, queued", None),
    ("Message Queued", None),
    ("Mail queued for delivery", None),
    ("2.0.0 Ok delivered", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "queue_id"), QUEUE_IDS)
def test_queue_id(text, queue_id):
    assert delivery("accepted", reply=Reply(250, text.encode())).queue_id == queue_id


def test_queue_id_of_a_reply_of_several_lines():
    reply = Reply(250, b"2.0.0 thank you\n2.0.0 Ok: queued as 4XyZ")
    assert delivery("accepted", reply=reply).queue_id == "4XyZ"


@pytest.mark.parametrize("reply", [None, Reply(451, OK.text), Reply(550, b"OK id=1tABC-1-A")])
def test_a_message_that_was_not_taken_has_no_queue_id(reply):
    assert delivery("deferred", reply=reply).queue_id is None


@given(text=st.binary(max_size=60) | st.text("OK id=queued s.<>-0a", max_size=40).map(str.encode))
def test_queue_id_of_anything(text):
    queue_id = delivery("accepted", reply=Reply(250, text)).queue_id
    assert queue_id is None or (queue_id and queue_id in text.decode("latin-1"))


@pytest.mark.parametrize("kind", [EmailMessage, Message])
def test_the_id_of_an_email_message_is_its_message_id(kind):
    message = kind()
    assert delivery("accepted", message=message).id is None
    message["Message-ID"] = "<1@x>"
    assert delivery("accepted", message=message).id == "<1@x>"


def test_the_id_of_a_message_is_the_caller_s():
    number = object()
    message = fastsmtp.Message("f@x", "a@x", b"", id=number)
    assert delivery("accepted", message=message).id is number
    assert delivery("accepted", message=fastsmtp.Message("f@x", "a@x", b"")).id is None


@pytest.mark.parametrize("message", [None, "a text", b"bytes", {"Message-ID": "1"}])
def test_what_was_no_message_has_no_id(message):
    assert delivery("not_sent", message=message).id is None


def test_refused_is_as_sendmail_returns_it():
    refused, deferred = Reply(550, b"no"), Reply(450, b"later")
    told = delivery(
        ("accepted", OK), ("rejected", refused), ("deferred", deferred), "unknown", "not_sent"
    )
    assert told.refused == {"a1@x": refused, "a2@x": deferred}
    assert delivery("accepted").refused == {}


def test_a_delivery_is_a_tuple_that_can_be_sent_elsewhere():
    told = delivery(("accepted", OK), message="m", error=OSError("x"))
    copy = pickle.loads(pickle.dumps(told))
    assert copy[:-1] == told[:-1]
    assert (copy.reply.code, copy.recipients[0].reply.text) == (250, OK.text)
    with pytest.raises(AttributeError):
        told.status = "rejected"


# -- of many ------------------------------------------------------------------


def test_nothing_yet():
    totals = Totals()
    assert repr(totals) == "<Totals: nothing yet>"
    assert totals.counts == dict.fromkeys(STATUSES, 0)
    assert totals.recipients == dict.fromkeys(ONE, 0)
    assert (totals.messages, totals.octets, totals.connections) == (0, 0, 0)
    assert (totals.seconds, totals.rate) == (0.0, 0.0)
    assert (totals.notes, totals.replies) == ([], {})


def test_what_is_counted():
    totals = Totals()
    totals.add(delivery(("accepted", OK), ("accepted", OK)), 100, 10.0)
    totals.add(delivery(("accepted", OK), ("rejected", Reply(550, b"no"))), 20, 10.5)
    totals.add(delivery(("deferred", Reply(450, b"later"))), 3, 11.0)
    totals.add(delivery("unknown"), 4, 11.5)
    totals.add(delivery("not_sent", "not_sent", reply=None), 5, 12.0)
    assert totals.counts == {
        "accepted": 1, "partial": 1, "deferred": 1, "rejected": 0, "unknown": 1, "not_sent": 1,
    }  # fmt: skip
    assert totals.recipients == {
        "accepted": 3, "deferred": 1, "rejected": 1, "unknown": 1, "not_sent": 2,
    }  # fmt: skip
    assert (totals.messages, totals.octets) == (5, 120)
    assert totals.replies == {(550, None, "no"): 1, (450, None, "later"): 1}
    assert repr(totals) == "<Totals: accepted=1, partial=1, deferred=1, unknown=1, not_sent=1>"


def test_time_counts_from_when_the_first_message_was_taken_in_hand():
    totals = Totals()
    totals.add(delivery("accepted", seconds=2.0), 1, 100.0)
    assert totals.seconds == 2.0
    totals.add(delivery(("accepted", OK), ("rejected", OK), seconds=0.5), 1, 102.0)
    totals.add(delivery("rejected", seconds=3.5), 1, 103.0)
    assert totals.seconds == 5.0
    assert totals.rate == 2 / 5.0


SAME = [
    # replies that are one reason, and how they are counted
    (
        [(550, "5.1.1 <ann@x.example>: unknown"), (550, "5.1.1 <bob@y.example>: unknown")],
        (550, (5, 1, 1), "<...>: unknown"),
    ),
    (
        [(451, "try later (4XyZ12345678)"), (451, "try later (4XyZ87654321)")],
        (451, None, "try later (...)"),
    ),
    (
        [(554, "5.7.1 id 1tABC-000000001-AB2c is spam"),
         (554, "5.7.1 id 1tXYZ-000000002-CD3e is spam")],
        (554, (5, 7, 1), "id ... is spam"),
    ),
    ([(550, "5.7.1 no\n5.7.1 never")], (550, (5, 7, 1), "no 5.7.1 never")),
    ([(550, "5.7.1")], (550, (5, 7, 1), "")),
    ([(550, "4.7.1 of another class")], (550, None, "4.7.1 of another class")),
    ([(450, "Greylisted")], (450, None, "Greylisted")),
    ([(550, "not a@x but <b c@d>")], (550, None, "not a@x but <b c@d>")),
]  # fmt: skip


@pytest.mark.parametrize(("replies", "key"), SAME)
def test_replies_are_counted_without_what_differs(replies, key):
    totals = Totals()
    for code, text in replies:
        status = "rejected" if code >= 500 else "deferred"
        totals.add(delivery((status, Reply(code, text.encode()))), 1, 1.0)
    assert totals.replies == {key: len(replies)}


def test_a_reply_that_is_not_utf_8():
    totals = Totals()
    totals.add(delivery(("rejected", Reply(550, b"caf\xe9 caf\xc3\xa9"))), 1, 1.0)
    assert totals.replies == {(550, None, "caf\ufffd café"): 1}


def test_reasons_without_end_are_counted_by_their_codes():
    totals = Totals()
    words = ["".join(letters) for letters in itertools.product("abcdefghij", repeat=3)]
    for word in (*words, "yes", "no", "abc"):
        totals.add(delivery(("rejected", Reply(550, b"5.7.1 " + word.encode()))), 1, 1.0)
    assert totals.replies[550, (5, 7, 1), "abc"] == 2
    assert totals.replies[550, (5, 7, 1), "..."] == 2
    assert len(totals.replies) == len(words) + 1


@given(
    statuses=st.lists(st.lists(st.sampled_from(ONE), min_size=1, max_size=3), max_size=10),
    text=st.binary(max_size=30),
)
def test_the_sums_are_right(statuses, text):
    totals = Totals()
    reply = Reply(450, text)
    for number, each in enumerate(statuses):
        results = [(one, reply) if one in ("deferred", "rejected") else one for one in each]
        totals.add(delivery(*results), 10, float(number))
    everybody = [one for each in statuses for one in each]
    assert totals.messages == sum(totals.counts.values()) == len(statuses)
    assert totals.recipients == {one: everybody.count(one) for one in ONE}
    refused = everybody.count("deferred") + everybody.count("rejected")
    assert sum(totals.replies.values()) == refused
    assert totals.octets == 10 * (totals.counts["accepted"] + totals.counts["partial"])
