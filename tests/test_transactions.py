"""Transactions one after another, against a model of a server: what is stored is what is said."""

from __future__ import annotations

import itertools
import re
from collections import Counter, deque

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastsmtp import codec, transactions
from fastsmtp.envelope import Envelope
from fastsmtp.errors import SMTPProtocolError
from fastsmtp.operations import NEED_REPLY, Send
from fastsmtp.reply import Reply
from fastsmtp.transactions import (
    NEXT,
    NEXT_IF_ANY,
    Expect,
    StrictOutcome,
    Transaction,
    chunked,
    one_by_one,
    overlapped,
)

RSET, DATA, DOT = b"RSET\r\n", b"DATA\r\n", b".\r\n"
NOTHING_LOST = 1 << 30


def content(number: int) -> bytes:
    return b"Subject: message %d\r\n\r\n.dot %d\r\n" % (number, number)


def transaction(number: int, recipients: int = 1, *, lmtp: bool = False, bdat: bool = False):
    """Return a transaction all of whose parts tell its number."""
    envelope = Envelope(f"s{number}@x", [f"r{number}-{at}@x" for at in range(recipients)])
    size, payload = codec.data_payload(content(number), True)
    if bdat:
        payload = (content(number),)
    commands = b"".join((envelope.mail, *envelope.rcpts))
    made = Transaction(commands, recipients, payload, size, envelope=envelope, lmtp=lmtp)
    made.job = number
    return made


def commands(number: int, recipients: int = 1) -> bytes:
    return transaction(number, recipients).commands


def body(number: int) -> bytes:
    return b"".join(transaction(number).payload)


def bdat(number: int, recipients: int = 1) -> bytes:
    message = content(number)
    return (
        RSET + commands(number, recipients) + b"BDAT %d LAST\r\n" % len(message) + message
    )  # each in one flight


# -- a server -----------------------------------------------------------------


class Server:
    """A server that holds commands to their order, and answers by its whims.

    *whims* are codes, one for each command in turn, None for what is proper;
    then everything is proper.  A *lax* server says 354 where there are no
    recipients, as RFC 2920, section 3.1, foresees.  One that *resets* does not
    refuse RSET but with 421 (RFC 5321, section 4.1.1.5).  A reply's text is the
    number of the message it is about: that of the last MAIL.
    """

    def __init__(self, whims=(), *, lmtp=False, lax=False, resets=True):
        self.whims = iter(whims)
        self.lmtp = lmtp
        self.lax = lax
        self.resets = resets
        self.replies = deque()
        self.stored = []
        self.closed = False
        self.about = b""
        self.input = b""
        self.chunk = None  # octets that a BDAT wants yet
        self.in_data = False
        self.reset()

    def reset(self):
        self.sender = None
        self.recipients = []

    def receive(self, octets):
        self.input += octets
        while not self.closed and (taken := self.take()):
            assert taken

    def take(self):
        if self.in_data:
            return self.take_data()
        if self.chunk is not None:
            return self.take_chunk()
        line, newline, rest = self.input.partition(b"\r\n")
        if newline:
            self.input = rest
            verb, _, argument = line.partition(b" ")
            getattr(self, verb.decode().lower())(argument)
        return newline

    def take_data(self):
        octets = self.input
        end = 0 if octets.startswith(DOT) else octets.find(b"\r\n.\r\n") + 2
        if end == 1:
            return False
        self.input = octets[end + len(DOT) :]
        self.in_data = False
        self.deliver(re.sub(rb"(?m)^\.", b"", octets[:end]))
        return True

    def take_chunk(self):
        if len(self.input) < self.chunk:
            return False
        message, self.input = self.input[: self.chunk], self.input[self.chunk :]
        self.chunk = None
        if self.recipients:
            self.deliver(message)
        else:
            self.say(503)
        return True

    def deliver(self, message):
        if not self.recipients:
            self.say(554)
        elif self.lmtp:
            taken = [to for to in self.recipients if self.say(self.whim(250)) == 250]
            if taken:
                self.store(taken, message)
        elif self.say(self.whim(250)) == 250:
            self.store(self.recipients, message)
        self.reset()

    def store(self, recipients, message):
        self.stored.append((self.sender, tuple(recipients), message))

    def whim(self, proper, allowed=()):
        """Return what the server feels like; what would be no refusal must be *allowed*."""
        code = next(self.whims, None)
        return code if code in allowed or (code or 0) >= 400 else proper

    def say(self, code):
        if self.closed:
            return 421
        self.replies.append(Reply(code, self.about))
        self.closed = code == 421
        return code

    def rset(self, argument):
        code = self.whim(250)
        if self.say(250 if self.resets and code != 421 else code) == 250:
            self.reset()

    def mail(self, argument):
        self.about = re.search(rb"\d+", argument)[0]
        if self.sender is not None:
            self.say(503)
        elif self.say(self.whim(250)) == 250:
            self.sender = argument[6:-1].decode()

    def rcpt(self, argument):
        if self.sender is None:
            self.say(503)
        elif self.say(self.whim(250, allowed=(251, 252, 354))) < 300:
            self.recipients.append(argument[4:-1].decode())

    def data(self, argument):
        if self.sender is None or not (self.recipients or self.lax):
            self.say(503)
        else:
            self.in_data = self.say(self.whim(354, allowed=(250,))) == 354

    def bdat(self, argument):
        self.chunk = int(argument.split()[0])


