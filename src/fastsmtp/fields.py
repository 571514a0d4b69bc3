"""One header field to bytes, as the email package folds it.

What is beyond doubt is done here: printable ASCII that fits into its lines, or
that breaks where a parsed header has its tokens' ends.  All else is handed to
the email package, one field at a time.
"""

import io
import sys
from email import headerregistry as _registry
from email.generator import BytesGenerator
from email.message import Message
from email.policy import Compat32, EmailPolicy

from . import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from email.policy import Policy
    from typing import Any

    from .message import AnyMessage

_fold = _registry.BaseHeader.fold
# What the text of a parsed header is.
_ITS_STR, _A_DATE, _ITS_TOKENS = "str", "date", "tokens"
_TEXTS: "dict[tuple[type, ...], str]" = {
    (kind, _registry.BaseHeader): text
    for text, kinds in {
        _ITS_STR: (
            _registry.UnstructuredHeader,
            _registry.UniqueUnstructuredHeader,
            _registry.MIMEVersionHeader,
            _registry.ContentTypeHeader,
            _registry.ContentDispositionHeader,
            _registry.ContentTransferEncodingHeader,
            _registry.MessageIDHeader,
        ),
        _A_DATE: (_registry.DateHeader, _registry.UniqueDateHeader),
        _ITS_TOKENS: (
            _registry.AddressHeader,
            _registry.UniqueAddressHeader,
            _registry.SingleAddressHeader,
            _registry.UniqueSingleAddressHeader,
        ),
    }.items()
    for kind in kinds
}


def _kinds_of_tokens() -> "dict[type, bool]":
    """Return, for each class of token whose text is made the usual way, whether it holds tokens."""
    names = vars(getattr(_registry, "parser", _registry))  # no part of what is documented
    usual: dict[Any, bool] = {str.__str__: False}
    if "TokenList" in names:
        usual[names["TokenList"].__str__] = True
    kinds = [kind for kind in names.values() if isinstance(kind, type)]
    return {kind: usual[kind.__str__] for kind in kinds if kind.__str__ in usual}


_TOKENS = _kinds_of_tokens()
# Tokens that are folded by rules of their own.
_PECULIAR = {"ptext", "vtext", "mime-parameters"}
# What a policy object may have of its own; then it is asked.
_METHODS = {"fold", "fold_binary", "header_fetch_parse"}
# Lines that are kept for a policy, to be used again.
_MOST_KEPT = 64


class Line(bytes):
    """A field's value that is the whole field, as it is written."""


class Header:
    """A message's fields, looked through once."""

    __slots__ = ("fields", "is_ascii", "values")

    def __init__(self, message: "AnyMessage") -> None:
        #: Names and values, as they are stored.
        self.fields: list[tuple[str, Any]] = list(message.raw_items())
        #: Each field's first value by its name in lower case; and whether all are ASCII text.
        self.values, self.is_ascii = codec.first_values(self.fields)


class Style:
    """How a policy has fields written, as far as it is one of the email package's own."""

    __slots__ = ("compat32", "known", "limit", "lines", "newline", "policy", "source_limit")

    def __init__(self, policy: "Policy[Any]") -> None:
        #: The policy, with the line separator that is to be used.
        self.policy = policy
        self.newline = policy.linesep.encode("ascii")
        #: Fields that were written before, with what comes before and after something in them.
        self.lines: dict[tuple[str, str, bool], tuple[bytes, bytes]] = {}
        self.compat32 = type(policy) is Compat32
        # email.header takes so many characters for no limit.
        longest = policy.max_line_length or (1_000_000 if self.compat32 else sys.maxsize)
        self.known = (
            type(policy) in (Compat32, EmailPolicy)
            and _METHODS.isdisjoint(vars(policy))
            and policy.linesep in ("\r\n", "\n", "\r")
            and type(longest) is int
            and longest > 0
        )
        #: The longest line of a field, in characters.
        self.limit = min(longest, sys.maxsize) if self.known else 0
        #: The longest that a line of a field that was not parsed may be to stay as it is.
        self.source_limit = self.limit
        if type(policy) is EmailPolicy and policy.refold_source != "long":
            self.source_limit = -1 if policy.refold_source == "all" else sys.maxsize

    def keep(
        self, key: "tuple[str, str, bool]", before: bytes, after: bytes
    ) -> "tuple[bytes, bytes]":
        """Keep what a field consists of around what changes in it."""
        if len(self.lines) >= _MOST_KEPT:
            self.lines.clear()
        self.lines[key] = around = (before, after)
        return around

    def field(self, name: str, value: "Any") -> bytes:
        """Return a field with its newline, as the policy writes it.

        Raises what the policy and BytesGenerator do.
        """
        line = None
        if self.known and type(name) is str:
            if type(value) is str:
                line = codec.field_line(name, value, self.source_limit, self.newline, True)
            else:
                line = self._of_a_header(name, value)
        return self._by_the_policy(name, value) if line is None else line

    def _of_a_header(self, name: str, value: "Any") -> "bytes | None":
        """Return the field of a value that is no str, if it is written without doubt."""
        kind = type(value)
        text = _TEXTS.get(kind.__bases__)
        if text is None:
            return value if kind is Line else None
        if kind.fold is not _fold:
            return None
        if self.compat32:
            return codec.field_line(name, value, self.limit, self.newline, True)
        if text is _ITS_TOKENS or (text is _A_DATE and value.datetime is None):
            return self._of_tokens(value, plain=text is _ITS_TOKENS)
        line = codec.field_line(value.name, value, self.limit, self.newline, False)
        return line if line is not None or len(value) < 60 else self._of_tokens(value)

    def _of_tokens(self, value: "Any", *, plain: bool = False) -> "bytes | None":
        """Return a parsed header's field from the texts of its tokens.

        *plain* says that none of them has rules of its own.
        """
        tokens = getattr(value, "_parse_tree", None)
        if tokens is None:
            return None
        if plain or _PECULIAR.isdisjoint([token.token_type for token in tokens]):
            return codec.tokens_line(value.name, tokens, _TOKENS, self.limit, self.newline)
        return None

    def _by_the_policy(self, name: str, value: "Any") -> bytes:
        message = _OneField(self.policy)
        message.set_raw(name, value)
        with io.BytesIO() as buffer:
            BytesGenerator(buffer, False, policy=self.policy).flatten(message)
            return buffer.getvalue().removesuffix(self.newline)


class _OneField(Message):
    """A message of one field and no body, whatever that field says of the body."""

    def get_content_maintype(self) -> str:
        return "text"

    def get_content_subtype(self) -> str:
        return "plain"
