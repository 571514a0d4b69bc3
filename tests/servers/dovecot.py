"""Dovecot: LMTP servers, and what checks passwords for Postfix.

Its configuration is another language from version 2.4 on, so there are two of each.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
import secrets
import time
from pathlib import Path
from typing import ClassVar

from housing import House, fetch, files, free_port
from server import DOMAIN, PASSWORD, USER, Delivered, Endpoint, Housed
from support import make_certificate

USERS = ("dovecot", "dovenull", "vmail")

COMMON = """\
log_path = /dev/stderr
base_dir = /run/dovecot
ssl = no
"""
NEW = """\
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
"""
# The last two make everyone wait who comes from where a wrong password came from.
SASL = """\
auth_mechanisms = plain login cram-md5 scram-sha-1 scram-sha-256 oauthbearer xoauth2
service auth {
  unix_listener /house/sasl {
    mode = 0666
  }
}
auth_failure_delay = 0
service anvil {
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
"""
SASL_OLD = """\
protocols =
disable_plaintext_auth = no
passdb {
  driver = passwd-file
  args = /house/users
}
passdb {
  driver = oauth2
  mechanisms = oauthbearer xoauth2
  args = /house/oauth2
}
userdb {
  driver = static
  args = uid=vmail gid=vmail home=/house
}
"""
OAUTH2_OLD = """\
introspection_mode = local
local_validation_key_dict = fs:posix:prefix=/house/keys/
username_attribute = sub
"""
SASL_NEW = """\
protocols =
auth_allow_cleartext = yes
passdb passwd-file {
  passwd_file_path = /house/users
}
oauth2 {
  introspection_mode = local
  username_attribute = sub
  oauth2_local_validation {
    dict fs {
      fs posix {
        prefix = /house/keys/
      }
    }
  }
}
"""


def is_new(debs: Path) -> bool:
    """Whether the packages in *debs* bring version 2.4 or a newer one."""
    (core,) = debs.glob("dovecot-core_*.deb")
    major, minor = re.search(r"[_a](\d+)\.(\d+)", core.name).groups()
    return (int(major), int(minor)) >= (2, 4)


# -- SASL for another server --------------------------------------------------


class Sasl:
    """Dovecot in the house of another server, there to judge credentials.

    It listens on /house/sasl, and knows USER by PASSWORD or, as an access token, by `token`.
    """

    MECHANISMS = (
        "PLAIN",
        "LOGIN",
        "CRAM-MD5",
        "SCRAM-SHA-1",
        "SCRAM-SHA-256",
        "OAUTHBEARER",
        "XOAUTH2",
    )
    #: Begins the script of the house.
    START = "dovecot -F -c /house/dovecot.conf &\n"

    def __init__(self, house: House) -> None:
        key = secrets.token_bytes(32)
        self.token = _token(key)
        keys = house.folder / "keys/default/HS256"
        keys.mkdir(parents=True)
        (keys / "default").write_bytes(base64.b64encode(key))
        configuration = NEW + COMMON + SASL + SASL_NEW
        if not is_new(house.debs):
            configuration = COMMON + SASL + SASL_OLD
            (house.folder / "oauth2").write_text(OAUTH2_OLD)
        (house.folder / "dovecot.conf").write_text(configuration)
        (house.folder / "users").write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n")


def _token(key: bytes) -> str:
    """Return a JSON Web Token for USER, signed with *key* (RFC 7519)."""
    now = int(time.time())
    header = {"alg": "HS256", "typ": "JWT"}
    claims = {"sub": USER, "iat": now - 60, "exp": now + 86400}
    signed = b".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
    return (signed + b"." + _base64url(hmac.digest(key, signed, "sha256"))).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


# -- LMTP ---------------------------------------------------------------------

# Any local part is a mailbox.
LMTP = """\
recipient_delimiter =
auth_username_chars =
service lmtp {
  unix_listener /house/lmtp {
    mode = 0666
  }
  inet_listener lmtp {
    ITS_ADDRESS = 127.0.0.1
    port = ITS_PORT
  }
}
"""
LMTP_OLD = """\
protocols = lmtp
auth_username_format = %u
mail_location = maildir:/house/mail/%u
mail_fsync = never
mail_plugins = quota
plugin {
  quota = count:all
  quota_vsizes = yes
}
# Nobody logs in, but without this it does not begin.
passdb {
  driver = static
  args = nologin
}
userdb {
  driver = lua
  args = file=/house/users.lua blocking=no
}
"""
LMTP_NEW = """\
protocols = lmtp
auth_username_format = %{user}
mail_driver = maildir
mail_path = /house/mail/%{user}
mail_fsync = never
mail_utf8_extensions = yes
mail_plugins {
  quota = yes
}
quota all {
}
quota_storage_grace = 0
# The errors of this one are wanted.
auth_internal_failure_delay = 0
passdb static {
  fields {
    nologin = yes
  }
}
userdb lua {
  lua_file = /house/users.lua
}
"""
LUA = """\
function auth_userdb_lookup(request)
  local elsewhere = request.user:find("@") and not request.user:find("ITS_DOMAIN$")
  if elsewhere or request.user:find("^unknown") then
    return dovecot.auth.USERDB_RESULT_USER_UNKNOWN, ""
  end
  if request.user:find("^busy") then
    return dovecot.auth.USERDB_RESULT_INTERNAL_FAILURE, "busy"
  end
  local fields = {uid = "vmail", gid = "vmail", home = "/house/mail/" .. request.user}
  if request.user:find("^full") then
    fields.ITS_QUOTA
  end
  return dovecot.auth.USERDB_RESULT_OK, fields
end
"""
QUOTA_OLD = 'quota_rule = "*:bytes=1"'
QUOTA_NEW = 'quota_storage_size = "1"'

START = """\
install -d -o vmail -g vmail mail
dovecot --version >version
exec dovecot -F -c /house/dovecot.conf
"""

#: In the log, when a message is in a mailbox.
SAVED = re.compile(rb"lmtp\((.+?)\)<.*: saved mail to INBOX\n")
#: What Dovecot writes above a message, in this order; a folded line belongs to its field.
#: Delivered-To is for a message with one recipient.
TRACE = re.compile(
    rb"Return-Path: <(?P<sender>.*)>\n"
    rb"(?:Delivered-To: .*\n)?"
    rb"Received: .*\n(?:[ \t].*\n)*"
)


class Dovecot(Housed):
    name = "Dovecot"
    packages = ("dovecot-core", "dovecot-lmtpd", "dovecot-auth-lua")
    without: ClassVar = {
        "plain": "it has SMTP for submission only, to pass on to another server",
        "submission": "it passes what is submitted on to another server",
        "smtps": "it passes what is submitted on to another server",
        "impatient": "five minutes, fixed when it was compiled",
        "refusal": "it refuses a message for its recipient's sake only",
    }

    def start(self) -> None:
        debs = fetch(*self.packages, base=self.base)
        self.house = House(debs, users=USERS, base=self.base)
        make_certificate(self.house.folder)
        self.cafile = self.house.folder / "certificate.pem"
        self.endpoints = {
            "lmtp-unix": Endpoint(str(self.house.folder / "lmtp"), lmtp=True),
            "lmtp-tcp": Endpoint(("127.0.0.1", free_port()), lmtp=True),
        }
        self._read = 0
        self._configure(is_new(debs))
        self.house.run(START)
        self.house.wait_for(*(endpoint.address for endpoint in self.endpoints.values()))
        self.version = (self.house.folder / "version").read_text().split()[0]

    def _configure(self, new: bool) -> None:
        configuration = NEW + COMMON + LMTP + LMTP_NEW if new else COMMON + LMTP + LMTP_OLD
        values = {
            "ITS_ADDRESS": "listen" if new else "address",
            "ITS_PORT": str(self.endpoints["lmtp-tcp"].address[1]),
            "ITS_DOMAIN": DOMAIN.replace(".", "%."),
            "ITS_QUOTA": QUOTA_NEW if new else QUOTA_OLD,
        }
        for name, content in {"dovecot.conf": configuration, "users.lua": LUA}.items():
            text = re.sub("ITS_[A-Z]+", lambda match: values[match[0]], content)
            (self.house.folder / name).write_text(text)

    def collect(self) -> list[Delivered]:
        boxes = self.house.folder / "mail"
        found: list[Delivered] = []
        for name in self._filled():
            # A message with keywords, which Dovecot may find for it, is no longer new.
            found += [_take(path, name) for path in files(boxes / name, "[cn][ue][rw]/*")]
        return found

    def _filled(self) -> set[str]:
        """Return the mailboxes that the log has named since: to look into all takes long."""
        with open(self.house.folder / "log", "rb") as log:
            log.seek(self._read)
            lines = log.read()
        lines = lines[: lines.rfind(b"\n") + 1]
        self._read += len(lines)
        return {name.decode() for name in SAVED.findall(lines)}


def _take(path: Path, recipient: str) -> Delivered:
    data = path.read_bytes()
    path.unlink()
    trace = TRACE.match(data)
    assert trace, data[:1000]
    return Delivered(
        recipient,
        trace["sender"].decode(),
        data[trace.end() :].replace(b"\n", b"\r\n"),
    )
