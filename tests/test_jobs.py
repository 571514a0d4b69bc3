"""Jobs by scripted outcomes: who is sent what, how often, and what it comes to."""

from __future__ import annotations

import re
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp.delivery import overall
from fastsmtp.errors import SMTPNotSupportedError, SMTPProtocolError, SMTPServerDisconnected
from fastsmtp.jobs import AGAIN, DONE, LATER, MOST_LOSSES, Job
from fastsmtp.options import Limits, Options
from fastsmtp.outgoing import Message, Server
from fastsmtp.reply import Reply

GONE = SMTPServerDisconnected("Connection unexpectedly closed")
OK = Reply(250, b"2.0.0 Ok: queued as 4XyZ")
BODY = b"Subject: x\r\n\r\nx\r\n"
SMTP = Server({"pipelining": ""}, pipelined=True)
LMTP = Server({"pipelining": ""}, pipelined=True, lmtp=True)


def job(recipients=2, *, retries=0, **options):
    """Return a job of a message to a@x, b@x ... or to the addresses given."""
    if isinstance(recipients, int):
        recipients = [f"{name}@x" for name in "abcdefgh"[:recipients]]
    message = Message("s@x", recipients, BODY, **options)
    return Job(message, lambda delivery: None, retries, 100.0)


def addressed(transaction):
    """Return whom a transaction is for."""
    return re.findall(r"RCPT TO:<(.*?)>", transaction.commands.decode())


def replies(texts):
    """Return "250 ok, 550" as replies."""
    pairs = (text.strip().partition(" ") for text in texts.split(",") if text)
    return [Reply(int(code), rest.encode()) for code, _, rest in pairs]


def played(transaction, mail="", rcpts="", data="", finals="", *, committed=None):
    """Give a transaction these replies.

    It is *committed*, if nothing else is said, as soon as there is a reply to
    the message.
    """
    outcome = transaction.outcome
    for reply in replies(mail):
        outcome.take_mail(reply)
    for reply in replies(rcpts):
        outcome.take_rcpt(reply)
    for reply in replies(data):
        outcome.take_data(reply)
    for reply in replies(finals):
        outcome.take_final(reply)
    transaction.committed = bool(finals) if committed is None else committed
    return transaction


def statuses(subject):
    return [result.status for result in subject.delivery(0).recipients]


# -- one transaction ----------------------------------------------------------


def test_all_accepted():
    subject = job()
    transaction = subject.transaction(SMTP)
    assert transaction.job is subject
    assert addressed(transaction) == ["a@x", "b@x"]
    subject.connection = 7
    played(transaction, "250", "250, 251", "354", "250 2.0.0 Ok: queued as 4XyZ")
    assert subject.settle(transaction) is DONE
    delivery = subject.delivery(102.5)
    assert delivery == (
        subject.handed_in, "accepted", (("a@x", "accepted", OK), ("b@x", "accepted", OK)),
        OK, 1, 7, 2.5, None,
    )  # fmt: skip
    assert (delivery.queue_id, subject.octets) == ("4XyZ", len(BODY))


def test_the_usual_result_is_the_one_that_would_have_been_settled():
    shortly, at_length = job(), job()
    for subject in (shortly, at_length):
        subject.connection = 3
        transaction = subject.transaction(SMTP)
        transaction.committed = True
        transaction.final = OK
    assert at_length.settle(transaction) is DONE
    assert shortly.accepted(OK, 101.0)[1:] == at_length.delivery(101.0)[1:]
    assert type(shortly.accepted(OK, 101.0)) is type(at_length.delivery(101.0))
    assert type(shortly.accepted(OK, 101.0).recipients[0]).__name__ == "RecipientResult"


