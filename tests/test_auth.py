"""Mechanisms as functions: what they say first, and to each challenge."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import ssl
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import support
from support import ModelServer, client_tls, scram_sha_256, server_tls

import fastsmtp
from fastsmtp import auth, codec

PLAIN = "\0zoë\0pässword"
XOAUTH2 = "user=zoë\1auth=Bearer pässword\1\1"
JSON = b'{"status":"400"}'
DIGEST = hmac.new("pässword".encode(), b"<1@x>", "md5").hexdigest()

#: The answers to None (the initial response) and to challenges; None where there is none.
EXCHANGES = [
    ("PLAIN", [(None, PLAIN)]),
    ("PLAIN", [(b"", PLAIN)]),
    ("LOGIN", [(None, "zoë"), (b"Password:", "pässword"), (b"more?", None)]),
    ("LOGIN", [(b"Username:", "zoë"), (b"", "pässword"), (b"", None), (b"", None)]),
    ("CRAM-MD5", [(None, None), (b"<1@x>", f"zoë {DIGEST}")]),
    ("XOAUTH2", [(None, XOAUTH2), (JSON, "")]),
    ("XOAUTH2", [(b"", XOAUTH2), (JSON, "")]),
]


@pytest.mark.parametrize(("name", "exchange"), EXCHANGES)
def test_mechanisms(name, exchange):
    respond = auth.MECHANISMS[name]("zoë", "pässword")
    for challenge, answer in exchange:
        encoded = None if answer is None else base64.b64encode(answer.encode())
        assert respond(challenge) == encoded


def test_the_order_is_smtplib_s_and_each_is_tested():
    assert list(auth.MECHANISMS) == ["CRAM-MD5", "PLAIN", "LOGIN", "XOAUTH2"]
    assert set(auth.MECHANISMS) == {name for name, _ in EXCHANGES}


@pytest.mark.parametrize(("name", "separator"), [("PLAIN", "\0"), ("XOAUTH2", "\1")])
def test_no_value_holds_another(name, separator):
    for credentials in (("user" + separator, "secret"), ("user", "sec" + separator + "ret")):
        with pytest.raises(ValueError, match="separator") as raised:
            auth.MECHANISMS[name](*credentials)(None)
        assert "ret" not in str(raised.value)


# -- OAUTHBEARER --------------------------------------------------------------


#: RFC 7628, section 4.2: its SMTP example, in base64 as it stands there.
RFC_7628 = (
    "bixhPXVzZXJAZXhhbXBsZS5jb20sAWhvc3Q9c2VydmVyLmV4YW1wbGUuY29tAXBvcnQ9NTg3AWF1dGg9QmVhcmVy"
    "IHZGOWRmdDRxbVRjMk52YjNSbGNrQmhiSFJoZG1semRHRXVZMjl0Q2c9PQEB"
)
TOKEN = "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="


def test_oauthbearer_as_in_the_rfc():
    respond = auth.oauthbearer("user@example.com", TOKEN, host="server.example.com", port=587)
    assert respond(None) == RFC_7628.encode()
    assert respond(b'{"status":"invalid_token"}') == b"AQ=="


@pytest.mark.parametrize(
    ("user", "options", "message"),
    [
        ("user", {}, "n,a=user,\1auth=Bearer ya29\1\1"),
        ("", {}, "n,,\1auth=Bearer ya29\1\1"),
        ("a,b=ö", {}, "n,a=a=2Cb=3Dö,\1auth=Bearer ya29\1\1"),
        ("user", {"host": "mx"}, "n,a=user,\1host=mx\1auth=Bearer ya29\1\1"),
        ("user", {"port": 25}, "n,a=user,\1port=25\1auth=Bearer ya29\1\1"),
    ],
)
def test_oauthbearer(user, options, message):
    encoded = base64.b64encode(message.encode())
    assert auth.oauthbearer(user, "ya29", **options)(None) == encoded
    assert auth.oauthbearer(user, "ya29", **options)(b"") == encoded


@pytest.mark.parametrize(
    ("user", "token", "host"),
    [("us\1er", "secret", "mx"), ("user", "sec\1ret", "mx"), ("user", "secret", "m\1x")],
)
def test_no_value_of_oauthbearer_holds_another(user, token, host):
    with pytest.raises(ValueError, match="separator") as raised:
        auth.oauthbearer(user, token, host=host)
    assert "ret" not in str(raised.value)


def test_a_token_that_utf_8_cannot_express_is_not_shown():
    with pytest.raises(ValueError, match="UTF-8") as raised:
        auth.oauthbearer("user", "secret\udcff")
    assert "secret" not in str(raised.value)


# -- SCRAM --------------------------------------------------------------------


#: RFC 7677, section 3.
NONCE = "rOprNGfwEbeRWgbNEkqO"
CLIENT_FIRST = f"n,,n=user,r={NONCE}".encode()
SERVER_NONCE = f"{NONCE}%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
SERVER_FIRST = f"r={SERVER_NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096".encode()
PROOF = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
CLIENT_FINAL = f"c=biws,r={SERVER_NONCE},p={PROOF}".encode()
SERVER_FINAL = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="

MALFORMED = "malformed, or needs an extension"


def pencil(**options):
    return auth.scram_sha_256("user", "pencil", nonce=NONCE, **options)


def decoded(answer):
    return None if answer is None else base64.b64decode(answer, validate=True)


def against(respond, mechanism, users, **options):
    """Play a responder against the model server's side; return the user that it takes it for."""
    initial = respond(None)
    server = mechanism(users, initial and initial.decode(), **options)
    try:
        challenge = next(server)
        while (answer := respond(challenge)) is not None:
            challenge = server.send(answer.decode())
    except StopIteration as end:
        return end.value
    pytest.fail("the responder had no answer")