# -- a driver -----------------------------------------------------------------


class Ended(Exception):
    """No more is to come from the server."""


class Driver:
    """Runs an operation against a server, as a connection does, and holds it to its promises.

    *arrivals* tell for each NEXT_IF_ANY whether there is a transaction,
    *looks* for each Expect whether the replies are looked at: if not, the
    answer is None, as though not all of them were there.  The connection is
    lost after *written* octets to the server, or *read* replies from it.
    """

    def __init__(self, server, waiting, *, arrivals=(), looks=(), written=NOTHING_LOST,
                 read=NOTHING_LOST):  # fmt: skip
        self.server = server
        self.waiting = deque(waiting)
        self.arrivals = iter(arrivals)
        self.looks = iter(looks)
        self.written, self.read = written, read
        self.in_flight = deque()
        self.over = []  # transactions
        self.sent = []  # flights
        self.effects = []
        self.owed = 0
        self.result = self.error = None

    def run(self, operation):
        value = None
        try:
            while True:
                effect = operation.send(value)
                value = self.do(effect)
        except StopIteration as end:
            self.result = end.value
        except (Ended, SMTPProtocolError) as error:
            self.error = error
            operation.close()
        if self.result is True:
            self.assert_in_step()
            assert not self.in_flight
        return self

    def do(self, effect):
        self.effects.append(effect)
        if isinstance(effect, Send):
            return self.write(effect)
        if isinstance(effect, Expect):
            return self.expect(effect)
        if isinstance(effect, Transaction):
            assert effect is self.in_flight.popleft()
            self.over.append(effect)
            return None
        if effect is NEED_REPLY:
            return self.take(1)[0]
        if effect is NEXT:
            self.assert_in_step()
        else:
            assert effect is NEXT_IF_ANY
            if not next(self.arrivals, True):
                return None
        if not self.waiting:
            return None
        self.in_flight.append(self.waiting.popleft())
        return self.in_flight[-1]

    def assert_in_step(self):
        assert self.owed == 0
        assert not self.server.replies
        assert not self.server.closed

    def write(self, effect):
        flight = b"".join(effect.buffers)
        self.sent.append(flight)
        self.owed += effect.replies
        left = max(self.written, 0)
        self.written -= len(flight)
        ends = len(flight)
        if effect.verb == ".":
            ends = sum(map(len, effect.buffers[:2]))
        if ends <= left and effect.verb == ".":
            self.in_flight[0].committed = True
        elif ends <= left and effect.verb == "BDAT":
            self.in_flight[-1].committed = True
        self.server.receive(flight[:left])

    def expect(self, effect):
        count = len(effect.codes)
        assert 0 < count <= self.owed
        if not next(self.looks, True):
            return None
        there = list(itertools.islice(self.server.replies, min(count, max(self.read, 0))))
        if not there:
            raise Ended
        if tuple(reply.code for reply in there) != effect.codes:
            return None
        return [reply.text for reply in self.take(count)]

    def take(self, count):
        assert self.owed >= count, "waits for a reply that nobody owes"
        self.owed -= count
        self.read -= count
        if self.read < 0 or not self.server.replies:
            raise Ended
        return [self.server.replies.popleft() for _ in range(count)]