ONE = [
    # replies to MAIL, RCPTs, DATA and the message; each recipient's status and code; reply
    ("550", "503, 503", "", "", "rejected 550, rejected 550", 550),
    ("451", "503, 503", "", "", "deferred 451, deferred 451", 451),
    ("250", "550, 450", "", "", "rejected 550, deferred 450", 450),
    ("250", "450, 550", "", "", "deferred 450, rejected 550", 550),
    ("250", "250, 550", "354", "250", "accepted 250, rejected 550", 250),
    ("250", "550, 250", "354", "554", "rejected 550, rejected 554", 554),
    ("250", "250, 250", "451", "", "deferred 451, deferred 451", 451),
    ("250", "250, 250", "554", "", "rejected 554, rejected 554", 554),
    ("250", "250, 250", "354", "451", "deferred 451, deferred 451", 451),
    ("250", "251, 252", "354", "250", "accepted 250, accepted 250", 250),
    ("250", "250, 252", "354", "554", "rejected 554, rejected 554", 554),
    # 452 is about the number of recipients only where it is said to one of them
    ("250", "250, 250", "452", "", "deferred 452, deferred 452", 452),
    ("250", "250, 250", "354", "452", "deferred 452, deferred 452", 452),
    ("250", "250, 250", "354", "452 4.5.3 many", "deferred 452, deferred 452", 452),
    ("452", "503, 503", "", "", "deferred 452, deferred 452", 452),
    ("250", "452, 452", "503", "", "deferred 452, deferred 452", 452),
    ("250", "250, 452 4.2.2 full", "354", "250", "accepted 250, deferred 452", 250),
]


@pytest.mark.parametrize(("mail", "rcpts", "data", "finals", "expected", "code"), ONE)
def test_what_one_transaction_comes_to(mail, rcpts, data, finals, expected, code):
    subject = job()
    transaction = played(subject.transaction(SMTP), mail, rcpts, data, finals)
    assert subject.settle(transaction) is DONE
    delivery = subject.delivery(101.0)
    results = [f"{status} {reply.code}" for _, status, reply in delivery.recipients]
    assert ", ".join(results) == expected
    assert delivery.reply.code == code
    assert delivery.attempts == 1
    assert (delivery.error, delivery.seconds) == (None, 1.0)


@pytest.mark.parametrize(
    ("rcpts", "finals", "expected"),
    [
        ("250, 250", "250, 452", "accepted 250, deferred 452"),
        ("250, 250", "550, 250", "rejected 550, accepted 250"),
        ("550, 250", "250", "rejected 550, accepted 250"),
        ("250, 251", "550, 452", "rejected 550, deferred 452"),
        ("250, 250", "250, 421", "accepted 250, deferred 421"),
    ],
)
def test_lmtp_recipients_have_their_own_reply(rcpts, finals, expected):
    subject = job()
    transaction = played(subject.transaction(LMTP), "250", rcpts, "354", finals)
    assert subject.settle(transaction) is DONE
    results = [f"{each.status} {each.reply.code}" for each in subject.delivery(0).recipients]
    assert ", ".join(results) == expected
    assert subject.delivery(0).reply == replies(finals)[-1]


@pytest.mark.parametrize("server", [SMTP, LMTP])
@pytest.mark.parametrize(("code", "status"), [(552, "rejected"), (451, "deferred")])
def test_a_message_may_be_refused_before_all_of_it_was_written(server, code, status):
    # A server that has seen enough answers, and reads on, or closes.
    for data in ("354", ""):  # by DATA, by BDAT
        subject = job(1)
        transaction = subject.transaction(server)
        played(transaction, "250", "250", data, f"{code} too big", committed=False)
        subject.settle(transaction)
        assert subject.delivery(0).recipients == (("a@x", status, (code, b"too big")),)
        assert subject.delivery(0).reply == (code, b"too big")


# -- lost connections ---------------------------------------------------------


def test_lost_before_the_message_is_sent_again():
    subject = job()
    for attempt in range(1, MOST_LOSSES):
        transaction = played(subject.transaction(SMTP), "250", "250, 550")
        assert subject.lose(transaction, GONE, False) is AGAIN
        assert subject.attempts == attempt
    assert subject.lose(subject.transaction(SMTP), GONE, False) is DONE
    delivery = subject.delivery(0)
    assert (delivery.status, delivery.error, delivery.reply) == ("not_sent", GONE, None)
    assert delivery.recipients == (("a@x", "not_sent", None), ("b@x", "not_sent", None))
    assert delivery.attempts == MOST_LOSSES