scram = partial(against, mechanism=scram_sha_256)


@pytest.mark.parametrize("initial", [None, b""])
def test_scram_as_in_the_rfc(initial):
    respond = pencil()
    assert decoded(respond(initial)) == CLIENT_FIRST
    assert decoded(respond(SERVER_FIRST)) == CLIENT_FINAL
    assert respond.distrust == (
        "the server has not proven that it knows the password (RFC 5802, section 5)"
    )
    assert respond(SERVER_FINAL) == b""
    assert respond.distrust == ""
    assert respond(b"") is None, "there is no more to say"


def test_extensions_that_are_optional_are_passed_over():
    respond = pencil()
    respond(None)
    server_first = SERVER_FIRST + b",x=1,Y=a=b"
    client_final = decoded(respond(server_first))
    assert re.fullmatch(rb"c=biws,r=[^,]+,p=[^,]{44}", client_final)
    # What was signed has the extensions in it: so the server's signature is another.
    salted = hashlib.pbkdf2_hmac("sha256", b"pencil", decoded(b"W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
    message = CLIENT_FIRST[3:] + b"," + server_first + b"," + client_final.rpartition(b",p=")[0]
    key = hmac.digest(salted, b"Server Key", "sha256")
    signature = base64.b64encode(hmac.digest(key, message, "sha256"))
    assert respond(b"v=" + signature + b",x=1") == b""
    assert respond.distrust == ""


BAD_FIRST = [
    (b"", MALFORMED),
    (b"\xff\0", MALFORMED),
    (SERVER_FIRST[:-1] + b"x", MALFORMED),
    (SERVER_FIRST.replace(b"i=4096", b"i=0"), MALFORMED),
    (SERVER_FIRST.replace(b"i=4096", b"i=-5000"), MALFORMED),
    (SERVER_FIRST.replace(b"i=4096", b"i=" + b"9" * 5000), MALFORMED),
    (SERVER_FIRST.replace(b",i=4096", b""), MALFORMED),
    (SERVER_FIRST.replace(b"s=W22ZaJ0SNY7soEsUEjb6gQ==", b"s="), MALFORMED),
    (SERVER_FIRST.replace(b"gQ==", b"gQ="), MALFORMED),
    (SERVER_FIRST.replace(b"W22Z", b"W2 Z"), MALFORMED),
    (SERVER_FIRST.replace(b"r=rO", b"x=rO"), MALFORMED),
    (SERVER_FIRST + b"\n", MALFORMED),
    (SERVER_FIRST + b",", MALFORMED),
    (SERVER_FIRST + b",x", MALFORMED),
    (b"m=must," + SERVER_FIRST, MALFORMED),
    (SERVER_FIRST + b",m=must", MALFORMED),
    (SERVER_FIRST + b",x=1,m=must", MALFORMED),
    (SERVER_FIRST.replace(SERVER_NONCE.encode(), NONCE.encode()), "does not continue ours"),
    (SERVER_FIRST.replace(b"r=rO", b"r=or"), "does not continue ours"),
    (SERVER_FIRST.replace(b"4096", b"4095"), "asks for 4095 iterations"),
    (SERVER_FIRST.replace(b"4096", b"1"), "asks for 1 iterations"),
    (SERVER_FIRST.replace(b"4096", b"10000001"), "asks for 10000001 iterations"),
    (SERVER_FIRST.replace(b"4096", b"9" * 19), "asks for 9999999999999999999 iterations"),
]


@pytest.mark.parametrize(("challenge", "rule"), BAD_FIRST)
def test_a_first_message_of_the_server_that_breaks_a_rule(challenge, rule):
    respond = pencil()
    respond(None)
    assert respond(challenge) is None
    assert rule in respond.distrust
    assert "RFC" in respond.distrust
    assert respond(SERVER_FIRST) is None, "it is over"
    assert rule in respond.distrust


BAD_FINAL = [
    (SERVER_FINAL.replace(b"v=6", b"v=7"), "signature is wrong"),
    (b"v=", "signature is wrong"),
    (b"v=6rri", "signature is wrong"),
    (b"", MALFORMED),
    (SERVER_FINAL[:-1], MALFORMED),
    (SERVER_FINAL + b",m=must", MALFORMED),
    (b"x=1," + SERVER_FINAL, MALFORMED),
]


@pytest.mark.parametrize(("challenge", "rule"), BAD_FINAL)
def test_a_final_message_of_the_server_that_proves_nothing(challenge, rule):
    respond = pencil()
    respond(None)
    respond(SERVER_FIRST)
    assert respond(challenge) is None
    assert rule in respond.distrust
    assert respond(SERVER_FINAL) is None, "it is over"
    assert rule in respond.distrust


@pytest.mark.parametrize("before", [[], [SERVER_FIRST]])
def test_an_error_of_the_server_is_acknowledged_and_proves_nothing(before):
    respond = pencil()
    for challenge in (None, *before):
        respond(challenge)
    assert respond(b"e=other-error") == b""
    assert "not proven" in respond.distrust
    assert respond(SERVER_FINAL) is None
    assert "not proven" in respond.distrust


def test_how_many_iterations_are_allowed_is_neither_less_nor_more(monkeypatch):
    monkeypatch.setattr(auth, "MAX_ITERATIONS", 4097)
    for count, answered in [(4095, False), (4096, True), (4097, True), (4098, False)]:
        respond = pencil()
        respond(None)
        answer = respond(SERVER_FIRST.replace(b"4096", b"%d" % count))
        assert (answer is not None) is answered, count


def test_nonces_are_new_and_can_be_written():
    said = [decoded(auth.scram_sha_256("user", "pencil")(None)) for _ in range(20)]
    nonces = [re.fullmatch(rb"n,,n=user,r=([!-+\--~]{24})", each)[1] for each in said]
    assert len(set(nonces)) == len(nonces)


def test_scram_with_a_server():
    respond = auth.scram_sha_256("user", "pencil")
    assert scram(respond, users={"user": "pencil"}) == "user"
    assert respond.distrust == ""


@pytest.mark.parametrize("users", [{"user": "eraser"}, {"other": "pencil"}])
def test_scram_with_another_password(users):
    respond = auth.scram_sha_256("user", "pencil")
    assert scram(respond, users=users) is None
    assert "not proven" in respond.distrust


def test_more_iterations():
    assert scram(auth.scram_sha_256("user", "pencil"), users={"user": "pencil"}, iterations=20_000)


@pytest.mark.parametrize(
    ("user", "password", "users"),
    [
        ("a,b=c", "p,w=d", {"a,b=c": "p,w=d"}),
        ("zoë", "pässword", {"zoë": "pässword"}),
        ("I\xadX", "\u2168", {"IX": "IX"}),  # RFC 4013, section 3
        ("\u2168=", "a\u2003b", {"IX=": "a b"}),
        ("\u2100", "\uff0c", {"a/c": ","}),  # a separator comes out of the preparation
        ("\uff0c", "\u1100\u1161", {",": "\uac00"}),
        ("user", "🔒", {"user": "🔒"}),
        ("user", "", {"user": ""}),
    ],
)
def test_user_and_password_are_prepared_and_escaped(user, password, users):
    respond = auth.scram_sha_256(user, password)
    assert scram(respond, users=users) == next(iter(users))
    assert respond.distrust == ""


@pytest.mark.parametrize("user", ["", "\xad"])
def test_scram_needs_a_user(user):
    with pytest.raises(ValueError, match="user name"):
        auth.scram_sha_256(user, "pencil")


@pytest.mark.parametrize("credentials", [("user", "secret\x07"), ("secret\x07", "pencil")])
def test_what_saslprep_prohibits_is_not_shown(credentials):
    with pytest.raises(ValueError, match="SASLprep") as raised:
        auth.scram_sha_256(*credentials)
    assert "secret" not in str(raised.value)


def test_a_responder_does_not_show_its_secrets():
    respond = auth.scram_sha_256("user", "pencil")
    assert "pencil" not in repr(respond)
    respond(None)
    respond(b"r=x")
    assert "pencil" not in respond.distrust


def test_a_responder_lets_go_of_the_password_when_it_has_answered():
    respond = pencil()
    held = [[getattr(respond, name) for name in respond.__slots__]]
    for challenge in (None, SERVER_FIRST):
        respond(challenge)
        held.append([getattr(respond, name) for name in respond.__slots__])
    assert [b"pencil" in each for each in held] == [True, True, False]


# -- SASLprep -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "prepared"),
    [
        # RFC 4013, section 3
        ("I\xadX", "IX"),
        ("user", "user"),
        ("USER", "USER"),
        ("\xaa", "a"),
        ("\u2168", "IX"),
        ("", ""),
        ("a b~!", "a b~!"),
        ("\xa0\u3000", "  "),
        ("\u200b", " "),  # in tables C.1.2 and B.1; libidn takes the former, too
        ("a\u200db", "ab"),
        ("e\u0301", "é"),
        ("\u0627\u0628", "\u0627\u0628"),
        ("\u06271\u0628", "\u06271\u0628"),  # from right to left at both ends
        ("\u0221", "\u0221"),  # not in Unicode 3.2
        ("\U0001f512", "\U0001f512"),
    ],
)
def test_saslprep(value, prepared):
    assert auth.saslprep(value) == prepared


@pytest.mark.parametrize(
    "value",
    [
        "\x07",
        "\0",
        "\x7f",
        "é\n",
        "\x80",  # C.2.2
        "\ue000",  # C.3
        "\ufdd0",  # C.4
        "\ud800",  # C.5
        "\ufff9",  # C.6
        "\u2ff0",  # C.7
        "\u202e",  # C.8
        "\U000e0001",  # C.9
        "\u06271",  # RFC 4013, section 3: begins from right to left, does not end so
        "1\u0627",
        "\u0627a\u0628",
    ],
)
def test_saslprep_prohibits(value):
    with pytest.raises(ValueError, match="RFC 4013") as raised:
        auth.saslprep(value)
    assert value not in str(raised.value)


def test_tables_are_read_only_where_they_are_needed():
    code = (
        "import sys\nfrom fastsmtp import auth\n"
        "auth.scram_sha_256('user', 'pencil')(None)\nassert 'stringprep' not in sys.modules\n"
        "auth.saslprep('\\xaa')\nassert 'stringprep' in sys.modules"
    )
    paths = f"import sys; sys.path[:] = {sys.path!r}\n"
    subprocess.run([sys.executable, "-S", "-c", paths + code], check=True, timeout=30)


# -- channel binding ----------------------------------------------------------


BINDING = ("tls-exporter", bytes(range(32)))


def test_scram_plus():
    respond = auth.scram_sha_256_plus("user", "pencil", BINDING)
    assert scram(respond, users={"user": "pencil"}, binding=BINDING) == "user"
    assert respond.distrust == ""


def test_scram_plus_says_what_it_binds_to():
    respond = auth.scram_sha_256_plus("user", "pencil", BINDING, nonce=NONCE)
    assert decoded(respond(None)) == f"p=tls-exporter,,n=user,r={NONCE}".encode()
    client_final = decoded(respond(SERVER_FIRST))
    assert decoded(client_final[2:].split(b",")[0]) == b"p=tls-exporter,," + BINDING[1]


@pytest.mark.parametrize("theirs", [("tls-exporter", bytes(32)), ("tls-unique", BINDING[1])])
def test_scram_plus_in_another_channel(theirs):
    respond = auth.scram_sha_256_plus("user", "pencil", BINDING)
    assert scram(respond, users={"user": "pencil"}, binding=theirs) is None
    assert "not proven" in respond.distrust


def test_binding_that_could_have_been_is_told():
    respond = pencil(could_bind=True)
    assert decoded(respond(None)) == b"y" + CLIENT_FIRST[1:]
    assert decoded(respond(SERVER_FIRST)).startswith(b"c=eSws,")  # "y,,"
    assert scram(auth.scram_sha_256("u", "p", could_bind=True), users={"u": "p"}) == "u"


def connection(version, certificate=None, **bindings):
    """Return what channel_binding() looks at: *bindings* has the types that ssl can do."""

    def get_channel_binding(kind):
        if (name := kind.replace("-", "_")) not in bindings:
            raise ValueError(f"{kind} channel binding type not implemented")
        return bindings[name]

    return SimpleNamespace(
        version=lambda: version,
        get_channel_binding=get_channel_binding,
        getpeercert=lambda binary: certificate if binary else {},
    )


@pytest.mark.parametrize(
    ("tls", "binding"),
    [
        (connection("TLSv1.3", tls_exporter=b"E", tls_unique=b"U"), ("tls-exporter", b"E")),
        (connection("TLSv1.2", tls_exporter=b"E", tls_unique=b"U"), ("tls-unique", b"U")),
        (connection("TLSv1.3", tls_unique=b"U"), None),
        (connection("TLSv1.2", tls_unique=None), None),
        (connection(None), None),
        (SimpleNamespace(), None),
    ],
)
def test_what_a_connection_can_be_bound_by(tls, binding):
    assert auth.channel_binding(tls) == binding


#: How a certificate is made, and the hash function of tls-server-end-point: RFC 5929, section 4.1.
P256 = "ec -pkeyopt ec_paramgen_curve:prime256v1"
CERTIFICATES = [
    ("rsa:2048 -sha256", "sha256"),
    ("rsa:2048 -sha384", "sha384"),
    ("rsa:2048 -sha512", "sha512"),
    ("rsa:2048 -sha224", "sha224"),
    ("rsa:2048 -sha1", "sha256"),
    ("rsa:2048 -md5", "sha256"),
    (f"{P256} -sha1", "sha256"),
    (f"{P256} -sha224", "sha224"),
    (f"{P256} -sha256", "sha256"),
    (f"{P256} -sha384", "sha384"),
    (f"{P256} -sha512", "sha512"),
    ("ed25519", None),
    ("rsa:2048 -sha256 -sigopt rsa_padding_mode:pss", None),
]


@pytest.mark.parametrize(("how", "name"), CERTIFICATES)
def test_the_end_point_is_hashed_as_its_certificate_was(tmp_path, how, name):
    out = tmp_path / "certificate.der"
    command = f"openssl req -x509 -nodes -subj /CN=localhost -outform DER -newkey {how}"
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(out)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    der = out.read_bytes()
    expected = name and ("tls-server-end-point", hashlib.new(name, der).digest())
    for version in ("TLSv1.3", "TLSv1.2"):
        assert auth.channel_binding(connection(version, der)) == expected


@pytest.mark.parametrize("size", range(8))
def test_what_is_no_certificate_binds_nothing(size):
    junk = bytes.fromhex("3082ffff3003020101")[:size]
    assert auth.channel_binding(connection("TLSv1.3", junk)) is None


def handshake(pem, version):
    """Return the client's and the server's end of a TLS session in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    contexts = client_tls(pem), server_tls(pem)
    contexts[0].minimum_version = contexts[0].maximum_version = version
    client = contexts[0].wrap_bio(to_client, to_server, server_hostname="localhost")
    server = contexts[1].wrap_bio(to_server, to_client, server_side=True)
    for end in (client, server) * 3:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            pass
    return client, server


def test_bound_by_tls_1_2(certificate):
    client, server = handshake(certificate, ssl.TLSVersion.TLSv1_2)
    kind, data = auth.channel_binding(client)
    assert (kind, data) == ("tls-unique", server.get_channel_binding("tls-unique"))


def test_bound_by_tls_1_3(certificate):
    client, _ = handshake(certificate, ssl.TLSVersion.TLSv1_3)
    kind, data = auth.channel_binding(client)
    if "tls-exporter" in ssl.CHANNEL_BINDING_TYPES:
        assert (kind, len(data)) == ("tls-exporter", 32)
    else:
        der = client.getpeercert(True)
        assert (kind, data) == ("tls-server-end-point", hashlib.sha256(der).digest())


# -- the choice ---------------------------------------------------------------


ALL = "SCRAM-SHA-256-PLUS SCRAM-SHA-256 OAUTHBEARER XOAUTH2 CRAM-MD5 PLAIN LOGIN"
END_POINT = ("tls-server-end-point", bytes(32))


def chosen(offered, **options):
    return [name for name, _ in auth.candidates(offered, user="user", **options)]


@pytest.mark.parametrize(
    ("offered", "options", "names"),
    [
        (ALL, {"password": "p"}, "SCRAM-SHA-256 CRAM-MD5 PLAIN LOGIN"),
        (
            ALL,
            {"password": "p", "channel_binding": BINDING},
            "SCRAM-SHA-256-PLUS SCRAM-SHA-256 CRAM-MD5 PLAIN LOGIN",
        ),
        (
            ALL,
            {"password": "p", "channel_binding": END_POINT},
            "SCRAM-SHA-256 CRAM-MD5 PLAIN LOGIN",
        ),
        (ALL, {"token": "t"}, "OAUTHBEARER XOAUTH2"),
        (ALL, {"token": "t", "password": "p", "channel_binding": BINDING}, ALL),
        (ALL, {}, ""),
        ("LOGIN  plain X-UNKNOWN Cram-md5", {"password": "p"}, "CRAM-MD5 PLAIN LOGIN"),
        ("", {"password": "p"}, ""),
        ("GSSAPI", {"password": "p"}, ""),
        ("SCRAM-SHA-256-PLUS", {"password": "p"}, ""),
        (ALL, {"password": "p", "mechanisms": ["login", "Plain"]}, "LOGIN PLAIN"),
        (ALL, {"password": "p", "mechanisms": ("XOAUTH2", "PLAIN")}, "PLAIN"),
        (ALL, {"password": "p", "mechanisms": iter(["PLAIN"])}, "PLAIN"),
        ("LOGIN", {"password": "p", "mechanisms": ["PLAIN"]}, ""),
        (ALL, {"password": "p", "mechanisms": []}, ""),
        (ALL, {"password": "p", "mechanisms": ["SCRAM-SHA-256-PLUS"]}, ""),
        (
            ALL,
            {
                "password": "p",
                "channel_binding": END_POINT,
                "mechanisms": ["SCRAM-SHA-256-PLUS", "PLAIN"],
            },
            "SCRAM-SHA-256-PLUS PLAIN",
        ),
    ],
)
def test_candidates(offered, options, names):
    assert chosen(offered, **options) == names.split()


@pytest.mark.parametrize("offered", ["", ALL])
def test_a_mechanism_that_there_is_not(offered):
    with pytest.raises(ValueError, match="'SCRAM-SHA-1' here; there are SCRAM-SHA-256-PLUS, "):
        chosen(offered, password="p", mechanisms=["PLAIN", "scram-sha-1"])


@pytest.mark.parametrize("name", ALL.split())
def test_each_candidate_is_what_it_is_called(name):
    options = {"password": "secret", "token": "secret", "host": "mx", "port": 587}
    options |= {"mechanisms": [name], "channel_binding": BINDING}
    [(chosen_name, respond)] = auth.candidates(ALL, user="user", **options)
    assert chosen_name == name
    plus = partial(scram_sha_256, binding=BINDING)
    mechanism = plus if name.endswith("-PLUS") else support.MECHANISMS[name]
    assert against(respond, mechanism, {"user": "secret"}) == "user"


def test_candidates_pass_on_host_and_port():
    [(_, respond)] = auth.candidates(
        "OAUTHBEARER", user="user@example.com", token=TOKEN, host="server.example.com", port=587
    )
    assert respond(None) == RFC_7628.encode()


@pytest.mark.parametrize(
    ("offered", "binding", "flag"),
    [
        ("SCRAM-SHA-256", None, b"n,"),
        ("SCRAM-SHA-256", BINDING, b"y,"),
        ("SCRAM-SHA-256", END_POINT, b"y,"),
        ("SCRAM-SHA-256 scram-sha-256-plus", None, b"n,"),
        ("SCRAM-SHA-256 scram-sha-256-plus", BINDING, b"n,"),
    ],
)
def test_whether_binding_was_possible_is_told(offered, binding, flag):
    wanted = ["SCRAM-SHA-256"]
    [(_, respond)] = auth.candidates(
        offered, user="user", password="p", channel_binding=binding, mechanisms=wanted
    )
    assert decoded(respond(None)).startswith(flag)


def test_each_candidate_is_for_one_exchange():
    for _ in range(2):
        [(_, respond)] = auth.candidates("SCRAM-SHA-256", user="user", password="pencil")
        assert scram(respond, users={"user": "pencil"}) == "user"


@pytest.mark.parametrize("mechanisms", [None, ["CRAM-MD5", "PLAIN"]])
def test_without_md5(monkeypatch, mechanisms):
    def not_in_fips(user, password, challenge):
        raise ValueError("[digital envelope routines] unsupported")

    monkeypatch.setattr(codec, "sasl_cram_md5", not_in_fips)
    assert chosen("CRAM-MD5 PLAIN", password="p", mechanisms=mechanisms) == ["PLAIN"]


def test_without_openssl(monkeypatch):
    monkeypatch.delattr(hashlib, "pbkdf2_hmac")
    assert chosen(ALL, password="p", channel_binding=BINDING) == ["CRAM-MD5", "PLAIN", "LOGIN"]


# -- over a connection --------------------------------------------------------


def log_in(client, name, respond):
    """Have the drop-in go through an exchange with a responder of ours."""

    def authobject(challenge=None):
        return decoded(respond(challenge)).decode("latin-1")

    return client.auth(name, authobject)[0]


@pytest.mark.parametrize("name", ["OAUTHBEARER", "SCRAM-SHA-256"])
def test_with_the_model_server(name):
    model = ModelServer([f"AUTH PLAIN {name}"], users={"user": "secret"})
    with model as server, fastsmtp.SMTP(server.host, server.port) as client:
        client.ehlo()
        options = {"password": "secret", "token": "secret", "mechanisms": [name]}
        offered = client.esmtp_features["auth"]
        [(_, respond)] = auth.candidates(offered, user="user", **options)
        assert log_in(client, name, respond) == 235
    assert server.logins == ["user"]
    assert getattr(respond, "distrust", "") == ""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_bound_to_the_connection(certificate, monkeypatch, version):
    def plus(users, initial):
        binding = auth.channel_binding(model.connections[0].sock)
        if binding is None:  # the server's end has no certificate to look at
            der = ssl.PEM_cert_to_DER_cert(certificate.with_name("certificate.pem").read_text())
            binding = "tls-server-end-point", hashlib.sha256(der).digest()
        return scram_sha_256(users, initial, binding=binding)

    monkeypatch.setitem(support.MECHANISMS, "SCRAM-SHA-256-PLUS", plus)
    tls = server_tls(certificate)
    tls.maximum_version = version
    model = ModelServer(["STARTTLS", f"AUTH {ALL}"], users={"user": "pencil"}, tls=tls)
    with model as server, fastsmtp.SMTP("localhost", server.port) as client:
        client.starttls(context=client_tls(certificate))
        binding = auth.channel_binding(client.sock)
        respond = auth.scram_sha_256_plus("user", "pencil", binding)
        assert log_in(client, "SCRAM-SHA-256-PLUS", respond) == 235
    assert (server.logins, respond.distrust) == (["user"], "")