def told(each):
    """Return what a transaction has come to, so that two can be compared."""
    outcome = StrictOutcome() if each.final else each.outcome
    if each.final:
        outcome.take_all(each.final, each.count)
    refused = outcome.data is not None and not outcome.has_354
    mail = getattr(outcome, "mail", None)
    return (
        mail and mail.code, [reply.code for reply in outcome.rcpts], refused,
        [reply.code for reply in outcome.finals], outcome.accepted, outcome.delivered,
        outcome.closing, outcome.refusal and outcome.refusal.code,
    )  # fmt: skip


def stored_for(each):
    """Return what the server is to have stored of a transaction that is over."""
    number = each.job
    everybody = [f"r{number}-{at}@x" for at in range(each.count)]
    if each.final is not None:
        return [(f"s{number}@x", tuple(everybody), content(number))]
    outcome = each.outcome
    if not outcome.delivered:
        return []
    codes = [reply.code for reply in outcome.rcpts]
    if each.lmtp:
        finals = iter(outcome.finals)
        wanted = [
            to for to, code in zip(everybody, codes, strict=True)
            if code < 300 and next(finals).code == 250
        ]  # fmt: skip
    else:
        wanted = [to for to, code in zip(everybody, codes, strict=True) if code < 300]
    return [(f"s{number}@x", tuple(wanted), content(number))]


def assert_true(driver):
    """Hold what the transactions say against what the server has."""
    server = driver.server
    by_number = {each.job: each for each in (*driver.over, *driver.in_flight)}
    assert len(by_number) == len(driver.over) + len(driver.in_flight)
    stored = {}
    for entry in server.stored:
        stored.setdefault(int(entry[0][1:-2]), []).append(entry)
    assert stored.keys() <= by_number.keys()
    for each in driver.over:
        assert stored.get(each.job, []) == stored_for(each)
        replies = [*each.outcome.rcpts, *each.outcome.finals, each.final or Reply(0, b"")]
        assert {reply.text for reply in replies} <= {b"%d" % each.job, b""}
    for each in driver.in_flight:
        # What the server may have is not to be sent again.
        assert each.may_be_taken or each.job not in stored
        assert each.committed or each.job not in stored
        assert len(stored.get(each.job, [])) <= 1
    if driver.result is not None:
        assert driver.result or driver.over[-1].final is None
        assert driver.result or driver.over[-1].outcome.closing
    else:
        assert driver.error is not None


OPERATIONS = {
    "one by one": one_by_one,
    "overlapped": overlapped,
    "chunked 1": lambda: chunked(depth=1),
    "chunked 2": lambda: chunked(depth=2),
    "chunked 8": lambda: chunked(depth=8),
}
kinds = st.sampled_from(list(OPERATIONS))
proper = st.just(None)
whims = st.lists(
    proper | proper | proper | st.sampled_from([251, 252, 354, 250, 421, 450, 503, 550]),
    max_size=25,
)