def test_lost_after_it_is_unknown():
    subject = job()
    transaction = played(subject.transaction(SMTP), "250", "250, 550 no", "354", committed=True)
    assert subject.lose(transaction, GONE, False) is DONE
    delivery = subject.delivery(0)
    assert (delivery.status, delivery.error) == ("unknown", GONE)
    assert delivery.recipients == (("a@x", "unknown", None), ("b@x", "rejected", (550, b"no")))


@pytest.mark.parametrize("got", ["", "250", "250 550", "250 550 250", "550"])
def test_lost_after_a_chunk(got):
    # With BDAT all may be sent, and none of the replies be there.
    subject = job(3)
    transaction = subject.transaction(SMTP)
    mail, _, rcpts = got.partition(" ")
    played(transaction, mail, rcpts.replace(" ", ","), committed=True)
    assert subject.lose(transaction, GONE, False) is DONE
    expected = {"550": ["rejected"] * 3}.get(mail, ["unknown"] * 3)
    if rcpts:
        expected[0] = "rejected"
    assert statuses(subject) == expected


def test_lost_with_all_refused_is_no_risk():
    subject = job()
    transaction = played(subject.transaction(SMTP), "250", "550, 450", committed=True)
    assert subject.lose(transaction, GONE, False) is AGAIN


@pytest.mark.parametrize("rcpts", ["550, 550", "550, 450"])
def test_taken_though_it_was_for_nobody_is_unknown(rcpts):
    subject = job()
    transaction = played(subject.transaction(SMTP), "250", rcpts, committed=True)
    with pytest.raises(SMTPProtocolError) as raised:
        transaction.outcome.take_chunk(OK)
    assert subject.lose(transaction, raised.value, False) is DONE
    assert statuses(subject) == ["unknown", "unknown"]
    assert subject.delivery(0).error is raised.value


def test_lost_among_the_replies_of_lmtp():
    subject = job(3)
    transaction = played(subject.transaction(LMTP), "250", "250, 250, 250", "354", "250 saved")
    assert subject.lose(transaction, GONE, False) is DONE
    assert statuses(subject) == ["accepted", "unknown", "unknown"]
    assert subject.delivery(0).status == "unknown"
    assert subject.delivery(0).reply == (250, b"saved")


def test_the_reply_is_not_that_of_an_earlier_attempt():
    subject = job(2, retries=1)
    transaction = played(subject.transaction(LMTP), "250", "450 later, 450 later", "503")
    assert subject.settle(transaction) is LATER
    transaction = played(subject.transaction(LMTP), "250", "250, 250", "354", "250 saved")
    assert subject.lose(transaction, GONE, False) is DONE
    assert statuses(subject) == ["accepted", "unknown"]
    assert subject.delivery(0).reply == (250, b"saved")


def test_unknown_is_sent_again_if_asked_but_not_for_ever():
    subject = job()
    for _ in range(MOST_LOSSES - 1):
        transaction = played(subject.transaction(SMTP), "250", "250, 550", "354", committed=True)
        assert subject.lose(transaction, GONE, True) is AGAIN
        assert subject.waiting == [0]
    transaction = played(subject.transaction(SMTP), "250", "250", "354", committed=True)
    assert addressed(transaction) == ["a@x"]
    assert subject.lose(transaction, GONE, True) is DONE
    assert statuses(subject) == ["unknown", "rejected"]
    assert subject.delivery(0).attempts == MOST_LOSSES


def test_unknown_that_was_sent_again_and_taken_is_accepted():
    subject = job(1)
    subject.lose(played(subject.transaction(SMTP), committed=True), GONE, True)
    assert statuses(subject) == ["unknown"]
    transaction = played(subject.transaction(SMTP), "250", "250", "354", "250")
    assert subject.settle(transaction) is DONE
    assert (subject.delivery(0).status, subject.delivery(0).error) == ("accepted", None)


def test_421_is_about_the_connection():
    subject = job()
    for _ in range(MOST_LOSSES - 1):
        assert subject.settle(played(subject.transaction(SMTP), "250", "250, 421 bye")) is AGAIN
    assert subject.settle(played(subject.transaction(SMTP), "421 bye")) is DONE
    delivery = subject.delivery(0)
    assert delivery.recipients == (("a@x", "deferred", (421, b"bye")),
                                   ("b@x", "deferred", (421, b"bye")))  # fmt: skip
    assert (delivery.status, delivery.reply, delivery.error) == ("deferred", (421, b"bye"), None)


