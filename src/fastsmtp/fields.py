"""One header field to bytes, as the email package folds it.

What is beyond doubt is done here: printable ASCII that fits into its lines, or
that breaks where a parsed header has its tokens' ends.  All else is handed to
the email package, one field at a time.
"""

import io
import sys
from email import _header_value_parser as _parser
from email import headerregistry as _registry
from email._policybase import Compat32
from email.generator import BytesGenerator
from email.message import Message
from email.policy import EmailPolicy

from . import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from email.policy import Policy
    from typing import Any

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
    its_own: dict[Any, bool] = {_parser.TokenList.__str__: True, str.__str__: False}
    kinds = [kind for kind in vars(_parser).values() if isinstance(kind, type)]
    return {kind: its_own[kind.__str__] for kind in kinds if kind.__str__ in its_own}


_TOKENS = _kinds_of_tokens()
_MOST_KEPT = 64
# These are folded by rules of their own.
_PECULIAR = ("ptext", "mime-parameters")


_METHODS = {"fold", "fold_binary", "header_fetch_parse"}


class Line(bytes):
    """A field's value that is the whole field, as it is written."""


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
        self.known = type(policy) in (Compat32, EmailPolicy) and _METHODS.isdisjoint(vars(policy))
        #: The longest line of a field, in characters.
        self.limit = policy.max_line_length or (1_000_000 if self.compat32 else sys.maxsize)
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
        line = self._certain(name, value) if self.known and type(name) is str else None
        return self._by_the_policy(name, value) if line is None else line

    def _certain(self, name: str, value: "Any") -> "bytes | None":
        """Return a field if it is written without doubt."""
        kind = type(value)
        if kind is str:
            return codec.field_line(name, value, self.source_limit, self.newline, True)
        text = _TEXTS.get(kind.__bases__)
        if text is None:
            return value if kind is Line else None
        if kind.fold is not _fold:
            return None
        if self.compat32:
            return codec.field_line(name, value, self.limit, self.newline, True)
        if text is _ITS_TOKENS:
            return self._of_tokens(value)
        if text is _A_DATE and value.datetime is None:
            return None
        line = codec.field_line(value.name, value, self.limit, self.newline, False)
        return line if line is not None or len(value) < 60 else self._of_tokens(value)

    def _of_tokens(self, value: "Any") -> "bytes | None":
        """Return a parsed header's field from the texts of its tokens."""
        tokens = value._parse_tree
        texts = codec.token_texts(tokens, _TOKENS)
        text = "".join(texts)
        line = codec.field_line(value.name, text, self.limit, self.newline, False)
        if line is not None or not (text.isascii() and text.isprintable()):
            return line
        if not text or text[0] == " " or text[-1] == " ":
            return None
        lines = _folded(f"{value.name}: ", text, tokens, texts, self.limit)
        if lines is None:
            return None
        try:
            return self.newline.join([line.encode("ascii") for line in [*lines, ""]])
        except UnicodeEncodeError:
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


def _folded(
    label: str, text: str, tokens: "Any", texts: "list[str]", limit: int
) -> "list[str] | None":
    """Return a field's lines, broken where a token does not fit, or None if one does not at all.

    As the email package breaks them: a token that allows it goes to the next
    line, together with the space before it.
    """
    if len(label) > limit or len(label) + len(text) <= limit:
        return None
    if tokens.syntactic_break and len(text) < limit:
        return [label[:-1], " " + text]
    lines = []
    line = label
    for token, text in zip(tokens, texts, strict=True):
        if token.token_type in _PECULIAR:
            return None
        if len(line) + len(text) <= limit:
            line += text
            continue
        if not token.syntactic_break or len(text) >= limit:
            return None
        if line[-1:] in (" ", "\t"):
            lines.append(line[:-1])
            line = line[-1] + text
        elif token.startswith_fws():
            lines.append(line)
            line = text
        else:
            return None
    return [*lines, line]