@given(
    kind=kinds,
    recipients=st.lists(st.integers(1, 3), max_size=6),
    whims=whims,
    lmtp=st.booleans(),
    lax=st.booleans(),
    arrivals=st.lists(st.booleans(), max_size=6),
    looks=st.lists(st.booleans(), max_size=6),
    written=st.integers(0, 600) | st.just(NOTHING_LOST),
    read=st.integers(0, 30) | st.just(NOTHING_LOST),
)
@example(  # RFC 2033, section 4.2: a reply for each RCPT that succeeded, and 252 is a success
    kind="overlapped",
    recipients=[2, 2, 2],
    whims=[None, None, 252, None, None, 550],
    lmtp=True,
    lax=False,
    arrivals=[],
    looks=[],
    written=NOTHING_LOST,
    read=NOTHING_LOST,
)
@example(  # a recipient with 252, alone, and the connection lost before the reply to BDAT
    kind="chunked 1", recipients=[1], whims=[None, None, 252], lmtp=False, lax=False,
    arrivals=[], looks=[], written=NOTHING_LOST, read=3,
)  # fmt: skip
def test_what_is_stored_is_what_is_said(
    kind, recipients, whims, lmtp, lax, arrivals, looks, written, read
):
    bdat = "chunked" in kind
    lmtp = lmtp and not bdat

    def play(looks):
        waiting = [
            transaction(number, count, lmtp=lmtp, bdat=bdat)
            for number, count in enumerate(recipients)
        ]
        driver = Driver(
            Server(whims, lmtp=lmtp, lax=lax), waiting,
            arrivals=arrivals, looks=looks, written=written, read=read,
        )  # fmt: skip
        return driver.run(OPERATIONS[kind]())

    driver = play(looks)
    assert_true(driver)
    # Whether replies are looked at together does not matter.
    other = play([False] * 100)
    assert_true(other)
    if read == written == NOTHING_LOST:
        assert list(map(told, driver.over)) == list(map(told, other.over))
        assert (driver.sent, driver.result) == (other.sent, other.result)
        assert driver.server.stored == other.server.stored
        assert str(driver.error) == str(other.error)


@given(kind=kinds, count=st.integers(0, 12), arrivals=st.lists(st.booleans(), max_size=12))
def test_without_whims_all_is_stored_in_order(kind, count, arrivals):
    waiting = [transaction(n, 1 + n % 3, bdat="chunked" in kind) for n in range(count)]
    driver = Driver(Server(), waiting, arrivals=arrivals).run(OPERATIONS[kind]())
    assert_true(driver)
    assert driver.result is True
    assert driver.over == waiting
    assert len(driver.server.stored) == count


# -- overlapped ---------------------------------------------------------------


def play(operation, waiting, *whims, **options):
    """Run an operation against a server with these whims."""
    arrivals = options.pop("arrivals", ())
    return Driver(Server(whims, **options), waiting, arrivals=arrivals).run(operation)


def test_a_message_leaves_with_the_next_envelope():
    driver = play(overlapped(), [transaction(n, n + 1) for n in range(3)])
    assert driver.sent == [
        commands(0, 1) + DATA,
        body(0) + commands(1, 2) + DATA,
        body(1) + commands(2, 3) + DATA,
        body(2),
    ]
    assert [each.verb for each in driver.effects if isinstance(each, Send)] == ["MAIL", *"..."]
    assert driver.result is True


def test_what_usually_happens_is_expected_and_makes_no_outcome():
    driver = play(overlapped(), [transaction(0, 2), transaction(1)])
    expected = [each.codes for each in driver.effects if isinstance(each, Expect)]
    assert expected == [(250, 250, 250, 354), (250,), (250, 250, 354), (250,)]
    assert [each.final for each in driver.over] == [(250, b"0"), (250, b"1")]
    assert [type(each.final) for each in driver.over] == [Reply, Reply]
    assert all(each._outcome is None for each in driver.over)


@pytest.mark.parametrize("count", [100, 101])
def test_what_is_expected_of_many_recipients_is_not_kept(count):
    for _ in range(2):
        driver = play(overlapped(), [transaction(0, count)])
        assert driver.over[0].final == (250, b"0")
    assert ((1, count, (354,)) in transactions._USUAL) == (count == 100)


def test_while_there_is_no_next_one_a_message_leaves_alone():
    waiting = [transaction(0), transaction(1)]
    driver = play(overlapped(), waiting, arrivals=[False, False])
    assert driver.sent == [commands(0) + DATA, body(0), commands(1) + DATA, body(1)]


