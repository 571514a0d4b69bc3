"""Exim, as Debian builds it: exim4-daemon-heavy.

One daemon is all endpoints, for what makes them differ is expanded for each
connection, by its port.  The rest is as in the wild: input before its time ends the
conversation (smtp_enforce_sync), and so does a fourth syntax error or an eleventh
command that is about no message.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from housing import House, fetch, files, free_port
from server import (
    DOMAIN,
    IDNA_DOMAIN,
    IMPATIENCE,
    PASSWORD,
    SIZE,
    USER,
    Delivered,
    Endpoint,
    Housed,
)
from support import make_certificate

#: What the configuration below calls its values: macros, which Exim replaces wherever they are.
VALUES = {
    "ITS_DOMAIN": DOMAIN,
    "ITS_IDNA_DOMAIN": IDNA_DOMAIN,
    "ITS_ASCII_DOMAIN": IDNA_DOMAIN.encode("idna").decode(),
    "ITS_SIZE": SIZE,
    "ITS_IMPATIENCE": IMPATIENCE,
    "ITS_USER": USER,
    "ITS_PASSWORD": PASSWORD,
}

CONFIGURATION = """\
primary_hostname = mail.ITS_DOMAIN
spool_directory = /run/exim4/spool
log_file_path = /house/exim/%slog
keep_environment =

local_interfaces = <; ITS_INTERFACES
tls_on_connect_ports = PORT_SMTPS
tls_advertise_hosts = ${if eq{$received_port}{PORT_SUBMISSION}{*}}
tls_certificate = /house/server.pem
smtp_receive_timeout = ${if eq{$received_port}{PORT_IMPATIENT}{ITS_IMPATIENCEs}{5m}}

message_size_limit = ITS_SIZE
allow_utf8_domains
prdr_enable
dsn_advertise_hosts = *
acl_smtp_rcpt = recipient
acl_smtp_data = message
acl_smtp_data_prdr = copy

# Connections are taken, and messages delivered, as they come; who received a message delivers
# it, without an exec for its sake.
smtp_accept_max = 500
smtp_connect_backlog = 500
smtp_accept_queue_per_connection = 0
deliver_drop_privilege

begin acl

recipient:
  deny    !domains = ITS_DOMAIN : ITS_IDNA_DOMAIN : ITS_ASCII_DOMAIN
          message = 550 5.7.1 relaying denied
  deny    local_parts = ^unknown
          message = 550 5.1.1 no such mailbox
  defer   local_parts = ^busy
          message = 451 4.2.1 mailbox busy
  accept

message:
  deny    condition = ${if eqi{$h_X-Refuse:}{yes}}
          message = 550 5.7.1 refused, as it asked to be
  accept

copy:
  defer   local_parts = ^full
          message = 452 4.2.2 mailbox full
  accept

begin routers

all:
  driver = accept
  transport = mailbox

begin transports

# One file for all recipients, who are in its Envelope-to: a delivery to 1,000 takes seconds.
mailbox:
  driver = appendfile
  batch_max = 10000
  directory = /house/exim/mail
  maildir_format
  return_path_add
  envelope_to_add
  user = Debian-exim

begin authenticators

PLAIN:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${if and{{eq{$auth2}{ITS_USER}}{eq{$auth3}{ITS_PASSWORD}}}}
  server_advertise_condition = ${if def:tls_in_cipher}

LOGIN:
  driver = plaintext
  public_name = LOGIN
  server_prompts = <| Username: | Password:
  server_condition = ${if and{{eq{$auth1}{ITS_USER}}{eq{$auth2}{ITS_PASSWORD}}}}
  server_advertise_condition = ${if def:tls_in_cipher}

CRAM_MD5:
  driver = cram_md5
  public_name = CRAM-MD5
  server_secret = ${if eq{$auth1}{ITS_USER}{ITS_PASSWORD}fail}
  server_advertise_condition = ${if def:tls_in_cipher}
"""

# The configuration is in its own place because Exim gives up root for any other.
START = """\
mkdir -p /etc/exim4 /run/exim4/spool /house/exim
mv /house/exim.conf /etc/exim4/exim4.conf
chown -R Debian-exim:Debian-exim /run/exim4 /house/exim
exec exim4 -bdf -q1m
"""

#: What Exim writes above a message, in this order; a folded line belongs to its field.
TRACE = re.compile(
    rb"Return-path: <(?P<sender>.*)>\n"
    rb"Envelope-to: (?P<recipients>.*(?:,\n .*)*)\n"
    rb"Received: .*\n(?:[ \t].*\n)*"
)


class Exim(Housed):
    name = "Exim"
    packages = ("exim4-daemon-heavy",)
    without: ClassVar[dict[str, str]] = {
        "lmtp-unix": "it takes no LMTP, it only speaks it to others",
        "lmtp-tcp": "it takes no LMTP, it only speaks it to others",
        "full": "it looks at quotas after its reply (with PRDR it defers such a recipient)",
        "SCRAM-SHA-256": "Debian builds it without GSASL",
    }

    def start(self) -> None:
        debs = fetch(*self.packages, base=self.base)
        self.house = House(debs, users=["Debian-exim"], base=self.base)
        make_certificate(self.house.folder)
        self.cafile = self.house.folder / "certificate.pem"
        mechanisms = ("PLAIN", "LOGIN", "CRAM-MD5")
        self.endpoints = {
            "plain": Endpoint(("127.0.0.1", free_port())),
            "submission": Endpoint(("127.0.0.1", free_port()), "starttls", mechanisms),
            "smtps": Endpoint(("127.0.0.1", free_port()), "implicit", mechanisms),
            "impatient": Endpoint(("127.0.0.1", free_port())),
        }
        (self.house.folder / "exim.conf").write_text(self._configuration())
        self.house.run(START)
        self.house.wait_for(*(endpoint.address for endpoint in self.endpoints.values()))
        self.version = self._greeting().split()[4]

    def _configuration(self) -> str:
        ports = {name: endpoint.address[1] for name, endpoint in self.endpoints.items()}
        values = VALUES | {f"PORT_{name.upper()}": port for name, port in ports.items()}
        values["ITS_INTERFACES"] = " ; ".join(f"127.0.0.1.{port}" for port in ports.values())
        return "".join(f"{name} = {value}\n" for name, value in values.items()) + CONFIGURATION

    def collect(self) -> list[Delivered]:
        return [
            copy
            for path in files(self.house.folder, "exim/mail/new/*")
            for copy in _copies(_take(path))
        ]


def _take(path: Path) -> bytes:
    data = path.read_bytes()
    path.unlink()
    return data


def _copies(data: bytes) -> Iterator[Delivered]:
    trace = TRACE.match(data)
    if trace is None:
        raise ValueError(f"not what Exim writes: {data[:1000]!r}")
    content = data[trace.end() :].replace(b"\n", b"\r\n")
    for recipient in trace["recipients"].decode().split(",\n "):
        yield Delivered(recipient, trace["sender"].decode(), content)
