"""The pace: never a burst, never less than asked for, and a soft step after trouble."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import cycle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastsmtp.pace import Backoff, Rate

HOUR = 3600.0

# -- Rate -----------------------------------------------------------------------


def taken(rate: Rate, times: Iterable[float]) -> list[float]:
    """Return the times at which a permit was had, taking as many as there are each time."""
    permits = []
    for now in times:
        while rate.take(now):
            permits.append(now)
    return permits


def steps(start: float, deltas: Iterable[float]) -> Iterator[float]:
    for delta in deltas:
        yield start
        start += delta


@pytest.mark.parametrize("per_second", [0.1, 1, 7, 1000, 100_000])
@pytest.mark.parametrize("start", [-5.0, 0.0, 1e6])
def test_no_burst_at_the_beginning(per_second, start):
    rate = Rate(per_second)
    assert rate.messages_per_second == per_second
    assert rate.wait(start) == 0.0
    assert rate.take(start)
    assert not rate.take(start)
    assert rate.wait(start) == pytest.approx(1 / per_second, rel=1e-3)
    assert not rate.take(start + 0.9 / per_second)
    assert rate.take(start + 1.1 / per_second)


@pytest.mark.parametrize("per_second", [10, 1000, 100_000])
@pytest.mark.parametrize("pause", [1.5, HOUR])
def test_no_burst_after_a_pause(per_second, pause):
    rate = Rate(per_second)
    assert len(taken(rate, [0.0])) == 1
    assert len(taken(rate, [pause])) == 1
    assert rate.wait(pause) == pytest.approx(1 / per_second, rel=1e-3)


def test_a_little_lateness_is_made_up_for():
    rate = Rate(1000)
    assert taken(rate, [0.0]) == [0.0]
    assert len(taken(rate, [0.0055])) == 5
    assert rate.wait(0.0055) == pytest.approx(0.0005)


def test_much_lateness_is_made_up_for_in_part():
    rate = Rate(1000)
    assert taken(rate, [0.0]) == [0.0]
    assert len(taken(rate, [0.5])) in (10, 11)  # 10 ms worth, however it is rounded


def test_waiting_leads_to_a_permit():
    rate = Rate(3)
    now, permits = 0.1, 0
    for _ in range(60):
        if rate.take(now):
            permits += 1
        now += rate.wait(now)
    assert permits >= 30
    assert now == pytest.approx(0.1 + permits / 3)


rates = st.floats(0.01, 50_000)
deltas = st.one_of(st.floats(0, 0.02), st.floats(0, 3), st.just(HOUR))


@given(
    per_second=st.floats(0.01, 2_000),
    start=st.floats(-1e6, 1e6),
    deltas=st.lists(deltas, max_size=60),
)
@example(per_second=1000, start=0.0, deltas=[1.5, 0.02, 0.02, 0.02, 0.9, 0.001])
@example(per_second=100, start=0.0, deltas=[0.011] * 50)
def test_no_window_has_more_than_its_share(per_second, start, deltas):
    permits = taken(Rate(per_second), steps(start, deltas))
    slack = 1e-6 * per_second + 1e-6  # what floats lose around a million seconds
    for first, began in enumerate(permits):
        for last in range(first, len(permits)):
            seconds = permits[last] - began
            share = per_second * (seconds + Rate.TOLERANCE) + 1
            assert last - first + 1 <= share + slack


@given(per_second=rates, start=st.floats(-1e5, 1e5))
def test_who_takes_all_there_is_gets_the_rate(per_second, start):
    rate, now, permits = Rate(per_second), start, 0
    while permits < 300:
        if rate.take(now):
            permits += 1
        else:
            now += rate.wait(now)
    assert (permits - 1) / per_second == pytest.approx(now - start, rel=0.01)


@given(
    per_second=st.floats(1, 5_000),
    late=st.lists(st.floats(0, 0.009), min_size=1, max_size=20),
)
@example(per_second=2000, late=[0.009])
def test_timers_that_are_late_do_not_lower_the_rate(per_second, late):
    rate, now, permits, lateness = Rate(per_second), 0.0, 0, cycle(late)
    while permits < 1000:
        if rate.take(now):
            permits += 1
        else:
            now += rate.wait(now) + next(lateness)
    on_time = (permits - 1) / per_second
    assert on_time - Rate.TOLERANCE <= now <= on_time + max(late) + 1e-6


def test_a_loop_slower_than_the_tolerance_still_gets_on():
    rate = Rate(1000)
    permits = taken(rate, [number * 0.012 for number in range(1000)])
    assert 0.8 * 1000 < len(permits) / 12 <= 1000


@pytest.mark.parametrize("number", [0, -1, 0.0, -0.5, math.inf, -math.inf, math.nan])
def test_what_is_no_rate(number):
    with pytest.raises(ValueError, match=f"messages_per_second={number!r} is not above 0"):
        Rate(number)


@pytest.mark.parametrize("number", ["5", None, True, 5j])
def test_what_is_no_number(number):
    with pytest.raises(TypeError, match="is not a number"):
        Rate(number)


# -- Backoff --------------------------------------------------------------------


def backoff(connections: int = 8, jitter: float = 1.0, **times: float) -> Backoff:
    return Backoff(connections, random=lambda: jitter, **times)


def test_at_the_beginning_all_is_allowed():
    policy = Backoff(4)
    assert (policy.limit, policy.failures) == (4, 0)
    assert policy.not_before < -1e300
    policy.succeeded(0.0)
    assert policy.limit == 4


def test_trouble_halves_and_doubles():
    policy, now = backoff(), 100.0
    seen = []
    for _ in range(9):
        policy.failed(now)
        seen.append((policy.limit, policy.not_before - now))
        now = policy.not_before
    assert [limit for limit, _ in seen] == [4, 2, 1, 1, 1, 1, 1, 1, 1]
    assert [pause for _, pause in seen] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert policy.failures == 9


def test_pauses_are_the_caller_s():
    policy = backoff(base=0.5, longest=0.75)
    policy.failed(0.0)
    assert policy.not_before == 0.5
    policy.failed(0.5)
    assert policy.not_before == 1.25
    policy.failed(1.25)
    assert policy.not_before == 2.0


@pytest.mark.parametrize(("jitter", "pause"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_a_pause_is_between_half_and_whole(jitter, pause):
    policy = backoff(jitter=jitter)
    policy.failed(10.0)
    assert policy.not_before == 10.0 + pause


def test_jitter_does_not_slow_the_doubling():
    policy = backoff(jitter=0.0)
    policy.failed(0.0)
    policy.failed(0.5)
    assert policy.not_before == 1.5


def test_what_all_connections_suffer_at_once_is_one_trouble():
    policy = backoff(16)
    for _ in range(16):
        policy.failed(5.0)
    policy.failed(5.9)
    assert (policy.failures, policy.limit, policy.not_before) == (1, 8, 6.0)
    policy.failed(6.0)
    assert (policy.failures, policy.limit, policy.not_before) == (2, 4, 8.0)


def test_success_ends_the_doubling_but_not_a_pause():
    policy = backoff()
    policy.failed(0.0)
    policy.failed(1.0)
    policy.succeeded(1.5)  # a message accepted on a connection that had lasted
    assert (policy.failures, policy.not_before) == (0, 3.0)
    policy.failed(3.0)
    assert (policy.failures, policy.not_before) == (1, 4.0)


def test_connections_come_back_one_by_one():
    policy = backoff(4)
    policy.failed(0.0)
    policy.failed(1.0)
    assert (policy.limit, policy.not_before) == (1, 3.0)
    limits = []
    for now in (3.0, 12.9, 13.0, 13.1, 22.9, 23.0, 33.0, 43.0, 1000.0):
        policy.succeeded(now)
        limits.append(policy.limit)
    assert limits == [1, 1, 2, 2, 2, 3, 4, 4, 4]


def test_a_long_silence_gives_one_connection_back():
    policy = backoff(4)
    policy.failed(0.0)
    policy.succeeded(HOUR)
    policy.succeeded(HOUR)
    assert policy.limit == 3


def test_trouble_stays_bounded():
    policy, now = backoff(), 0.0
    for _ in range(2000):
        policy.failed(now)
        now = policy.not_before
    assert (policy.limit, policy.failures) == (1, 2000)
    assert now <= 2000 * 60.0


@given(
    connections=st.integers(1, 50),
    events=st.lists(st.tuples(st.booleans(), st.floats(0, 100), st.floats(0, 1))),
)
def test_whatever_happens_there_is_a_connection_and_an_end_to_waiting(connections, events):
    jitters = iter([jitter for _, _, jitter in events])
    policy, now = Backoff(connections, random=lambda: next(jitters)), 0.0
    for good, seconds, _ in events:
        now += seconds
        before, waiting = policy.limit, now < policy.not_before
        if good:
            policy.succeeded(now)
            assert policy.failures == 0
            assert before <= policy.limit <= before + 1
        else:
            policy.failed(now)
            assert policy.limit == (before if waiting else max(1, before // 2))
            assert now + (0 if waiting else 0.5) <= policy.not_before
        assert 1 <= policy.limit <= connections
        assert policy.not_before <= now + 60.0


def test_the_jitter_is_python_s_own_unless_given():
    policy = Backoff(2)
    policy.failed(0.0)
    assert 0.5 <= policy.not_before <= 1.0


@pytest.mark.parametrize(
    "arguments",
    [
        {"connections": 0},
        {"connections": -1},
        {"connections": 1, "base": 0.0},
        {"connections": 1, "base": math.nan},
        {"connections": 1, "base": 2.0, "longest": 1.0},
        {"connections": 1, "longest": math.inf},
    ],
)
def test_what_is_no_policy(arguments):
    with pytest.raises(ValueError, match=r"is not at least 1|are not 0 < base"):
        Backoff(**arguments)