def test_a_421_that_decided_nothing_is_not_the_reply():
    subject = job(1, retries=1)
    transaction = played(subject.transaction(SMTP), "250", "450 later", "503")
    assert subject.settle(transaction) is LATER
    assert subject.settle(played(subject.transaction(SMTP), "421 bye")) is AGAIN
    subject.give_up()
    assert subject.delivery(0).recipients == (("a@x", "deferred", (450, b"later")),)
    assert subject.delivery(0).reply == (450, b"later")


def test_421_in_one_group_leaves_the_other_unsent():
    subject = job(3)
    limits = Limits(rcpt_max=2)
    for _ in range(MOST_LOSSES):
        verdict = subject.settle(played(subject.transaction(SMTP, limits=limits), "421 bye"))
    assert verdict is DONE
    assert statuses(subject) == ["deferred", "deferred", "not_sent"]
    assert subject.delivery(0).status == "not_sent"


def test_losses_and_421_are_counted_together():
    subject = job(1)
    verdicts = []
    while len(verdicts) < MOST_LOSSES:
        transaction = subject.transaction(SMTP)
        if len(verdicts) % 2:
            verdicts.append(subject.settle(played(transaction, "421 bye")))
        else:
            verdicts.append(subject.lose(transaction, GONE, False))
    assert verdicts == [AGAIN] * (MOST_LOSSES - 1) + [DONE]
    assert statuses(subject) == ["not_sent"]


# -- further transactions -----------------------------------------------------


def test_what_is_deferred_is_tried_again_later():
    subject = job(3, retries=1)
    transaction = played(subject.transaction(SMTP), "250", "450, 250, 550", "354", "250 one")
    assert subject.settle(transaction) is LATER
    transaction = subject.transaction(SMTP)
    assert addressed(transaction) == ["a@x"]
    assert subject.settle(played(transaction, "250", "450 still", "503")) is DONE
    delivery = subject.delivery(0)
    assert [(each.status, each.reply.text) for each in delivery.recipients] == [
        ("deferred", b"still"), ("accepted", b"one"), ("rejected", b""),
    ]  # fmt: skip
    assert (delivery.status, delivery.attempts) == ("partial", 2)
    assert delivery.reply == (450, b"still")


def test_too_many_recipients_are_split_at_once():
    subject = job(5)
    rcpts = "250, 250, 452 4.5.3 many, 452 many, 452 4.5.3 many"
    verdict = subject.settle(played(subject.transaction(SMTP), "250", rcpts, "354", "250 one"))
    assert verdict is AGAIN
    transaction = subject.transaction(SMTP)
    assert addressed(transaction) == ["c@x", "d@x"]  # as many as it took
    verdict = subject.settle(played(transaction, "250", "250, 250", "354", "250 two"))
    assert verdict is AGAIN
    transaction = subject.transaction(SMTP)
    assert addressed(transaction) == ["e@x"]
    assert subject.settle(played(transaction, "250", "250", "354", "250 three")) is DONE
    texts = [each.reply.text for each in subject.delivery(0).recipients]
    assert texts == [b"one", b"one", b"two", b"two", b"three"]
    assert subject.delivery(0).status == "accepted"


def test_too_many_and_the_message_refused():
    # Each is asked about once: the message may be for the others what it is for none of these.
    subject = job(3)
    transaction = played(subject.transaction(SMTP), "250", "250, 452, 452", "354", "554 spam")
    assert subject.settle(transaction) is AGAIN
    transaction = subject.transaction(SMTP)
    assert addressed(transaction) == ["b@x", "c@x"]
    assert subject.settle(played(transaction, "250", "250, 250", "354", "554 spam")) is DONE
    assert statuses(subject) == ["rejected"] * 3


