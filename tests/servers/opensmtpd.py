"""OpenSMTPD, with a filter of ours for what its configuration cannot say.

It completes the messages of local clients, and all clients are local here: a missing
Date or Message-ID is added, Bcc goes, addresses get a domain.  A message that
has none of these faults arrives as it was sent.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import ClassVar

from housing import House, fetch, files, free_port
from server import DOMAIN, IDNA_DOMAIN, PASSWORD, SIZE, USER, Delivered, Endpoint, Housed
from support import make_certificate

ASCII_DOMAIN = IDNA_DOMAIN.encode("idna").decode()

CONFIGURATION = f"""\
table users {{ "{USER}" = "%(password)s" }}
table mailboxes {{ "@{DOMAIN}" = "postbox", "@{ASCII_DOMAIN}" = "postbox" }}
pki mail cert "/house/certificate.pem"
pki mail key "/house/key.pem"

smtp max-message-size {SIZE}
smtp limit max-rcpt 10000
smtp limit max-mails 10000

filter unknown phase rcpt-to match rcpt-to regex "^unknown" reject "550 5.1.1 no such mailbox"
filter busy phase rcpt-to match rcpt-to regex "^busy" reject "451 4.2.1 mailbox busy"
filter refuse proc-exec "/usr/bin/perl /house/refuse.pl"
filter rules chain {{ unknown, busy, refuse }}

listen on 127.0.0.1 port %(plain)d hostname mail.{DOMAIN} filter rules
listen on 127.0.0.1 port %(submission)d hostname mail.{DOMAIN} filter rules \\
    tls pki mail auth-optional <users>
listen on 127.0.0.1 port %(smtps)d hostname mail.{DOMAIN} filter rules \\
    smtps pki mail auth-optional <users>

action deliver maildir "/house/mail" virtual <mailboxes>
match from any for domain {{ "{DOMAIN}", "{ASCII_DOMAIN}" }} action deliver
"""

# smtpd-filters(7).  Perl is in every Debian.
REFUSE = r"""
$| = 1;
my (%body, %refused);
while (<STDIN>) {
    chomp;
    if ($_ eq "config|ready") {
        print "register|filter|smtp-in|$_\n" for "data-line", "commit";
        print "register|ready\n";
        next;
    }
    my ($kind, undef, undef, undef, $phase, $session, $token, $line) = split /\|/, $_, 8;
    next if $kind ne "filter";
    if ($phase eq "data-line") {
        $body{$session} = 1 if $line eq "";
        $refused{$session} = 1 if !$body{$session} && $line =~ /^X-Refuse: yes/i;
        delete $body{$session} if $line eq ".";
        print "filter-dataline|$session|$token|$line\n";
    } else {
        my $result = delete $refused{$session} ? "reject|550 5.7.1 refused, as asked" : "proceed";
        print "filter-result|$session|$token|$result\n";
    }
}
"""

# It does not start without certificates of others, though nothing is sent out from here.
START = """\
mkdir -p /etc/ssl/certs && cp certificate.pem /etc/ssl/certs/ca-certificates.crt
mkdir -p /house/mail && chown postbox /house/mail
exec smtpd -d -f /house/smtpd.conf
"""

#: What OpenSMTPD writes above a message; a folded line belongs to its field.
TRACE = re.compile(
    rb"(?:Return-Path: <?(?P<sender>.*?)>?\n)?"  # none for the null reverse-path
    rb"Delivered-To: (?P<recipient>.*)\n"
    rb"Received: .*\n(?:[ \t].*\n)*"
)


class OpenSMTPD(Housed):
    name = "OpenSMTPD"
    packages = ("opensmtpd",)
    without: ClassVar[dict[str, str]] = {
        "impatient": "300 s, fixed when it was compiled",
        "lmtp-unix": "it takes no LMTP, it only speaks it to others",
        "lmtp-tcp": "it takes no LMTP, it only speaks it to others",
        "full": "it knows no quotas",
        "SMTPUTF8": "it has none",
        "CHUNKING": "it has none",
    }

    def start(self) -> None:
        debs = fetch(*self.packages, base=self.base)
        users = ["opensmtpd", "opensmtpq", "postbox"]
        self.house = House(debs, users=users, base=self.base)
        make_certificate(self.house.folder)
        self.cafile = self.house.folder / "certificate.pem"
        mechanisms = ("PLAIN", "LOGIN")
        self.endpoints = {
            "plain": Endpoint(("127.0.0.1", free_port())),
            "submission": Endpoint(("127.0.0.1", free_port()), "starttls", mechanisms),
            "smtps": Endpoint(("127.0.0.1", free_port()), "implicit", mechanisms),
        }
        self._configure()
        self.house.run(START)
        self.house.wait_for(*(endpoint.address for endpoint in self.endpoints.values()))
        self._know_itself()

    def _configure(self) -> None:
        hashed = subprocess.run(
            ["openssl", "passwd", "-6", "-stdin"],
            input=PASSWORD,
            capture_output=True,
            check=True,
            text=True,
        )
        values = {name: endpoint.address[1] for name, endpoint in self.endpoints.items()}
        configuration = CONFIGURATION % {**values, "password": hashed.stdout.strip()}
        (self.house.folder / "smtpd.conf").write_text(configuration)
        (self.house.folder / "refuse.pl").write_text(REFUSE)

    def _know_itself(self) -> None:
        self.version = re.findall(r"OpenSMTPD ([\d.p]*\d)", self.house.log)[0]
        if self.version.startswith("6."):
            reason = "handshakes fail: 6.8 cannot use a key with OpenSSL 3 (its issue 1171)"
            self.without = {**self.without, "submission": reason, "smtps": reason}
            self.endpoints = {"plain": self.endpoints["plain"]}

    def collect(self) -> list[Delivered]:
        return [_take(path) for path in files(self.house.folder, "mail/new/*")]


def _take(path: Path) -> Delivered:
    data = path.read_bytes()
    path.unlink()
    trace = TRACE.match(data)
    if trace is None:
        raise ValueError(f"not what OpenSMTPD writes: {data[:1000]!r}")
    content = data[trace.end() :].replace(b"\n", b"\r\n")
    return Delivered(trace["recipient"].decode(), (trace["sender"] or b"").decode(), content)