@pytest.mark.parametrize("whims", [[550], [450], [None, 550], [None, None, 451]])
def test_what_a_refusal_leaves_open_is_closed_with_the_next_envelope(whims):
    driver = play(overlapped(), [transaction(0), transaction(1)], *whims)
    assert driver.sent[:2] == [commands(0) + DATA, RSET + commands(1) + DATA]
    assert [each.final or each.outcome.last for each in driver.over][1] == (250, b"1")
    assert driver.result is True


def test_after_the_last_one_nothing_needs_to_be_closed():
    driver = play(overlapped(), [transaction(0)], 550)
    assert (driver.sent, driver.result) == ([commands(0) + DATA], True)


def test_a_refused_message_is_over():
    driver = play(overlapped(), [transaction(0), transaction(1)], None, None, None, None)
    assert driver.result is True
    whims = [None, None, None, 554]
    driver = play(overlapped(), [transaction(0), transaction(1)], *whims)
    assert driver.over[0].outcome.finals == [(554, b"0")]
    assert driver.over[0].outcome.data == (354, b"0")
    assert driver.over[1].final == (250, b"1")
    assert RSET not in b"".join(driver.sent)


def test_354_with_all_recipients_refused_is_answered_by_a_lone_dot():
    driver = play(overlapped(), [transaction(0, 2), transaction(1)], None, 550, 450, lax=True)
    assert driver.sent == [commands(0, 2) + DATA, DOT, RSET + commands(1) + DATA, body(1)]
    assert driver.result is True


def test_354_where_a_lone_dot_is_not_answered_ends_it():
    # RFC 2033, section 4.2: there would be as many replies as recipients.
    waiting = [transaction(0, lmtp=True), transaction(1, lmtp=True)]
    driver = play(overlapped(), waiting, None, 550, lax=True, lmtp=True)
    assert (driver.sent, driver.result) == ([commands(0) + DATA], False)
    assert driver.over == waiting[:1]
    assert driver.over[0].outcome.must_close


@pytest.mark.parametrize("at", range(4))
def test_421_at_each_step(at):
    driver = play(overlapped(), [transaction(0), transaction(1)], *[None] * at, 421)
    assert driver.result is False
    assert [each.outcome.last.code for each in driver.over] == [421]
    # The next one's envelope was under way with the message, and nothing came of it.
    assert [each.job for each in driver.in_flight] == ([1] if at == 3 else [])
    assert driver.server.stored == []


def test_421_at_rset():
    waiting = [transaction(0), transaction(1), transaction(2)]
    driver = play(overlapped(), waiting, 550, 421)
    assert driver.result is False
    assert driver.over[1].outcome.last == (421, b"0")
    assert [each.job for each in driver.over] == [0, 1]
    assert not hasattr(driver.over[1].outcome, "mail")
    assert driver.over[1].outcome.refusal is None


def test_421_to_a_lone_dot():
    server = Server([None, 550], lax=True)
    server.deliver = lambda message: server.say(421)
    driver = Driver(server, [transaction(0)]).run(overlapped())
    assert driver.result is False


def test_lmtp_has_a_reply_for_each_recipient():
    waiting = [transaction(n, 3, lmtp=True) for n in range(2)]
    whims = [None, None, 550, None, None, None, 452]
    driver = play(overlapped(), waiting, *whims, lmtp=True)
    assert driver.sent == [commands(0, 3) + DATA, body(0) + commands(1, 3) + DATA, body(1)]
    replies = [each.replies for each in driver.effects if isinstance(each, Send)]
    assert replies == [5, 2 + 5, 3]
    assert [reply.code for reply in driver.over[0].outcome.finals] == [250, 452]
    assert [to for _, to, _ in driver.server.stored] == [
        ("r0-0@x",),
        ("r1-0@x", "r1-1@x", "r1-2@x"),
    ]
    assert_true(driver)


def test_lmtp_421_in_the_middle_is_for_the_rest():
    whims = [None] * 6 + [421]
    driver = play(overlapped(), [transaction(0, 3, lmtp=True)], *whims, lmtp=True)
    assert [reply.code for reply in driver.over[0].outcome.finals] == [250, 421, 421]
    assert driver.result is False


