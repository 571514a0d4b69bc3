# The compiled codec has the types of its twin.
from ._codec_py import MAX_LINE as MAX_LINE
from ._codec_py import MAX_REPLY as MAX_REPLY
from ._codec_py import ReplyParser as ReplyParser
from ._codec_py import assemble as assemble
from ._codec_py import data_payload as data_payload
from ._codec_py import decode_challenge as decode_challenge
from ._codec_py import envelope_commands as envelope_commands
from ._codec_py import field_line as field_line
from ._codec_py import first_values as first_values
from ._codec_py import normalize_newlines as normalize_newlines
from ._codec_py import plain_addresses as plain_addresses
from ._codec_py import sasl_base64 as sasl_base64
from ._codec_py import sasl_cram_md5 as sasl_cram_md5
from ._codec_py import sasl_plain as sasl_plain
from ._codec_py import sasl_xoauth2 as sasl_xoauth2
from ._codec_py import stuff_dots as stuff_dots
from ._codec_py import tokens_line as tokens_line

IMPLEMENTATION: str