def test_deferred_is_not_tried_again_together_with_those_that_were_too_many():
    subject = job(3, retries=1)
    transaction = played(subject.transaction(SMTP), "250", "450 later, 250, 452", "354", "250")
    assert subject.settle(transaction) is AGAIN
    transaction = subject.transaction(SMTP)
    assert addressed(transaction) == ["c@x"]
    assert subject.settle(played(transaction, "250", "250", "354", "250")) is LATER
    transaction = subject.transaction(SMTP)
    assert addressed(transaction) == ["a@x"]
    assert subject.settle(played(transaction, "250", "250", "354", "250")) is DONE
    assert statuses(subject) == ["accepted"] * 3


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_deferred_recipients_do_not_keep_the_rest_from_their_turn(retries):
    subject = job(2, retries=retries)
    asked = []
    for _ in range(20):
        transaction = subject.transaction(SMTP, limits=Limits(rcpt_max=1))
        asked += addressed(transaction)
        if asked[-1] == "b@x":
            played(transaction, "250", "250", "354", "250")
        else:
            played(transaction, "250", "450 later", "503")
        verdict = subject.settle(transaction)
        if verdict is DONE:
            break
    assert asked == ["a@x", "b@x", *["a@x"] * retries]
    assert statuses(subject) == ["deferred", "accepted"]


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_a_message_that_is_always_refused_for_now(retries):
    subject = job(2, retries=retries)
    verdicts = []
    while len(verdicts) < 20 and verdicts[-1:] != [DONE]:
        transaction = subject.transaction(SMTP)
        rcpts = ", ".join(
            ["250", "452 4.5.3 many"][: transaction.count] if transaction.count > 1 else ["250"]
        )
        played(transaction, "250", rcpts, "354", "451 later")
        verdicts.append(subject.settle(transaction))
    assert verdicts == [AGAIN, LATER] * retries + [AGAIN, DONE]
    assert statuses(subject) == ["deferred", "deferred"]


def test_a_server_s_limit_of_recipients():
    subject = job(5)
    seen = []
    for verdict in (AGAIN, AGAIN, DONE):
        transaction = subject.transaction(SMTP, limits=Limits(rcpt_max=2))
        seen.append(addressed(transaction))
        transaction.committed = True
        transaction.final = OK
        assert subject.settle(transaction) is verdict
    assert seen == [["a@x", "b@x"], ["c@x", "d@x"], ["e@x"]]
    assert (subject.delivery(0).status, subject.attempts) == ("accepted", 3)


def test_a_server_s_limit_of_domains_is_one_for_the_session():
    subject = job(["a@x", "b@y", "c@X", "d@z", "e@y"])
    limits = Limits(rcpt_domain_max=2)
    session: set[str] = {"w"}
    transaction = subject.transaction(SMTP, None, limits, session)
    assert (addressed(transaction), session) == (["a@x", "c@X"], {"w", "x"})
    assert subject.settle(played(transaction, "250", "250, 250", "354", "250")) is AGAIN
    assert subject.transaction(SMTP, None, limits, session) is None
    assert subject.attempts == 1
    session = set()
    transaction = subject.transaction(SMTP, None, limits, session)
    assert (addressed(transaction), session) == (["b@y", "d@z", "e@y"], {"y", "z"})
    assert subject.settle(played(transaction, "250", "250, 550, 250", "354", "250")) is DONE
    assert statuses(subject) == ["accepted", "accepted", "accepted", "rejected", "accepted"]


@pytest.mark.parametrize("limits", [Limits(), Limits(mail_max=3), Limits(rcpt_max=9)])
def test_limits_that_do_not_bite(limits):
    subject = job(3)
    transaction = subject.transaction(SMTP, None, limits, set())
    assert addressed(transaction) == ["a@x", "b@x", "c@x"]
    assert subject.settle(played(transaction, "250", "250, 250, 250", "354", "250")) is DONE
    assert statuses(subject) == ["accepted"] * 3


def test_limits_of_one_session_do_not_hold_in_the_next():
    # A name may stand for several servers, not all of which have LIMITS.
    subject = job(3)
    transaction = subject.transaction(SMTP, None, Limits(rcpt_max=1), set())
    assert addressed(transaction) == ["a@x"]
    assert subject.lose(transaction, GONE, False) is AGAIN
    transaction = subject.transaction(SMTP)
    assert addressed(transaction) == ["a@x", "b@x", "c@x"]
    assert subject.settle(played(transaction, "250", "250, 250, 550", "354", "250")) is DONE
    assert statuses(subject) == ["accepted", "accepted", "rejected"]


