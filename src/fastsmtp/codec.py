"""The codec in use: compiled where that can be had, else Python.

The environment variable ``FASTSMTP_IMPL`` asks for one: ``c`` or ``python``.
What was asked for and cannot be had is an ImportError.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "IMPLEMENTATION",
    "MAX_LINE",
    "MAX_REPLY",
    "ReplyParser",
    "data_payload",
    "decode_challenge",
    "normalize_newlines",
    "sasl_base64",
    "sasl_cram_md5",
    "sasl_plain",
    "sasl_xoauth2",
    "stuff_dots",
]


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
                raise ImportError(f"FASTSMTP_IMPL is 'c', but there is no C codec: {error}") from error
    from . import _codec_py

    return _codec_py


if TYPE_CHECKING:
    from ._codec_py import (
        IMPLEMENTATION,
        MAX_LINE,
        MAX_REPLY,
        ReplyParser,
        data_payload,
        decode_challenge,
        normalize_newlines,
        sasl_base64,
        sasl_cram_md5,
        sasl_plain,
        sasl_xoauth2,
        stuff_dots,
    )
else:
    _chosen = choose(os.environ.get("FASTSMTP_IMPL", ""))
    globals().update({name: getattr(_chosen, name) for name in __all__})