# -- by BDAT ------------------------------------------------------------------


def test_whole_messages_leave_before_the_first_reply():
    waiting = [transaction(n, 1 + n, bdat=True) for n in range(4)]
    driver = play(chunked(depth=3), waiting)
    assert driver.sent == [bdat(n, 1 + n) for n in range(4)]
    steps = [
        "send" if isinstance(each, Send) else "over" for each in driver.effects
        if isinstance(each, (Send, Transaction))
    ]  # fmt: skip
    assert steps == ["send"] * 3 + ["over", "send"] + ["over"] * 3
    assert [each.replies for each in driver.effects if isinstance(each, Send)] == [4, 5, 6, 7]
    assert [each.codes for each in driver.effects if isinstance(each, Expect)] == [
        (250,) * (4 + n) for n in range(4)
    ]
    assert [each.final for each in driver.over] == [(250, b"%d" % n) for n in range(4)]


def test_while_there_is_no_next_one_replies_are_read():
    driver = play(chunked(depth=8), [transaction(n, bdat=True) for n in range(2)], arrivals=[False])
    kept = (Send, Transaction)
    assert [type(each) for each in driver.effects if isinstance(each, kept)] == [*kept, *kept]


def test_of_several_in_flight_one_is_refused():
    waiting = [transaction(n, 2, bdat=True) for n in range(3)]
    whims = [None] * 5 + [None, None, 550, 550] + [None] * 2 + [450]
    driver = play(chunked(depth=8), waiting, *whims)
    assert_true(driver)
    assert [(told(each)[1], told(each)[3]) for each in driver.over] == [
        ([250, 250], [250]), ([550, 550], [503]), ([450, 250], [250]),
    ]  # fmt: skip
    assert driver.result is True


@pytest.mark.parametrize("at", range(4))
def test_421_at_each_step_of_a_chunk(at):
    waiting = [transaction(n, bdat=True) for n in range(3)]
    driver = play(chunked(depth=2), waiting, *[None] * at, 421)
    assert driver.result is None  # a server that goes on all the same is listened to
    assert [each.job for each in driver.over] == [0]
    assert [each.job for each in driver.in_flight] == [1]
    assert [each.job for each in driver.waiting] == [2]


# -- one by one ---------------------------------------------------------------


def test_one_command_at_a_time():
    driver = play(one_by_one(), [transaction(0), transaction(1, 2)], None, 550)
    assert driver.sent == [
        *(b"MAIL FROM:<s0@x>\r\n", b"RCPT TO:<r0-0@x>\r\n", RSET),
        *(b"MAIL FROM:<s1@x>\r\n", b"RCPT TO:<r1-0@x>\r\n", b"RCPT TO:<r1-1@x>\r\n", DATA, body(1)),
    ]
    assert [each.outcome.delivered for each in driver.over] == [False, True]
    assert driver.result is True


def test_one_by_one_ends_with_421():
    driver = play(one_by_one(), [transaction(0), transaction(1)], 421)
    assert (driver.result, len(driver.over), len(driver.waiting)) == (False, 1, 1)


# -- replies that answer nothing ----------------------------------------------

ODD = [
    # what takes it, what is no answer to it, what is
    ("take_mail", [200, 251, 252, 354], [250, 421, 450, 503, 550]),
    ("take_rcpt", [354, 300], [200, 250, 251, 252, 421, 450, 550]),
    ("take_data", [200, 250], [354, 421, 451, 503, 554]),
    ("take_final", [200, 251, 354], [250, 421, 451, 554]),
    ("take_reset", [200, 354, 451, 502, 550], [250, 421]),
]


@pytest.mark.parametrize(("take", "odd", "good"), ODD)
def test_a_reply_that_cannot_be_an_answer(take, odd, good):
    for code in (*odd, *good):
        outcome = StrictOutcome()
        if take != "take_mail":
            outcome.take_mail(Reply(250, b""))
        reply = Reply(code, b"hello")
        if code in odd:
            with pytest.raises(SMTPProtocolError, match=f"answered .* with {code} b'hello'"):
                getattr(outcome, take)(reply)
        else:
            getattr(outcome, take)(reply)
            assert outcome.last is reply


