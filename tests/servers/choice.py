"""Which servers this run has, as the environment says.

`FASTSMTP_SERVERS` is ``all`` or names with commas: these are fetched and run, and one that
cannot be is a failure.  Without it only aiosmtpd is run, which is installed with the tests.
`FASTSMTP_SERVERS_BASE` is the folder of another Debian, which debootstrap made.
"""

from __future__ import annotations

import importlib
import os

import housing
import pytest
from server import MailServer

#: By the names that FASTSMTP_SERVERS takes, the slowest first: module and class.
SERVERS = {
    "exim": ("exim", "Exim"),
    "opensmtpd": ("opensmtpd", "OpenSMTPD"),
    "postfix": ("postfix", "Postfix"),
    "dovecot": ("dovecot", "Dovecot"),
    "aiosmtpd": ("aiosmtpd_server", "Aiosmtpd"),
}
WANTED = os.environ.get("FASTSMTP_SERVERS", "")
BASE = os.environ.get("FASTSMTP_SERVERS_BASE", "/")

CHOSEN = list(SERVERS) if WANTED == "all" else (WANTED or "aiosmtpd").split(",")
LEFT_OUT = [name for name in SERVERS if name not in CHOSEN]

if unknown := set(CHOSEN).difference(SERVERS):
    raise pytest.UsageError(f"FASTSMTP_SERVERS: there is no {', '.join(sorted(unknown))}")


def make(name: str) -> MailServer:
    """Return a server that is yet to be started; fail if this machine cannot run it."""
    module, kind = SERVERS[name]
    server = getattr(importlib.import_module(module), kind)(BASE)
    if server.packages and (reason := housing.missing()):
        pytest.fail(f"{server.name} cannot be run here: {reason}", pytrace=False)
    return server
