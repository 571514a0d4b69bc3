"""Every name of the running interpreter's smtplib is here, and is called alike.

The tables are made from smtplib itself, so a name that a new Python adds fails
here until we have it.
"""

from __future__ import annotations

import inspect
import smtplib
import types
from inspect import Parameter

import pytest

import fastsmtp

#: Names that other people's code and tests reach for, on whatever version.
WELL_KNOWN = [
    "CRLF",
    "bCRLF",
    "SMTP_PORT",
    "SMTP_SSL_PORT",
    "LMTP_PORT",
    "OLDSTYLE_AUTH",
    "quoteaddr",
    "quotedata",
    "encode_base64",
    "socket",
    "ssl",
    "_have_ssl",
    "_MAXLINE",
    "_MAXCHALLENGE",
    "_fix_eols",
    "_quote_periods",
    "_addr_only",
    "_have_cram_md5_support",
]

DEFINED = [
    name
    for name, value in vars(smtplib).items()
    if not name.startswith("__") and not isinstance(value, types.ModuleType)
]
NAMES = sorted({*smtplib.__all__, *DEFINED, *WELL_KNOWN})

MODULE_FUNCTIONS = [name for name in NAMES if inspect.isfunction(getattr(smtplib, name, None))]
CONSTANTS = [name for name in NAMES if isinstance(getattr(smtplib, name, None), (str, bytes, int))]
CLASSES = [name for name in NAMES if inspect.isclass(getattr(smtplib, name, None))]
EXCEPTIONS = [name for name in CLASSES if issubclass(getattr(smtplib, name), Exception)]
CLIENTS = [name for name in CLASSES if name not in EXCEPTIONS]
METHODS = [
    (client, name)
    for client in CLIENTS
    for name, value in vars(getattr(smtplib, client)).items()
    if inspect.isfunction(value)
]


def test_the_tables_are_not_empty():
    assert {"SMTP", "SMTP_SSL", "LMTP"} <= set(CLIENTS)
    assert "SMTPSenderRefused" in EXCEPTIONS
    assert ("SMTP", "sendmail") in METHODS
    assert ("LMTP", "connect") in METHODS
    assert "quoteaddr" in MODULE_FUNCTIONS
    assert "bCRLF" in CONSTANTS


@pytest.mark.parametrize("name", NAMES)
def test_the_name_exists(name):
    assert hasattr(fastsmtp, name)


def test_star_import_gives_what_smtplib_gives():
    assert set(smtplib.__all__) <= set(fastsmtp.__all__)


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_are_equal(name):
    assert getattr(fastsmtp, name) == getattr(smtplib, name)


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_exceptions_are_the_same_classes(name):
    assert getattr(fastsmtp, name) is getattr(smtplib, name)


@pytest.mark.parametrize("name", CLIENTS)
def test_clients_are_subclasses(name):
    ours, theirs = getattr(fastsmtp, name), getattr(smtplib, name)
    assert ours is not theirs
    assert issubclass(ours, theirs)


def test_clients_are_related_as_in_smtplib():
    assert issubclass(fastsmtp.SMTP_SSL, fastsmtp.SMTP)
    assert issubclass(fastsmtp.LMTP, fastsmtp.SMTP)


@pytest.mark.parametrize(("client", "name"), METHODS)
def test_no_method_is_inherited_from_smtplib(client, name):
    ours = getattr(fastsmtp, client)
    owner = next(cls for cls in ours.__mro__ if name in vars(cls))
    assert owner.__module__.partition(".")[0] == "fastsmtp", f"{client}.{name} is {owner}'s"
    function = inspect.unwrap(vars(owner)[name])
    assert function.__module__.partition(".")[0] == "fastsmtp"
    assert function is not vars(getattr(smtplib, client))[name]


@pytest.mark.parametrize(("client", "name"), METHODS)
def test_methods_can_be_called_as_in_smtplib(client, name):
    theirs = getattr(getattr(smtplib, client), name)
    ours = getattr(getattr(fastsmtp, client), name)
    assert incompatibilities(inspect.signature(theirs), inspect.signature(ours)) == []


@pytest.mark.parametrize("name", MODULE_FUNCTIONS)
def test_functions_can_be_called_as_in_smtplib(name):
    theirs = inspect.signature(getattr(smtplib, name))
    ours = inspect.signature(getattr(fastsmtp, name))
    assert incompatibilities(theirs, ours) == []


@pytest.mark.parametrize("name", CLIENTS)
def test_clients_take_pipelining_by_keyword_only(name):
    client = getattr(fastsmtp, name)
    parameter = inspect.signature(client).parameters["pipelining"]
    assert (parameter.kind, parameter.default) == (Parameter.KEYWORD_ONLY, True)
    assert client.pipelining is True


# -- what compatible means ----------------------------------------------------

#: The kinds that take an argument in every way that the key's kind takes it.
AS_FLEXIBLE = {
    Parameter.POSITIONAL_ONLY: {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD},
    Parameter.POSITIONAL_OR_KEYWORD: {Parameter.POSITIONAL_OR_KEYWORD},
    Parameter.KEYWORD_ONLY: {Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD},
    Parameter.VAR_POSITIONAL: {Parameter.VAR_POSITIONAL},
    Parameter.VAR_KEYWORD: {Parameter.VAR_KEYWORD},
}
POSITIONAL = {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD}
VARIADIC = {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}


def incompatibilities(theirs: inspect.Signature, ours: inspect.Signature) -> list[str]:
    """Say which calls that *theirs* allows are not allowed by *ours*."""
    found = []
    for name, parameter in theirs.parameters.items():
        mine = ours.parameters.get(name)
        if mine is None:
            found.append(f"{name} is missing")
        elif mine.kind not in AS_FLEXIBLE[parameter.kind]:
            found.append(f"{name} is {mine.kind.description}")
        elif mine.default is not parameter.default and mine.default != parameter.default:
            found.append(f"{name} defaults to {mine.default!r}, not {parameter.default!r}")
    if _positional(ours)[: len(_positional(theirs))] != _positional(theirs):
        found.append(f"positions are {_positional(ours)}")
    for name, mine in ours.parameters.items():
        optional = mine.default is not Parameter.empty or mine.kind in VARIADIC
        if name not in theirs.parameters and not optional:
            found.append(f"{name} must be given")
    return found


def _positional(signature: inspect.Signature) -> list[str]:
    return [name for name, p in signature.parameters.items() if p.kind in POSITIONAL]


@pytest.mark.parametrize(
    ("theirs", "ours", "problems"),
    [
        (lambda a, b=1: 0, lambda a, b=1, *, c=2: 0, 0),
        (lambda a, *, b=1: 0, lambda a, b=1: 0, 0),
        (lambda a, b=1: 0, lambda a, *, b=1: 0, 2),
        (lambda a, b=1: 0, lambda a, b=2: 0, 1),
        (lambda a, b: 0, lambda b, a: 0, 1),
        (lambda a: 0, lambda a, b: 0, 1),
        (lambda *args: 0, lambda a, b, c: 0, 4),
    ],
)
def test_the_comparison_finds_what_it_should(theirs, ours, problems):
    found = incompatibilities(inspect.signature(theirs), inspect.signature(ours))
    assert len(found) == problems, found
