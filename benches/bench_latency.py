"""sendmail() at 50 ms round trip: how often a client waits for the server."""

import importlib
import smtplib
from collections.abc import Callable

import pytest
from measure import SIZES, text
from proxy import HOST, Network, delayed

DELAY = 0.025  # seconds, each way
#: Round trips for one message, by library and number of recipients.
ROUND_TRIPS = {("smtplib", 1): 4, ("smtplib", 10): 13, ("fastsmtp", 1): 2, ("fastsmtp", 10): 2}
SENDER = "ana@example.org"
MESSAGE = text(SIZES["4 KB"])
WIRE = MESSAGE.replace("\n", "\r\n").encode("ascii") + b".\r\n"


def connected(library: str, network: Network) -> smtplib.SMTP:
    smtp = importlib.import_module(library).SMTP(HOST, network.port, "localhost")
    smtp.ehlo()
    return smtp


def sends(smtp: smtplib.SMTP, network: Network, recipients: int) -> Callable[[], int]:
    """Return what sends one message, checks that it arrived, and returns its round trips."""
    to = [f"bob{number}@example.net" for number in range(recipients)]

    def send() -> int:
        before = network.round_trips
        assert smtp.sendmail(SENDER, to, MESSAGE) == {}
        assert network.messages.pop() == (to, WIRE)
        return network.round_trips - before

    return send


@pytest.fixture(scope="module")
def network():
    with delayed(DELAY) as running:
        yield running


@pytest.mark.parametrize("library", ["smtplib", "fastsmtp"])
@pytest.mark.parametrize("recipients", [1, 10])
def test_round_trips(benchmark, network, library, recipients):
    benchmark.group = f"sendmail at 50 ms, recipients: {recipients}"
    with connected(library, network) as smtp:
        send = sends(smtp, network, recipients)
        assert benchmark.pedantic(send, rounds=3) == ROUND_TRIPS[library, recipients]
