"""The codec in use: compiled where that can be had, else Python.

The environment variable ``FASTSMTP_IMPL`` asks for one: ``c`` or ``python``.
What was asked for and cannot be had is an ImportError.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType


def choose(wanted: str) -> "ModuleType":
    """Return the codec module for a value of FASTSMTP_IMPL; '' is the best one.

    Raises ImportError if it cannot be had, or if there is no such one.
    """
    if wanted not in ("", "c", "python"):
        raise ImportError(f"FASTSMTP_IMPL is {wanted!r}; it may be 'c', 'python' or unset")
    if wanted != "python":
        try:
            from . import _codec

            return _codec
        except ImportError as error:
            if wanted == "c":
                raise ImportError(
                    f"FASTSMTP_IMPL is 'c', but there is no C codec: {error}"
                ) from error
    from . import _codec_py

    return _codec_py


if TYPE_CHECKING:
    from . import _codec_py as _chosen
else:
    _chosen = choose(os.environ.get("FASTSMTP_IMPL", ""))

IMPLEMENTATION = _chosen.IMPLEMENTATION
MAX_LINE = _chosen.MAX_LINE
MAX_REPLY = _chosen.MAX_REPLY
ReplyParser = _chosen.ReplyParser
assemble = _chosen.assemble
data_payload = _chosen.data_payload
decode_challenge = _chosen.decode_challenge
envelope_commands = _chosen.envelope_commands
field_line = _chosen.field_line
first_values = _chosen.first_values
normalize_newlines = _chosen.normalize_newlines
plain_addresses = _chosen.plain_addresses
sasl_base64 = _chosen.sasl_base64
sasl_cram_md5 = _chosen.sasl_cram_md5
sasl_plain = _chosen.sasl_plain
sasl_xoauth2 = _chosen.sasl_xoauth2
stuff_dots = _chosen.stuff_dots
tokens_line = _chosen.tokens_line
