"""Where fuzzing begins: inputs that people thought of, by target."""

from __future__ import annotations

EIGHT_BIT = (
    b"Subject: caf\xc3\xa9\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n"
    b"Content-Transfer-Encoding: 8bit\n\ncaf\xc3\xa9\n"
)
PARTS = (
    b"To: a@x, Ann Example <b@x>\nContent-Type: multipart/mixed; boundary=b\n\nbefore\n--b\n\none\n"
    b"--b\nContent-Type: message/rfc822\n\nSubject: inner\n\nFrom here\n--b--\nafter\n"
)
NO_BOUNDARY = b"Content-Type: multipart/alternative\n\n--b\n\na\n--b--\n"
LONG = b"Subject: " + b"word " * 30 + b"\nTo: " + b", ".join([b"Ann <ann@example.org>"] * 9)

SEEDS: dict[str, list[bytes]] = {
    "replies": [
        b"0220 a b\r\n250-b\r\n|250 c\r\n354 d\r\n",
        b"1250-ab\r\n250 abcdef\r\n",
        b"0no code\r\n2_0 x\r\n 25\n+25-a\r\r\n250",
    ],
    "steps": [
        b"0250-a\r\n|r|250 b\r\n250 c\r\n|t0|l5|r",
        b"1250 a\r\n250 b\r\n354 c\r\n421 d\r\n|n3|t0",
        b"1250-a\r\n251 b\r\n|r|c5|m9|r|l-1||r",
        b"0000 a\r\n|t4",  # code 0, and it is expected
    ],
    "payload": [
        b"20.a\r\n.\n..\r\rb",
        b"00~.\r\n.",
        b"07~\n.~\r~\r\n.",
        b"60\r\n.\r\nDATA",
        b"20a\r\n\xc3\xa9",
    ],
    "assemble": [
        b"010From a\nFrom b|=From c\n|\nFrom d",
        b"117~\r\nFrom ~|From",
        b"300a\xe9\r\n|b",
    ],
    "fields": [
        b"0000" + b"word " * 20 + b"end",
        b"100Ann Example <ann@example.org>, " * 4 + b"b@x",
        b"021X|a\r\n\tb",
        b"520=?utf-8?q?=C3=A9?= \xc3\xa9",
    ],
    "mailboxes": [
        b'Ann <a@x>, "b, c" <d@example.org>, e@x',
        b"J\xc3\xbcrgen (c) <@r:a@x>; g: ;",
        b'"a\\"b"<=?utf-8?q?b?=@x>',
    ],
    "envelope": [
        b"0SIZE=9||a@x|b@x|c.d@example.org",
        b"1||<v@x> NOTIFY=NEVER ORCPT=rfc822;e@evil|\xc3\xa9@x|a@\xe3\x80\x82y",
        b'2A\r\nDATA|\x7f||"a>b"@x|Ann <a@x>',
    ],
    "credentials": [
        b"user|password|<1@x>",
        b"=\xff\0|=\1|",
        b"\xed\xa0\x80||=ab",
        b"u\xc3\xa9|p\xff|",
    ],
    "messages": [
        b"000" + EIGHT_BIT,
        b"000" + PARTS,
        b"201" + PARTS.replace(b"\n", b"\r\n"),
        b"050" + NO_BOUNDARY,
        b"411" + LONG,
        b"130Subject: =?utf-8?q?=0D=0ABcc=3A_x?=\nDate: x\n\na\rFrom b",
    ],
}

#: What inputs are made of, where a fuzzer would be long in finding it.
WORDS = [
    *(b"\r\n", b"\n.", b"\r\n.\r\n", b"From ", b"\nFrom ", b"|", b"|=", b"~", b"\xc3\xa9", b"\xff"),
    *(b"250-", b"250 ", b"421 ", b"354 ", b"|r", b"|t0", b"|n9", b"|l9", b"|c9", b"|m9"),
    *(
        b"a@x",
        b"<a@x>",
        b", ",
        b'"',
        b"\\",
        b"(c)",
        b"=?utf-8?q?=C3=A9?=",
        b" NOTIFY=NEVER",
        b"g: ",
    ),
    *(b"\nSubject: ", b"\nTo: ", b"\nDate: ", b"\nX-Y: ", b"\nMIME-Version: 1.0", b"\r\n\t"),
    *(b"\nContent-Type: ", b"multipart/mixed", b"; boundary=b", b'; boundary="b c"', b"\n--b\n"),
    *(
        b"\n--b--\n",
        b"multipart/signed",
        b"message/rfc822",
        b"message/delivery-status",
        b"text/html",
    ),
    *(
        b"\nContent-Transfer-Encoding: ",
        b"base64",
        b"quoted-printable",
        b"8bit",
        b"; charset=utf-8",
    ),
    *(b"; a*0=b", b"; a*=utf-8''%C3%A9", b"xxxxxxxxxxxxxxxxxxxx", b"word word word word word "),
]