def test_a_message_taken_for_nobody_is_out_of_step():
    outcome = StrictOutcome()
    outcome.take_mail(Reply(250, b""))
    outcome.take_rcpt(Reply(550, b"no"))
    with pytest.raises(SMTPProtocolError, match="a message without recipients"):
        outcome.take_chunk(Reply(250, b"ok"))


def test_after_a_refused_mail_nobody_is_accepted():
    outcome = StrictOutcome()
    outcome.take_mail(Reply(550, b"no"))
    outcome.take_rcpt(Reply(250, b"ok"))
    outcome.take_data(Reply(354, b"go on"))
    assert (outcome.accepted, outcome.has_354, outcome.is_ready) == (0, True, False)
    assert outcome.refusal == (550, b"no")


def test_all_that_went_well_is_an_outcome():
    outcome = StrictOutcome()
    outcome.take_all(Reply(250, b"queued"), 2)
    assert (outcome.accepted, outcome.is_ready, outcome.delivered) == (2, True, True)
    assert (outcome.refusal, outcome.last, outcome.closing) == (None, (250, b"queued"), False)
    assert outcome.finals == [(250, b"queued")]


@pytest.mark.parametrize(("kind", "whims"), [
    ("overlapped", [None, 354]),
    ("overlapped", [None, None, 250]),
    ("overlapped", [550, 502]),
    ("chunked 2", [None, None, 354]),
    ("chunked 2", [502]),
    ("one by one", [None, 354]),
    ("one by one", [None, None, 250]),
])  # fmt: skip
def test_a_server_out_of_step_is_left(kind, whims):
    waiting = [transaction(n, bdat="chunked" in kind) for n in range(3)]
    driver = play(OPERATIONS[kind](), waiting, *whims, resets=False)
    assert type(driver.error) is SMTPProtocolError
    assert driver.over[1:] == []
    assert driver.in_flight
    assert_true(driver)


# -- what the server may have -------------------------------------------------


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize(("mail", "rcpts", "taken"), [
    (None, [], True),
    (250, [], True),
    (250, [550], True),
    (250, [550, 250], True),
    (250, [550, 252], True),
    (250, [550, 450], False),
    (550, [], True),
    (550, [503, 503], False),
])  # fmt: skip
def test_whether_it_may_be_taken(committed, mail, rcpts, taken):
    each = transaction(0, 2)
    each.committed = committed
    if mail is not None:
        each.outcome.take_mail(Reply(mail, b""))
    for code in rcpts:
        each.outcome.take_rcpt(Reply(code, b""))
    assert each.may_be_taken == (committed and taken)


@pytest.mark.parametrize("committed", [False, True])
def test_what_was_taken_for_nobody_may_be_for_somebody(committed):
    each = transaction(0)
    each.committed = committed
    each.outcome.take_mail(Reply(250, b""))
    each.outcome.take_rcpt(Reply(550, b""))
    with pytest.raises(SMTPProtocolError):
        each.outcome.take_chunk(Reply(250, b""))
    assert each.may_be_taken == committed


def test_signals_say_what_they_are():
    assert (repr(NEXT), repr(NEXT_IF_ANY)) == ("NEXT", "NEXT_IF_ANY")


def test_the_model_is_strict():
    # It would be of no use if it stored whatever came.
    server = Server()
    server.receive(b"RCPT TO:<r0-0@x>\r\nDATA\r\nMAIL FROM:<s0@x>\r\nMAIL FROM:<s1@x>\r\nDATA\r\n")
    server.receive(b"BDAT 3 LAST\r\nabcRCPT TO:<r0-0@x>\r\nDATA\r\n..a\r\n.\r\n")
    codes = Counter(reply.code for reply in server.replies)
    assert codes == {503: 5, 250: 3, 354: 1}
    assert server.stored == [("s0@x", ("r0-0@x",), b".a\r\n")]