def test_a_session_that_was_of_no_use_leaves_nothing_behind():
    subject = job(["a@x", "b@y"])
    full = {"z"}
    assert subject.transaction(SMTP, None, Limits(rcpt_domain_max=1), full) is None
    transaction = subject.transaction(SMTP)
    assert subject.settle(played(transaction, "250", "250, 250", "354", "250")) is DONE
    assert statuses(subject) == ["accepted", "accepted"]


# -- giving up ----------------------------------------------------------------


def test_given_up_before_it_began():
    subject = job()
    error = OSError("no connection")
    assert subject.give_up(error) is DONE
    delivery = subject.delivery(100.5)
    assert delivery.recipients == (("a@x", "not_sent", None), ("b@x", "not_sent", None))
    assert (delivery.status, delivery.error, delivery.reply) == ("not_sent", error, None)
    assert (delivery.attempts, delivery.connection, delivery.seconds) == (0, 0, 0.5)


def test_given_up_while_it_waits():
    subject = job(3, retries=1)
    subject.settle(played(subject.transaction(SMTP), "250", "450 a, 550 b, 250", "354", "250 c"))
    assert subject.give_up() is DONE
    assert statuses(subject) == ["deferred", "rejected", "accepted"]
    assert subject.delivery(0).error is None


def test_given_up_between_two_groups():
    subject = job(2)
    transaction = subject.transaction(SMTP, limits=Limits(rcpt_max=1))
    subject.settle(played(transaction, "250", "250", "354", "250"))
    subject.give_up(GONE)
    assert statuses(subject) == ["accepted", "not_sent"]
    assert subject.delivery(0).status == "partial"


def test_given_up_keeps_the_first_error_if_there_is_no_other():
    subject = job(1)
    subject.lose(subject.transaction(SMTP), GONE, False)
    subject.give_up()
    assert subject.delivery(0).error is GONE
    subject = job(1)
    subject.lose(subject.transaction(SMTP), GONE, False)
    error = OSError("no connection")
    subject.give_up(error)
    assert subject.delivery(0).error is error


def test_an_email_message():
    message = EmailMessage()
    message["From"], message["To"], message["Message-ID"] = "f@x", "a@x, b@x", "<1@x>"
    message.set_content("x")
    subject = Job(message, lambda delivery: None, 0, 0.0)
    transaction = subject.transaction(SMTP)
    assert addressed(transaction) == ["a@x", "b@x"]
    assert subject.settle(played(transaction, "250", "250, 250", "354", "250")) is DONE
    assert subject.delivery(0).message is message
    assert subject.delivery(0).id == "<1@x>"


@pytest.mark.parametrize("handed_in", [None, "a@x", b"text", EmailMessage()])
def test_what_cannot_be_sent_has_a_delivery(handed_in):
    subject = Job(handed_in, lambda delivery: None, 0, 0.0)
    with pytest.raises((TypeError, ValueError)) as raised:
        subject.transaction(SMTP)
    subject.give_up(raised.value)
    delivery = subject.delivery(0)
    assert (delivery.status, delivery.error, delivery.attempts) == ("not_sent", raised.value, 0)
    assert delivery.message is handed_in


def test_a_recipient_of_another_kind_has_a_delivery():
    # Whatever the caller did to it: one message must not be the end of all.
    subject = job(["a@x"])
    subject.handed_in.recipients = [None, "a@x"]
    for limits in (None, Limits(rcpt_max=1)):
        with pytest.raises(TypeError) as raised:
            subject.transaction(SMTP, limits=limits)
        subject.give_up(raised.value)
        assert subject.delivery(0).status == "not_sent"


def test_what_a_server_cannot_do_is_not_sent():
    subject = job(1, options=Options(require_tls=True))
    with pytest.raises(SMTPNotSupportedError) as raised:
        subject.transaction(SMTP)
    subject.give_up(raised.value)
    assert subject.delivery(0).recipients == (("a@x", "not_sent", None),)
    assert subject.delivery(0).attempts == 0


