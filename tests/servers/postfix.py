"""Postfix, with Dovecot behind its AUTH.

One instance is all endpoints: each is a service of master.cf.  The rest is as
Postfix comes, down to the number of errors (20) at which it hangs up; only its
pauses are left out, which begin at the tenth error and make a test wait.

virtual(8) delivers: it writes what came, whatever it is, but for LF in place of
CRLF.  (local(8) would do for users of this system alone, and pipe(8) and lmtp(8)
cut long lines or need a server of their own.)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from dovecot import USERS, Sasl
from housing import House, fetch, files, free_port
from server import DOMAIN, IDNA_DOMAIN, IMPATIENCE, SIZE, Delivered, Endpoint, Housed
from support import make_certificate

MAIN = f"""\
compatibility_level = 3.6
maillog_file = /dev/stdout
myhostname = mail.{DOMAIN}
myorigin = {DOMAIN}
mydestination =
alias_maps =
local_recipient_maps =
inet_protocols = ipv4
smtpd_banner = $myhostname ESMTP $mail_name $mail_version

# Nothing leaves this machine, and nobody may ask for it.
default_transport = error:no mail goes out from here
relay_transport = $default_transport
local_transport = $default_transport
mynetworks =
smtpd_relay_restrictions = reject_unauth_destination
smtpd_recipient_restrictions = check_recipient_access regexp:/house/recipients

virtual_mailbox_domains = {DOMAIN}, {IDNA_DOMAIN}, {IDNA_DOMAIN.encode("idna").decode()}
virtual_mailbox_base = /house/mail
virtual_mailbox_maps = static:all/
virtual_uid_maps = static:VMAIL
virtual_gid_maps = static:VMAIL
virtual_mailbox_limit = 0

# Any local part is a mailbox, and the message arrives as it was sent.
swap_bangpath = no
allow_percent_hack = no
allow_untrusted_routing = yes
local_header_rewrite_clients =
cleanup_replace_stray_cr_lf = no
message_drop_headers =
disable_mime_input_processing = yes
header_size_limit = {SIZE}
header_checks = regexp:/house/headers

message_size_limit = {SIZE}
smtputf8_enable = yes
smtpd_forbid_bare_newline = reject
smtpd_forbid_bare_newline_exclusions =
smtpd_forbid_unauth_pipelining = yes

smtpd_tls_chain_files = /house/server.pem
smtpd_tls_auth_only = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = /house/sasl

# All clients are one here, and none has to be slowed down.
smtpd_client_connection_count_limit = 0
default_process_limit = 300
smtpd_error_sleep_time = 0
in_flow_delay = 0
"""

#: What refuses a recipient, and a message: regexp_table(5).
RECIPIENTS = """\
/^unknown/ 550 5.1.1 no such mailbox
/^busy/ 450 4.2.1 mailbox busy
"""
HEADERS = "/^X-Refuse: yes$/ REJECT as it asked\n"

# Relaying is for nobody, and delivering for those who have logged in.
AUTH = """\
-o smtpd_sasl_auth_enable=yes
 -o smtpd_relay_restrictions=reject_unauth_destination,permit_sasl_authenticated,reject"""
#: By endpoint: what sets its service apart.
SERVICES = {
    "plain": "",
    "submission": f"-o smtpd_tls_security_level=encrypt {AUTH}",
    "smtps": f"-o smtpd_tls_wrappermode=yes {AUTH}",
    "impatient": f"-o smtpd_timeout={IMPATIENCE}s",
}

MASTER = """\
postlog unix-dgram n - n - 1 postlogd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
"""

# The check of all its files at the start takes longer than all the rest: quick-start leaves it
# out, and with it the making of the queue's folders.
START = """\
mkdir -p /etc/postfix
mv main.cf master.cf /etc/postfix
install -d -o vmail -g vmail /house/mail
install -d -o postfix /var/lib/postfix
cd /var/spool/postfix
install -d pid
install -d -o postfix active bounce corrupt defer deferred hold incoming maildrop saved trace
install -d -o postfix private public
touch quick-start
exec postfix start-fg
"""

#: What Postfix writes above a message, in this order; a folded line belongs to its field.
TRACE = re.compile(
    rb"Return-Path: <(?P<sender>.*)>\n"
    rb"X-Original-To: .*\n"
    rb"Delivered-To: (?P<recipient>.*)\n"
    rb"Received: .*\n(?:[ \t].*\n)*"
)


class Postfix(Housed):
    name = "Postfix"
    packages = ("postfix", "dovecot-core")
    without: ClassVar = {
        "lmtp-unix": "it takes no LMTP, it only speaks it to others",
        "lmtp-tcp": "it takes no LMTP, it only speaks it to others",
        "full": "it has no quotas",
    }

    def start(self) -> None:
        debs = fetch(*self.packages, base=self.base)
        users = ["postfix", *USERS]
        self.house = House(debs, users=users, groups=["postdrop"], base=self.base)
        make_certificate(self.house.folder)
        self.cafile = self.house.folder / "certificate.pem"
        sasl = Sasl(self.house)
        self.token = sasl.token
        self.endpoints = {
            "plain": Endpoint(("127.0.0.1", free_port())),
            "submission": Endpoint(("127.0.0.1", free_port()), "starttls", sasl.MECHANISMS),
            "smtps": Endpoint(("127.0.0.1", free_port()), "implicit", sasl.MECHANISMS),
            "impatient": Endpoint(("127.0.0.1", free_port())),
        }
        self._configure()
        self.house.run(sasl.START + START)
        ports = [endpoint.address for endpoint in self.endpoints.values()]
        self.house.wait_for(str(self.house.folder / "sasl"), *ports)
        self.version = self._greeting().split()[4]

    def _configure(self) -> None:
        services = "".join(
            f"127.0.0.1:{endpoint.address[1]} inet n - n - - smtpd {SERVICES[purpose]}\n"
            for purpose, endpoint in self.endpoints.items()
        )
        contents = {
            "main.cf": MAIN.replace("VMAIL", str(self.house.ids["vmail"])),
            "master.cf": MASTER + services,
            "recipients": RECIPIENTS,
            "headers": HEADERS,
        }
        for name, content in contents.items():
            (self.house.folder / name).write_text(content, encoding="utf-8")

    def collect(self) -> list[Delivered]:
        return [_take(path) for path in files(self.house.folder, "mail/all/new/*")]


def _take(path: Path) -> Delivered:
    data = path.read_bytes()
    path.unlink()
    trace = TRACE.match(data)
    assert trace, data[:1000]
    return Delivered(
        trace["recipient"].decode(),
        trace["sender"].decode(),
        data[trace.end() :].replace(b"\n", b"\r\n"),
    )