def test_options_of_the_mailer_are_for_messages_without_their_own():
    dsn = Server({"dsn": "", "pipelining": ""}, pipelined=True)
    subject = job(1)
    assert b"RET=HDRS" in subject.transaction(dsn, Options(ret="hdrs")).commands
    subject = job(1, options=Options(envid="1"))
    commands = subject.transaction(dsn, Options(ret="hdrs")).commands
    assert b"RET" not in commands
    assert b"ENVID=1" in commands


@pytest.mark.parametrize("limits", [None, Limits(rcpt_max=1)])
def test_nobody_to_send_to(limits):
    subject = job(0)
    with pytest.raises(ValueError, match="at least one recipient"):
        subject.transaction(SMTP, limits=limits)
    subject.give_up()
    assert subject.delivery(0).status == "not_sent"


@pytest.mark.parametrize("handed_in", [None, "a@x", EmailMessage()])
@pytest.mark.parametrize("error", [None, GONE])
def test_given_up_before_it_was_seen_that_it_cannot_be_sent(handed_in, error):
    subject = Job(handed_in, lambda delivery: None, 0, 0.0)
    assert subject.give_up(error) is DONE
    delivery = subject.delivery(0)
    assert (delivery.status, delivery.recipients) == ("not_sent", ())
    if error is None:
        assert isinstance(delivery.error, (TypeError, ValueError))
    else:
        assert delivery.error is error


# -- any sequence of outcomes -------------------------------------------------

mails = st.sampled_from(["250"] * 8 + ["421", "450", "452", "550"])
rcpt_codes = st.sampled_from(
    ["250"] * 6 + ["251", "252", "421", "450", "452", "452 4.5.3 many", "452 4.2.2 full", "550"]
)
data_codes = st.sampled_from(["354"] * 6 + ["421", "451", "452", "554"])
final_codes = st.sampled_from(["250"] * 4 + ["421", "451", "452", "452 4.5.3 many", "554"])


class Fate:
    """What becomes of one transaction, drawn as a server and a network may have it."""

    def __init__(self, data, transaction, turn, *, bdat):
        self.data = data
        self.transaction = transaction
        self.turn = turn
        lost = data.draw(st.sampled_from([False, False, False, True]))
        #: Replies that come before the connection is lost.
        self.left = data.draw(st.integers(0, 2 * transaction.count + 2)) if lost else 1 << 30
        self.ended = False
        #: By position in the transaction: the reply that decided, None if it is not known.
        self.decided = [None] * transaction.count
        outcome = transaction.outcome
        self.play(bdat)
        transaction.committed = bool(outcome.finals) or (
            (bdat or outcome.is_ready) and data.draw(st.booleans())
        )

    @property
    def is_lost(self):
        return self.left < 0

    def next(self, codes):
        """Draw a reply, unless there is none: the connection is lost, or 421 was said."""
        self.left -= 1
        if self.left < 0:
            self.ended = True
            return None
        code, _, text = self.data.draw(codes).partition(" ")
        self.ended = code == "421"
        self.turn += 1
        return Reply(int(code), text.encode() or b"%d" % self.turn)

    def play(self, bdat):
        transaction, outcome = self.transaction, self.transaction.outcome
        if (mail := self.next(mails)) is None:
            return
        outcome.take_mail(mail)
        for at in range(transaction.count):
            if self.ended:
                break
            codes = rcpt_codes if mail.code == 250 else st.just("503")
            if (reply := self.next(codes)) is not None:
                outcome.take_rcpt(reply)
                self.decided[at] = reply if reply.code >= 400 else None
        if mail.code != 250:
            self.decided = [mail] * transaction.count
        if self.ended or not (outcome.accepted or bdat):
            return
        if not bdat:
            if (data := self.next(data_codes)) is None:
                return
            outcome.take_data(data)
            if data.code != 354:
                self.decide(data)
                return
        self.play_finals()

    def play_finals(self):
        transaction, outcome = self.transaction, self.transaction.outcome
        codes = final_codes if outcome.accepted else st.just("503")
        if not transaction.lmtp:
            if (final := self.next(codes)) is not None:
                outcome.take_final(final)
                self.decide(final)
            return
        for at, reply in enumerate(outcome.rcpts):
            if reply.code < 300:
                final = outcome.last if self.ended else self.next(codes)
                if final is None:
                    return
                outcome.take_final(final)
                self.decided[at] = final

    def decide(self, reply):
        """Take a reply that is about all recipients who were not refused."""
        for at, decided in enumerate(self.decided):
            self.decided[at] = reply if decided is None else decided


class Ledger:
    """What is known of each recipient, kept apart from the job's own books."""

    def __init__(self, count, resend_unknown):
        self.expected = [("not_sent", None)] * count
        self.resend_unknown = resend_unknown
        self.losses = 0

    def begin(self, positions):
        for position in positions:
            status, _ = self.expected[position]
            assert status not in ("accepted", "rejected"), "is settled"
            assert status != "unknown" or self.resend_unknown, "may have it twice"

    def end(self, positions, fate):
        outcome = fate.transaction.outcome
        if fate.is_lost:
            self.losses += 1
            if not fate.transaction.may_be_taken:
                return
        elif outcome.last.code == 421 and not outcome.delivered:
            self.losses += 1
            if self.losses == MOST_LOSSES:
                for position in positions:
                    self.expected[position] = ("deferred", outcome.last)
            return
        for at, position in enumerate(positions):
            reply = fate.decided[at]
            self.expected[position] = (self.status(reply), reply)

    @staticmethod
    def status(reply):
        if reply is None:
            return "unknown"
        return {2: "accepted", 4: "deferred", 5: "rejected"}[reply.code // 100]


@given(
    data=st.data(),
    count=st.integers(1, 5),
    retries=st.integers(0, 2),
    how=st.sampled_from(["DATA", "DATA", "LMTP", "BDAT"]),
    limits=st.none() | st.builds(
        Limits,
        rcpt_max=st.none() | st.integers(1, 3),
        rcpt_domain_max=st.none() | st.integers(1, 2),
    ),
    resend_unknown=st.booleans(),
)  # fmt: skip
def test_any_sequence_of_outcomes(data, count, retries, how, limits, resend_unknown):
    addresses = [f"r{at}@d{at % 3}" for at in range(count)]
    subject = job(addresses, retries=retries)
    ledger = Ledger(count, resend_unknown)
    server = LMTP if how == "LMTP" else SMTP
    domains: set[str] = set()
    verdict, waits, turn = AGAIN, 0, 0
    # Each transaction settles a recipient for this round at least, or is lost.
    most = count * (retries + 1) + MOST_LOSSES
    while verdict is not DONE:
        assert subject.attempts < most, "goes on and on"
        # Of several servers behind a name not all need to have limits.
        transaction = subject.transaction(
            server, None, limits if data.draw(st.booleans()) else None, domains
        )
        if transaction is None:
            assert domains, "not even for a new session"
            domains = set()
            continue
        positions = [addresses.index(address) for address in addressed(transaction)]
        assert positions
        assert positions == sorted(set(positions))
        ledger.begin(positions)
        fate = Fate(data, transaction, turn, bdat=how == "BDAT")
        turn = fate.turn
        ledger.end(positions, fate)
        if fate.is_lost:
            verdict = subject.lose(transaction, GONE, resend_unknown)
        else:
            verdict = subject.settle(transaction)
        waits += verdict is LATER
        if fate.ended:
            domains = set()
    delivery = subject.delivery(0)
    assert waits <= retries
    assert [each.address for each in delivery.recipients] == addresses
    assert [(each.status, each.reply) for each in delivery.recipients] == ledger.expected
    assert delivery.status == overall(delivery.recipients)
    assert delivery.attempts == subject.attempts
    assert delivery.error in (None, GONE)
    if delivery.status == "unknown":
        assert delivery.error is GONE
    elif delivery.status != "not_sent":
        assert delivery.error is None
    if not {"unknown", "not_sent"} & {each.status for each in delivery.recipients}:
        assert delivery.reply in [each.reply for each in delivery.recipients]
