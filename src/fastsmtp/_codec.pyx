# cython: language_level=3, freethreading_compatible=True
# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The codec, compiled.

Every public name here has a twin in ``_codec_py.py``, the reference, with the
same signature, docstring, result and error.  A fix in one is a fix in both, in
one commit.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItemWithError
from cpython.ref cimport PyObject
from cpython.unicode cimport (
    PyUnicode_DATA,
    PyUnicode_GET_LENGTH,
    PyUnicode_KIND,
    PyUnicode_READ,
    PyUnicode_Substring,
)
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcpy, memmove

import binascii
import hmac
import re
from smtplib import SMTPException, SMTPResponseException

from .errors import SMTPProtocolError

cdef extern from *:
    """
    enum { CR = 13, LF = 10 };

    /* An ASCII str keeps its bytes as they are: no copy is needed to read them. */
    static const char *fastsmtp_ascii(PyObject *text, Py_ssize_t *size)
    {
        if (!PyUnicode_IS_ASCII(text)) {
            return NULL;
        }
        *size = PyUnicode_GET_LENGTH(text);
        return (const char *)PyUnicode_DATA(text);
    }

    /* Count the newlines to be made CRLF, each where the byte after a lone CR
       or a lone LF itself stands, and the dots to be doubled.  `before` is the
       byte before the first.  The inner loops have no branch and sum into bytes,
       too seldom to overflow and a multiple of 16 times, so that compilers make
       them vector code. */
    static void fastsmtp_survey(const unsigned char *p, Py_ssize_t n, unsigned char before,
                                int normalize, Py_ssize_t *newlines, Py_ssize_t *dots)
    {
        Py_ssize_t i = 1;
        *newlines = *dots = 0;
        if (n) {
            *newlines = normalize && (p[0] == LF) != (before == CR);
            *dots = p[0] == '.' && (before == LF || (normalize && before == CR));
        }
        while (i < n) {
            const Py_ssize_t end = n - i > 240 ? i + 240 : n;
            unsigned char bare = 0, stuffed = 0;
            if (normalize) {
                for (; i < end; i++) {
                    bare += (p[i] == LF) ^ (p[i - 1] == CR);
                    stuffed += (p[i] == '.') & ((p[i - 1] == LF) | (p[i - 1] == CR));
                }
            }
            else {
                for (; i < end; i++) {
                    stuffed += (p[i] == '.') & (p[i - 1] == LF);
                }
            }
            *newlines += bare;
            *dots += stuffed;
        }
    }

    /* Write the n bytes at p, a line at a time, to out; return out's new end.
       `p` is left where the reading ended: one past the n bytes, if they end
       in the CR of a CRLF. */
    static inline unsigned char *fastsmtp_rewrite_lines(
        const unsigned char **p, Py_ssize_t n, const unsigned char *data_end,
        unsigned char *out, int normalize, int has_cr, int stuff)
    {
        const unsigned char *at = *p, *lf = NULL, *cr = NULL;
        const unsigned char *const end = at + n;
        while (at < end) {
            const unsigned char *stop;
            /* A newline found ahead is kept until it is reached. */
            if (lf < at && !(lf = memchr(at, LF, end - at))) {
                lf = end;
            }
            if (has_cr && cr < at && !(cr = memchr(at, CR, end - at))) {
                cr = end;
            }
            stop = has_cr && cr < lf ? cr : lf;
            memcpy(out, at, stop - at);
            out += stop - at;
            if (stop == end) {
                at = end;
                break;
            }
            at = stop + 1;
            if (normalize) {
                *out++ = CR;
                if (has_cr && *stop == CR && at < data_end && *at == LF) {
                    at++;
                }
            }
            *out++ = LF;
            if (stuff && at < end && *at == '.') {
                *out++ = '.';
            }
        }
        *p = at;
        return out;
    }

    /* Write a message to out with each dot that begins a line doubled and, if
       asked, each lone CR and each lone LF made CRLF; return out's new end.
       Where there are few changes, the stretches without go over whole. */
    static unsigned char *fastsmtp_rewrite(const unsigned char *p, Py_ssize_t n, int few,
                                           unsigned char *out, int normalize, int stuff)
    {
        const unsigned char *const end = p + n;
        const int has_cr = normalize && n && memchr(p, CR, n);
        unsigned char before = LF;
        while (p < end) {
            const Py_ssize_t size = few && end - p > 512 ? 512 : end - p;
            Py_ssize_t newlines = 1, dots = 1;
            if (few) {
                fastsmtp_survey(p, size, before, normalize, &newlines, &dots);
            }
            if (newlines || dots || (normalize && p[size - 1] == CR)) {
                if (stuff && *p == '.' && (before == LF || (normalize && before == CR))) {
                    *out++ = '.';
                }
                /* Constants let the compiler make a loop for each case. */
                out = has_cr ? fastsmtp_rewrite_lines(&p, size, end, out, 1, 1, stuff)
                    : normalize ? fastsmtp_rewrite_lines(&p, size, end, out, 1, 0, stuff)
                    : fastsmtp_rewrite_lines(&p, size, end, out, 0, 0, stuff);
            }
            else {
                memcpy(out, p, size);
                out += size;
                p += size;
            }
            before = p[-1];
        }
        return out;
    }

    /* The same for a text's newlines, and whether a line of it begins with "From ". */
    static int fastsmtp_survey_text(const unsigned char *p, Py_ssize_t n, Py_ssize_t *newlines)
    {
        Py_ssize_t i = 1;
        int from_line = n >= 5 && !memcmp(p, "From ", 5);
        *newlines = n && p[0] == LF;
        while (i < n) {
            const Py_ssize_t begin = i;
            const Py_ssize_t end = n - i > 240 ? i + 240 : n;
            unsigned char bare = 0, initial = 0;
            for (; i < end; i++) {
                bare += (p[i] == LF) ^ (p[i - 1] == CR);
                initial |= (p[i] == 'F') & (p[i - 1] == LF);
            }
            *newlines += bare;
            for (i = begin; initial && i < end && i + 5 <= n; i++) {
                from_line |= p[i - 1] == LF && !memcmp(p + i, "From ", 5);
            }
            i = end;
        }
        *newlines += n && p[n - 1] == CR;
        return from_line;
    }

    /* The bytes of a str whose characters take one each (Latin-1), or NULL. */
    static const unsigned char *fastsmtp_latin1(PyObject *text, Py_ssize_t *size)
    {
        if (PyUnicode_KIND(text) != PyUnicode_1BYTE_KIND) {
            return NULL;
        }
        *size = PyUnicode_GET_LENGTH(text);
        return PyUnicode_1BYTE_DATA(text);
    }

    /* A store through a volatile pointer is not optimised away. */
    static void fastsmtp_wipe(char *p, Py_ssize_t n)
    {
        volatile char *v = p;
        while (n--) {
            *v++ = 0;
        }
    }
    """
    const char *fastsmtp_ascii(object text, Py_ssize_t *size)
    void fastsmtp_survey(
        const unsigned char *p, Py_ssize_t n, unsigned char before,
        bint normalize, Py_ssize_t *newlines, Py_ssize_t *dots
    ) noexcept nogil
    unsigned char *fastsmtp_rewrite(
        const unsigned char *p, Py_ssize_t n, bint few, unsigned char *out,
        bint normalize, bint stuff
    ) noexcept nogil
    bint fastsmtp_survey_text(
        const unsigned char *p, Py_ssize_t n, Py_ssize_t *newlines
    ) noexcept nogil
    const unsigned char *fastsmtp_latin1(object text, Py_ssize_t *size)
    void fastsmtp_wipe(char *p, Py_ssize_t n) noexcept nogil
    const Py_ssize_t PY_SSIZE_T_MAX


IMPLEMENTATION = "c"

#: Longest line of a reply, in bytes with its CRLF (RFC 5321 4.5.3.1.5 asks for 512).
MAX_LINE = 8192
#: Largest reply, in bytes over all its lines.
MAX_REPLY = 1 << 20

# From this size on, in bytes, other threads run while a message is gone through.
cdef Py_ssize_t LARGE = 1 << 16


# -- message data -------------------------------------------------------------


def normalize_newlines(data):
    """Return the data with each lone CR and each lone LF made CRLF.

    *data* is ASCII text or a C-contiguous bytes-like object of any format.
    Data that needs no change is not copied: bytes come back as the same
    object, other buffers as a memoryview of the caller's memory.

    Raises UnicodeEncodeError for text outside ASCII, TypeError for what is
    neither text nor bytes-like, BufferError for a non-contiguous buffer.
    RFC 5321, section 2.3.8.
    """
    cdef _Message message = _Message.__new__(_Message)
    message.take(data)
    message.survey(True)
    if not message.newlines:
        return message.shared()
    message.make_private(True)
    return message.rewritten(True, False)


def stuff_dots(data):
    """Return the data with a dot put before each line that begins with one.

    A line begins at the start of *data* and after each LF.  *data* is a
    C-contiguous bytes-like object of any format (text is taken as ASCII, its
    newlines left alone).  Data that needs no change is not copied: see
    normalize_newlines(), also for what is raised.  RFC 5321, section 4.5.2.
    """
    cdef _Message message = _Message.__new__(_Message)
    message.take(data)
    message.survey(False)
    if not message.dots:
        return message.shared()
    message.make_private(False)
    return message.rewritten(False, True)


def data_payload(data, bint normalize):
    """Return the size of a message and the buffers to send after DATA's 354.

    *data* is ASCII text or a C-contiguous bytes-like object of any format;
    with *normalize* true its newlines are made CRLF first.  The first item of
    the result is the message's size in bytes as MAIL's SIZE declares it (RFC
    1870: newlines normalised, before dot-stuffing and without what ends the
    data).  The second is two buffers for a vectored write: the dot-stuffed
    data, and what ends it: a CRLF where the last line has none, ``.`` CRLF.
    Data that needs no change is not copied; its buffer is the caller's.

    Raises what normalize_newlines() raises.  RFC 5321, sections 4.1.1.4, 4.5.2.
    """
    cdef _Message message = _Message.__new__(_Message)
    message.take(data)
    message.survey(normalize)
    if not (message.newlines or message.dots):
        return message.size, (message.shared(), message.ending(normalize))
    message.make_private(normalize)
    payload = message.rewritten(normalize, True)
    return message.size + message.newlines, (payload, message.ending(normalize))


def assemble(list pieces not None, bytes newline not None, bint mangle_from):
    """Return the pieces of a message in one, with the newlines of its texts as asked.

    A piece in bytes is taken as it is.  One in str is text, its characters
    octets in Latin-1: each CR LF, lone CR and lone LF in it becomes *newline*
    and, with *mangle_from*, each line that begins with ``From `` gets a ``>``
    before it.  RFC 5322, section 2.1; RFC 4155.

    Raises UnicodeEncodeError for text outside Latin-1, TypeError for a piece of
    another kind.
    """
    cdef Py_ssize_t total = 0, size
    cdef list ready = []
    cdef _Message text
    for piece in pieces:
        if isinstance(piece, str):
            text = _Message.__new__(_Message)
            text.of_octets(piece)
            if text.survey_text() and mangle_from:
                text.of_octets(_FROM_LINE.sub(">From ", piece))
                text.survey_text()
            if newline != b"\r\n":
                text.of_bytes(_with_newline(str.encode(text.owner, "latin-1"), newline))
                text.newlines = 0
            size = text.size + text.newlines
            ready.append(text)
        elif isinstance(piece, bytes):
            size = PyBytes_GET_SIZE(piece)
            ready.append(piece)
        else:
            raise TypeError(f"a piece must be str or bytes, not {type(piece).__name__}")
        # One piece may be there many times: in 32 bits that is more than there is memory for.
        if size > PY_SSIZE_T_MAX - total:
            raise OverflowError("a message is too long for a bytes object")
        total += size
    cdef bytes result = PyBytes_FromStringAndSize(NULL, total)
    cdef unsigned char *out = <unsigned char *>PyBytes_AS_STRING(result)
    for piece in ready:
        if isinstance(piece, bytes):
            memcpy(out, PyBytes_AS_STRING(piece), PyBytes_GET_SIZE(piece))
            out += PyBytes_GET_SIZE(piece)
        else:
            out = (<_Message>piece).put(out)
    return result


cdef object _FROM_LINE = re.compile("^From ", re.MULTILINE)
cdef object _NEWLINE = re.compile(b"\r\n?|\n")


cdef bytes _with_newline(bytes octets, bytes newline):
    return _NEWLINE.sub(lambda _: newline, octets)


@cython.final
@cython.internal
@cython.no_gc
@cython.freelist(8)
cdef class _Message:
    """A message's bytes, looked at where they are."""

    cdef object owner  # whose memory it is: bytes, an ASCII str, or a memoryview
    cdef const unsigned char *start
    cdef Py_ssize_t size
    cdef Py_ssize_t newlines  # to be made CRLF
    cdef Py_ssize_t dots  # to be doubled
    cdef bint borrowed  # from a buffer that others can write to
    cdef Py_buffer buffer

    def __dealloc__(self):
        PyBuffer_Release(&self.buffer)

    cdef int take(self, data) except -1:
        if type(data) is bytes:
            return self.of_bytes(data)
        if isinstance(data, str):
            return self.of_text(data)
        return self.of_buffer(data)

    cdef int of_bytes(self, bytes data) except -1:
        self.owner = data
        self.start = <const unsigned char *>PyBytes_AS_STRING(data)
        self.size = PyBytes_GET_SIZE(data)
        return 0

    cdef int of_text(self, text) except -1:
        self.start = <const unsigned char *>fastsmtp_ascii(text, &self.size)
        if self.start is NULL:
            # smtplib normalises before it encodes, so the error's position counts that.
            text = str.replace(text, "\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
            text.encode("ascii")
        self.owner = text
        return 0

    cdef int of_octets(self, text) except -1:
        self.start = fastsmtp_latin1(text, &self.size)
        if self.start is NULL:
            str.encode(text, "latin-1")  # raises
            raise ValueError("a str is not stored as it should be")
        self.owner = text
        return 0

    cdef int of_buffer(self, data) except -1:
        try:
            view = memoryview(data)
        except TypeError:
            raise TypeError(
                f"message data must be str or a bytes-like object, not {type(data).__name__}"
            ) from None
        if not view.c_contiguous:
            raise BufferError("message data must be a C-contiguous buffer")
        if view.nbytes == 0:
            return self.of_bytes(b"")
        self.owner = view.cast("B")
        PyObject_GetBuffer(self.owner, &self.buffer, PyBUF_SIMPLE)
        self.borrowed = True
        self.start = <const unsigned char *>self.buffer.buf
        self.size = self.buffer.len
        return 0

    cdef void survey(self, bint normalize) noexcept:
        """Count what is to be changed."""
        if self.size >= LARGE:
            with nogil:
                self.count(normalize)
        else:
            self.count(normalize)

    cdef void count(self, bint normalize) noexcept nogil:
        fastsmtp_survey(self.start, self.size, c"\n", normalize, &self.newlines, &self.dots)
        if normalize and self.size and self.start[self.size - 1] == c"\r":
            self.newlines += 1

    cdef bint survey_text(self) noexcept:
        """Count the newlines to be made CRLF; return whether a line begins with From."""
        cdef bint from_line
        if self.size >= LARGE:
            with nogil:
                from_line = fastsmtp_survey_text(self.start, self.size, &self.newlines)
            return from_line
        return fastsmtp_survey_text(self.start, self.size, &self.newlines)

    cdef unsigned char *put(self, unsigned char *out) noexcept:
        """Write the message to out, newlines as surveyed; return out's new end."""
        cdef bint few = self.newlines * 1024 <= self.size
        if not self.newlines:
            memcpy(out, self.start, self.size)
            return out + self.size
        if self.size < LARGE:
            return fastsmtp_rewrite(self.start, self.size, few, out, True, False)
        with nogil:
            out = fastsmtp_rewrite(self.start, self.size, few, out, True, False)
        return out

    cdef bytes ending(self, bint normalize):
        """Return what ends the data: a CRLF, if the last line has none, and the dot."""
        cdef unsigned char last = self.start[self.size - 1] if self.size else 0
        cdef unsigned char before = self.start[self.size - 2] if self.size > 1 else 0
        if last == c"\n" and (normalize or before == c"\r") or last == c"\r" and normalize:
            return b".\r\n"
        return b"\r\n.\r\n"

    cdef object shared(self):
        """Return the message as it is, in the caller's memory where that is a buffer."""
        if isinstance(self.owner, str):
            return PyBytes_FromStringAndSize(<const char *>self.start, self.size)
        return self.owner

    cdef int make_private(self, bint normalize) except -1:
        """Go on with a copy, unless nobody can write to the memory.

        If another thread wrote to it, what was counted would no longer fit.
        """
        if self.borrowed:
            self.of_bytes(PyBytes_FromStringAndSize(<const char *>self.start, self.size))
            self.survey(normalize)
        return 0

    cdef bytes rewritten(self, bint normalize, bint stuff):
        """Return the message changed as asked."""
        cdef Py_ssize_t size = self.size
        if normalize:
            size += self.newlines
        if stuff:
            size += self.dots
        cdef bytes result = PyBytes_FromStringAndSize(NULL, size)
        cdef unsigned char *out = <unsigned char *>PyBytes_AS_STRING(result)
        cdef bint few = (self.newlines + self.dots) * 1024 <= self.size
        if size >= LARGE:
            with nogil:
                fastsmtp_rewrite(self.start, self.size, few, out, normalize, stuff)
        else:
            fastsmtp_rewrite(self.start, self.size, few, out, normalize, stuff)
        return result


# -- header fields ------------------------------------------------------------


def field_line(name, value, Py_ssize_t limit, bytes newline not None, bint folded):
    """Return a header field as it is written, or None unless that is beyond doubt.

    It is for printable ASCII: words with white space between them, in lines of
    at most *limit* characters.  With *folded*, the value may be in several
    lines, each after the first beginning with white space (RFC 5322, section
    2.2.3).  *newline* is put between lines, and at the end.
    """
    cdef Py_ssize_t name_size = 0, size = 0, i, left, skipped, lines
    cdef const char *label = NULL
    cdef const char *text = NULL
    cdef bint visible = False  # whether the character before is
    if isinstance(name, str) and isinstance(value, str):
        label = fastsmtp_ascii(name, &name_size)
        text = fastsmtp_ascii(value, &size)
    if label is NULL or text is NULL or size == 0 or not _is_visible(text[0]):
        return None
    if not _all_visible(label, name_size):
        return None
    left = limit - name_size - 2
    skipped = lines = 0
    i = 0
    while i < size:
        if text[i] == c"\r" or text[i] == c"\n":
            if not folded or not visible or left < 0:
                return None
            if text[i] == c"\r":
                i += 1
                skipped += 1
                if i == size or text[i] != c"\n":
                    return None
            i += 1
            if i == size or not (text[i] == c" " or text[i] == c"\t"):
                return None
            left = limit
            skipped += 1
            lines += 1
        visible = _is_visible(text[i])
        if not (visible or text[i] == c" " or text[i] == c"\t"):
            return None
        left -= 1
        i += 1
    if not visible or left < 0:
        return None
    cdef Py_ssize_t newline_size = PyBytes_GET_SIZE(newline)
    cdef bytes result = PyBytes_FromStringAndSize(
        NULL, name_size + 2 + size - skipped + (lines + 1) * newline_size
    )
    cdef char *out = PyBytes_AS_STRING(result)
    memcpy(out, label, name_size)
    out += name_size
    out[0] = c":"
    out[1] = c" "
    out += 2
    if lines == 0:
        memcpy(out, text, size)
        out += size
    else:
        for i in range(size):
            if text[i] == c"\n":
                memcpy(out, PyBytes_AS_STRING(newline), newline_size)
                out += newline_size
            elif text[i] != c"\r":
                out[0] = text[i]
                out += 1
    memcpy(out, PyBytes_AS_STRING(newline), newline_size)
    return result


cdef inline bint _is_visible(char c) noexcept:
    return c"!" <= c <= c"~"


def first_values(list fields not None):
    """Return fields' first values by their names in lower case, and whether all are ASCII text.

    *fields* is a list of names and values.
    """
    cdef dict values = {}
    cdef bint is_ascii = True
    cdef Py_ssize_t size
    for name, value in fields:
        values.setdefault(name.lower(), value)
        if is_ascii and not (isinstance(value, str) and fastsmtp_ascii(value, &size) is not NULL):
            is_ascii = False
    return values, is_ascii


def tokens_line(name, tokens, dict kinds not None, Py_ssize_t limit, bytes newline not None):
    """Return a parsed header field as it is written, or None unless that is beyond doubt.

    *tokens* are those of the email package.  *kinds* says of a token's class
    where its text is: True, in the tokens it holds; False, in itself as a str.
    For other classes it is str().

    A token that would not end within *limit* characters goes to the next line,
    together with the space before it, if it allows that.  RFC 5322, section
    2.2.3.
    """
    cdef _Text text = _Text.__new__(_Text)
    cdef _Text out = _Text.__new__(_Text)
    cdef list ends = []
    cdef const char *label = NULL
    cdef Py_ssize_t label_size = 0, column, start, end, size
    cdef bint whole  # whether the text is in one line
    if isinstance(name, str):
        label = fastsmtp_ascii(name, &label_size)
    if label is NULL or not _all_visible(label, label_size):
        return None
    for token in tokens:
        if not text.add(token, kinds, 32):
            return None
        ends.append(text.size)
    if not text.is_printable() or text.start[0] == c" " or text.start[text.size - 1] == c" ":
        return None
    column = label_size + 2
    out.put(label, label_size)
    out.put(b": ", 2)
    if column > limit:
        return None
    whole = column + text.size <= limit or (tokens.syntactic_break and text.size < limit)
    if whole:
        ends = [text.size]
    start = 0
    for at, end in enumerate(ends):
        size = end - start
        if column + size <= limit:
            column += size
        elif size >= limit or not (whole or tokens[at].syntactic_break):
            return None
        elif out.start[out.size - 1] == c" ":
            out.size -= 1
            out.put(PyBytes_AS_STRING(newline), PyBytes_GET_SIZE(newline))
            out.put(b" ", 1)
            column = 1 + size
        elif text.start[start] == c" " and tokens[at].startswith_fws():
            out.put(PyBytes_AS_STRING(newline), PyBytes_GET_SIZE(newline))
            column = size
        else:
            return None
        out.put(text.start + start, size)
        start = end
    out.put(PyBytes_AS_STRING(newline), PyBytes_GET_SIZE(newline))
    return PyBytes_FromStringAndSize(out.start, out.size)


@cython.final
@cython.internal
cdef class _Text:
    """ASCII text in the making."""

    cdef char *start
    cdef Py_ssize_t size
    cdef Py_ssize_t capacity

    def __dealloc__(self):
        free(self.start)

    cdef int put(self, const char *octets, Py_ssize_t size) except -1:
        cdef char *larger
        if self.size + size >= self.capacity:  # also for no octets: there is memory from then on
            larger = <char *>realloc(self.start, 2 * (self.size + size) + 128)
            if larger is NULL:
                raise MemoryError
            self.start = larger
            self.capacity = 2 * (self.size + size) + 128
        memcpy(self.start + self.size, octets, size)
        self.size += size
        return 0

    cdef bint add(self, token, dict kinds, int depth) except -1:
        """Add a token's text; return whether it is ASCII."""
        cdef Py_ssize_t size = 0
        cdef const char *octets
        cdef PyObject *held = PyDict_GetItemWithError(kinds, type(token))
        if held is not NULL and <object>held is True and depth and isinstance(token, list):
            for inner in <list>token:
                if not self.add(inner, kinds, depth - 1):
                    return False
            return True
        text = token if held is not NULL and <object>held is False else str(token)
        octets = fastsmtp_ascii(text, &size) if isinstance(text, str) else NULL
        if octets is NULL:
            return False
        self.put(octets, size)
        return True

    cdef bint is_printable(self) noexcept:
        """Whether there is something, of printable characters only."""
        cdef Py_ssize_t i
        for i in range(self.size):
            if not c" " <= self.start[i] <= c"~":
                return False
        return self.size > 0


cdef bint _all_visible(const char *octets, Py_ssize_t size) noexcept:
    cdef Py_ssize_t i
    for i in range(size):
        if not _is_visible(octets[i]):
            return False
    return size > 0


def plain_addresses(text):
    """Return the addresses of a header field, or None unless it is one that all read alike.

    It is for a list of ``a@example.org``, ``Ann Example <a@example.org>`` and
    ``"Example, Ann" <a@example.org>`` with dot-strings, in ASCII, for addresses,
    and no comments, groups or quoted pairs (RFC 5322, section 3.4).
    """
    cdef list found = []
    cdef Py_ssize_t size, at = 0, start, end
    cdef int kind
    cdef void *data
    if not isinstance(text, str):
        return None
    size = PyUnicode_GET_LENGTH(text)
    kind = PyUnicode_KIND(text)
    data = PyUnicode_DATA(text)
    while True:
        start = _after_blanks(kind, data, at, size)
        at = _after_name(kind, data, start, size)
        if at < 0:
            return None
        if at < size and PyUnicode_READ(kind, data, at) == c"<":
            start = at + 1
            end = start
            while end < size and PyUnicode_READ(kind, data, end) != c">":
                end += 1
            if end == size:
                return None
            at = end + 1
        else:  # What was taken for a name begins the address.
            end = at = _after_address(kind, data, at, size)
        address = PyUnicode_Substring(text, start, end)
        if not _is_plain(address) or "=?" in <str>address:
            return None
        found.append(address)
        at = _after_blanks(kind, data, at, size)
        if at == size:
            return found
        if PyUnicode_READ(kind, data, at) != c",":
            return None
        at += 1


cdef inline Py_ssize_t _after_blanks(
    int kind, void *data, Py_ssize_t at, Py_ssize_t size
) noexcept:
    while at < size and _is_blank(PyUnicode_READ(kind, data, at)):
        at += 1
    return at


cdef inline Py_ssize_t _after_name(
    int kind, void *data, Py_ssize_t at, Py_ssize_t size
) noexcept:
    """Return where a display name ends, with the blanks after it; -1 for one that is not plain."""
    cdef Py_UCS4 c
    if at == size or PyUnicode_READ(kind, data, at) != c'"':
        while at < size and _is_phrase(PyUnicode_READ(kind, data, at)):
            at += 1
        return at
    at += 1
    while at < size:
        c = PyUnicode_READ(kind, data, at)
        if c == c'"':
            return _after_blanks(kind, data, at + 1, size)
        if c == c"\\" or not _is_phrase(c) and not 32 <= c < 127:
            return -1
        at += 1
    return -1


cdef inline Py_ssize_t _after_address(
    int kind, void *data, Py_ssize_t at, Py_ssize_t size
) noexcept:
    cdef Py_UCS4 c
    while at < size:
        c = PyUnicode_READ(kind, data, at)
        if c == c"," or _is_blank(c):
            break
        at += 1
    return at


cdef inline bint _is_blank(Py_UCS4 c) noexcept:
    return c == c" " or c == c"\t" or c == c"\r" or c == c"\n"


cdef inline bint _is_phrase(Py_UCS4 c) noexcept:
    """Whether c may stand in words that are not quoted: no special and no control character."""
    if c < 128:
        return (
            c"a" <= c <= c"z" or c"A" <= c <= c"Z" or c"0" <= c <= c"9"
            or c == c" " or c == c"\t" or c == c"." or c == c"-" or _is_special(<char>c)
        )
    return c >= 0xA0 and not 0xD800 <= c < 0xE000


# -- replies ------------------------------------------------------------------


@cython.final
cdef class ReplyParser:
    """Cuts the bytes a server sends into replies (RFC 5321, section 4.2).

    Bytes may be fed cut at any place.  *strict* false reads replies as
    smtplib does: the code is what ``int()`` makes of a line's first three
    bytes, -1 if nothing, and the last line's code counts.  *strict* true
    raises SMTPProtocolError for a reply that the grammar does not allow: a
    code that is not three digits from 200 to 599, a fourth byte that is not a
    space, a hyphen or the line's end, lines with different codes.  A bare LF
    ends a line in both.

    *max_line* caps a line and *max_reply* a whole reply, both in bytes with
    line ends; either may be assigned later.  Instances are not thread-safe.
    """

    cdef public bint strict
    cdef public Py_ssize_t max_line
    cdef public Py_ssize_t max_reply
    cdef char *buffer
    cdef Py_ssize_t capacity
    cdef Py_ssize_t start  # of the current reply
    cdef Py_ssize_t end  # of what was fed
    cdef Py_ssize_t line  # where the current line of the current reply begins
    cdef Py_ssize_t searched  # no newline between there and here
    cdef bint eof

    def __init__(
        self, bint strict=False, Py_ssize_t max_line=MAX_LINE, Py_ssize_t max_reply=MAX_REPLY
    ):
        self.strict = strict
        self.max_line = max_line
        self.max_reply = max_reply

    def __dealloc__(self):
        free(self.buffer)

    @property
    def pending(self):
        """Bytes that were fed and not yet returned."""
        return self.end - self.start

    @cython.critical_section
    def feed(self, data):
        """Take bytes from the server; no bytes at all mean the end of the stream."""
        cdef Py_buffer fed
        PyObject_GetBuffer(data, &fed, PyBUF_SIMPLE)
        try:
            if fed.len == 0:
                self.eof = True
            else:
                self.make_room(fed.len)
                memcpy(self.buffer + self.end, fed.buf, fed.len)
                self.end += fed.len
        finally:
            PyBuffer_Release(&fed)

    @cython.critical_section
    def next_reply(self):
        """Return the next reply as (code, text), or None if more bytes are needed.

        The text is that of all lines, each stripped of white space, joined by
        LF.  At the end of the stream a last line without a newline counts as
        a line, unless *strict*.

        Raises SMTPResponseException(500, ...) for a line or a reply over its
        cap and, if *strict*, SMTPProtocolError.  The bytes stay where they
        are: a parser that has raised will raise again.
        """
        cdef const char *line
        cdef Py_ssize_t end, size
        cdef int code
        while True:
            end = self.line_end()
            if end < 0:
                return None
            line = self.buffer + self.line
            size = end - self.line
            if size > 3 and is_digit(line[0]) and is_digit(line[1]) and is_digit(line[2]):
                code = (line[0] - 48) * 100 + (line[1] - 48) * 10 + (line[2] - 48)
                number = code
            else:
                number = leniently(line[:min(size, 3)])
            if self.strict:
                self.check(line[:size])
            if number is None or size < 4 or line[3] != c"-":
                return (-1 if number is None else number), self.take_text(end)
            self.line = self.searched = end

    def next_replies(self, Py_ssize_t most):
        """Return a list of the replies that are here: at most *most*, none after a 421.

        Each is as next_reply() gives it.  Raises what that does, if it is the
        first that is bad.
        """
        cdef list replies = []
        while len(replies) < most:
            try:
                parsed = self.next_reply()
            except SMTPException:
                if replies:
                    break
                raise
            if parsed is None:
                break
            replies.append(parsed)
            if (<tuple>parsed)[0] == 421:
                break
        return replies

    @cython.critical_section
    def take_replies(self, tuple codes not None):
        """Take as many replies as there are codes, if they have just these; return their texts.

        Returns None, and takes nothing, unless all of them are here, each on
        one line, and with its code and a space.  Texts are as in next_reply().
        """
        cdef Py_ssize_t line = self.start
        cdef Py_ssize_t number = len(codes)
        cdef Py_ssize_t i, end, _
        cdef const char *start
        cdef const char *newline
        cdef int code
        if self.line != line:
            return None
        for i in range(number):
            start = self.buffer + line
            if self.end - line < 5:
                return None
            newline = <const char *>memchr(start + 4, c"\n", self.end - line - 4)
            if newline is NULL:
                return None
            end = newline - self.buffer + 1
            code = codes[i]
            if (
                not 200 <= code <= 599
                or start[0] != 48 + code // 100
                or start[1] != 48 + code // 10 % 10
                or start[2] != 48 + code % 10
                or start[3] != c" "
                or end - line > self.max_line
                or end - line > self.max_reply
            ):
                return None
            line = end
        texts = []
        for _ in range(number):
            start = self.buffer + self.start
            newline = <const char *>memchr(start, c"\n", self.end - self.start)
            texts.append(stripped(start, newline + 1))
            self.drop(newline - self.buffer + 1)
        return texts

    @cython.critical_section
    def take_line(self, Py_ssize_t limit):
        """Take one raw line, at most *limit* bytes of it, past all parsing.

        Returns None if more bytes are needed, and b"" at the end of the stream.
        """
        limit = max(limit, 0)
        cdef Py_ssize_t size = min(limit, self.end - self.start)
        cdef const char *start = self.buffer + self.start
        cdef const char *newline = <const char *>memchr(start, c"\n", size) if size else NULL
        if newline is not NULL:
            size = newline - start + 1
        elif size < limit and not self.eof:
            return None
        line = start[:size]
        self.drop(self.start + size)
        return line

    cdef int make_room(self, Py_ssize_t size) except -1:
        cdef Py_ssize_t used = self.end - self.start
        cdef Py_ssize_t capacity
        cdef char *buffer
        if self.end + size <= self.capacity:
            return 0
        if used + size > self.capacity:
            capacity = max(2 * self.capacity, used + size, 512)
            buffer = <char *>realloc(self.buffer, capacity)
            if buffer is NULL:
                raise MemoryError
            self.buffer = buffer
            self.capacity = capacity
        if self.start:
            memmove(self.buffer, self.buffer + self.start, used)
            self.line -= self.start
            self.searched -= self.start
            self.end = used
            self.start = 0
        return 0

    cdef Py_ssize_t line_end(self) except -2:
        """Return the end of the current line, or -1 if it is not all here."""
        cdef const char *newline = NULL
        cdef Py_ssize_t end = self.end
        cdef bint complete = True
        if self.searched < end:
            newline = <const char *>memchr(self.buffer + self.searched, c"\n", end - self.searched)
        if newline is not NULL:
            end = newline - self.buffer + 1
        else:
            self.searched = end
            complete = self.eof and not self.strict and end > self.line
        if end - self.line > self.max_line:
            raise SMTPResponseException(500, "Line too long.")
        if end - self.start > self.max_reply:
            raise SMTPResponseException(500, "Reply too long.")
        return end if complete else -1

    cdef int check(self, bytes line) except -1:
        """Hold one line against RFC 5321's grammar, and against the reply's first line."""
        digits = line[:3]
        if not (digits.isdigit() and len(digits) == 3 and b"200" <= digits <= b"599"):
            raise SMTPProtocolError(f"reply code is not three digits from 200 to 599: {line!r}")
        if line[3:4] not in (b" ", b"-") and line[3:] not in (b"\r\n", b"\n"):
            raise SMTPProtocolError(f"reply code is not followed by a space or a hyphen: {line!r}")
        cdef const char *start = self.buffer + self.start
        if self.line > self.start and digits != start[:3]:
            first = start[:3]
            raise SMTPProtocolError(f"reply that began with {first!r} goes on with {line!r}")
        return 0

    cdef bytes take_text(self, Py_ssize_t end):
        cdef const char *start = self.buffer + self.start
        cdef bytes text
        if self.line == self.start:
            text = stripped(start, self.buffer + end)
        else:
            lines = start[:end - self.start].removesuffix(b"\n").split(b"\n")
            text = b"\n".join([line[4:].strip(b" \t\r\n") for line in lines])
        self.drop(end)
        return text

    cdef void drop(self, Py_ssize_t end) noexcept:
        if end == self.end:
            self.start = self.end = 0
        else:
            self.start = end
        self.line = self.searched = self.start


cdef inline bint is_digit(char c) noexcept:
    return c"0" <= c <= c"9"


cdef object leniently(bytes digits):
    """Return the code as smtplib reads it, or None."""
    try:
        return int(digits)
    except ValueError:
        return None


cdef inline bint is_space(char c) noexcept:
    return c == c" " or c == c"\t" or c == c"\r" or c == c"\n"


cdef bytes stripped(const char *line, const char *end):
    """Return a line's text without white space at its ends."""
    cdef const char *start = line + 4
    while start < end and is_space(start[0]):
        start += 1
    while end > start and is_space((end - 1)[0]):
        end -= 1
    return PyBytes_FromStringAndSize(start, max(end - start, 0))


# -- envelopes ----------------------------------------------------------------


def envelope_commands(
    sender, recipients, mail_parameters="", rcpt_parameters="", mail_verb="MAIL FROM:",
    rcpt_verb="RCPT TO:",
):
    """Return MAIL, and RCPT for each recipient, if all addresses are plain, else None.

    Plain is what nobody reads in two ways: a dot-string, ``@`` and a domain, in
    ASCII (RFC 5321, section 4.1.2); the *sender* may be empty, too.  Parameters
    are ASCII text that begins with a space, or is empty.

    Raises TypeError for a sender that is no str, ValueError for parameters with
    a control character or outside ASCII.
    """
    cdef Py_ssize_t size, mail_size, rcpt_size, begin_size, next_size, total
    cdef const char *mail = _parameters(mail_parameters, &mail_size)
    cdef const char *rcpt = _parameters(rcpt_parameters, &rcpt_size)
    cdef const char *begin = _parameters(mail_verb, &begin_size)
    cdef const char *next_one = _parameters(rcpt_verb, &next_size)
    cdef const char *text
    if not isinstance(sender, str):
        raise TypeError(f"an address must be str, not {type(sender).__name__}")
    # Sizes are those of the memory: a subclass of str may have a len() of its own, and the list
    # may be another thread's, too.
    cdef list copied = list(recipients)
    text = fastsmtp_ascii(sender, &size)
    if text is NULL or (size and not _is_plain(sender)):
        return None
    total = begin_size + 4 + size + mail_size
    for recipient in copied:
        if not isinstance(recipient, str) or not _is_plain(recipient):
            return None
        fastsmtp_ascii(recipient, &size)
        total += next_size + 4 + size + rcpt_size
    cdef bytes result = PyBytes_FromStringAndSize(NULL, total)
    cdef char *out = PyBytes_AS_STRING(result)
    text = fastsmtp_ascii(sender, &size)
    out = _put_command(out, begin, begin_size, text, size, mail, mail_size)
    for recipient in copied:
        text = fastsmtp_ascii(recipient, &size)
        out = _put_command(out, next_one, next_size, text, size, rcpt, rcpt_size)
    return result


cdef char *_put_command(
    char *out, const char *verb, Py_ssize_t verb_size, const char *address, Py_ssize_t size,
    const char *parameters, Py_ssize_t parameters_size,
) noexcept:
    memcpy(out, verb, verb_size)
    out += verb_size
    out[0] = c"<"
    out += 1
    memcpy(out, address, size)
    out += size
    out[0] = c">"
    memcpy(out + 1, parameters, parameters_size)
    out += 1 + parameters_size
    out[0] = c"\r"
    out[1] = c"\n"
    return out + 2


cdef const char *_parameters(text, Py_ssize_t *size) except NULL:
    cdef Py_ssize_t i
    cdef const char *start = NULL
    if isinstance(text, str):
        start = fastsmtp_ascii(text, size)
    if start is NULL:
        raise ValueError(f"parameters are not ASCII text: {text!r}")
    for i in range(size[0]):
        if start[i] < 32 or start[i] == 127:
            raise ValueError(f"parameters hold a control character: {text!r}")
    return start


cdef bint _is_plain(address) noexcept:
    """Whether a str is atoms with dots between, an at sign, and labels with dots between."""
    cdef Py_ssize_t size, i
    cdef const char *start = fastsmtp_ascii(address, &size)
    cdef bint empty = True
    cdef bint in_domain = False
    cdef char c
    if start is NULL:
        return False
    for i in range(size):
        c = start[i]
        if c"a" <= c <= c"z" or c"A" <= c <= c"Z" or c"0" <= c <= c"9" or c == c"-":
            empty = False
        elif empty:
            if in_domain or not _is_special(c):
                return False
            empty = False
        elif c == c".":
            empty = True
        elif in_domain:
            return False
        elif c == c"@":
            in_domain = empty = True
        elif not _is_special(c):
            return False
    return in_domain and not empty


cdef inline bint _is_special(char c) noexcept:
    """Whether c is one of atext's characters that are no letters, digits or hyphens."""
    return c in b"!#$%&'*+/=?^_`{|}~"


# -- base64 for AUTH ----------------------------------------------------------


def sasl_base64(value):
    """Return a SASL value in base64, text taken as UTF-8 (RFC 4954, section 4).

    Raises ValueError for text that UTF-8 cannot express; it does not show it.
    """
    cdef _Secret secret = _Secret()
    secret.add(value)
    return secret.encoded()


def sasl_plain(user, password, authzid=b""):
    """Return the base64 of PLAIN's message: authzid NUL user NUL password (RFC 4616).

    Raises ValueError if one holds a NUL or cannot be expressed in UTF-8.
    """
    cdef _Secret secret = _Secret()
    secret.separator = c"\0"
    secret.separated = True
    secret.add(authzid)
    secret.add_literal(b"\0")
    secret.add(user)
    secret.add_literal(b"\0")
    secret.add(password)
    return secret.encoded()


def sasl_xoauth2(user, token):
    """Return the base64 of XOAUTH2's message: user= and auth=Bearer, with ^A between.

    Raises ValueError if one holds a ^A or cannot be expressed in UTF-8.  The
    mechanism is Google's and Microsoft's, described in their documentation.
    """
    cdef _Secret secret = _Secret()
    secret.separator = c"\1"
    secret.separated = True
    secret.add_literal(b"user=")
    secret.add(user)
    secret.add_literal(b"\1auth=Bearer ")
    secret.add(token)
    secret.add_literal(b"\1\1")
    return secret.encoded()


def sasl_cram_md5(user, password, challenge):
    """Return the base64 answer to a CRAM-MD5 challenge, itself not in base64 (RFC 2195).

    Raises ValueError where MD5 is not to be had, and for text that UTF-8
    cannot express.
    """
    cdef _Secret secret = _Secret()
    secret.add(user)
    secret.add_literal(b" ")
    secret.add(hmac.HMAC(utf8(password), challenge, "md5").hexdigest())
    return secret.encoded()


def decode_challenge(text):
    """Return what the base64 text of a 334 reply stands for (RFC 4954, section 4).

    Characters outside the alphabet are passed over.  Raises ValueError if the
    rest is not base64.
    """
    return binascii.a2b_base64(text)


cdef object utf8(value):
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise TypeError(f"a SASL value must be str or bytes, not {type(value).__name__}")
    try:
        return str.encode(value, "utf-8")
    except UnicodeEncodeError:
        pass  # the error carries the value, which may be a password
    raise ValueError("a SASL value cannot be expressed in UTF-8")


cdef const char *BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


@cython.final
@cython.internal
cdef class _Secret:
    """Memory for a secret value in the making, wiped when it goes."""

    cdef char *start
    cdef Py_ssize_t size
    cdef bint separated
    cdef char separator

    def __dealloc__(self):
        if self.start is not NULL:
            fastsmtp_wipe(self.start, self.size)
            free(self.start)

    cdef int add(self, value) except -1:
        """Add a value from outside, which must not hold the separator."""
        cdef Py_ssize_t size
        cdef const char *text = NULL
        if isinstance(value, str):
            text = fastsmtp_ascii(value, &size)
        if text is NULL:
            value = utf8(value)
            text = PyBytes_AS_STRING(value)
            size = PyBytes_GET_SIZE(value)
        if self.separated and size and memchr(text, self.separator, size) is not NULL:
            separator = bytes((self.separator,))
            raise ValueError(f"a SASL value holds the separator {separator!r}")
        return self.append(text, size)

    cdef int add_literal(self, bytes literal) except -1:
        return self.append(PyBytes_AS_STRING(literal), PyBytes_GET_SIZE(literal))

    cdef int append(self, const char *text, Py_ssize_t size) except -1:
        # Not realloc(): it would leave the secret behind in the old place.
        cdef char *larger = <char *>malloc(self.size + size + 1)
        if larger is NULL:
            raise MemoryError
        if self.start is not NULL:
            memcpy(larger, self.start, self.size)
            fastsmtp_wipe(self.start, self.size)
            free(self.start)
        memcpy(larger + self.size, text, size)
        self.start = larger
        self.size += size
        return 0

    cdef bytes encoded(self):
        """Return the value in base64 (RFC 4648, section 4)."""
        cdef bytes result = PyBytes_FromStringAndSize(NULL, (self.size + 2) // 3 * 4)
        cdef char *out = PyBytes_AS_STRING(result)
        cdef const unsigned char *p = <const unsigned char *>self.start
        cdef Py_ssize_t left = self.size
        cdef unsigned int group
        while left > 0:
            group = p[0] << 16
            if left > 1:
                group |= p[1] << 8
            if left > 2:
                group |= p[2]
            out[0] = BASE64[group >> 18]
            out[1] = BASE64[group >> 12 & 63]
            out[2] = BASE64[group >> 6 & 63] if left > 1 else c"="
            out[3] = BASE64[group & 63] if left > 2 else c"="
            p += 3
            out += 4
            left -= 3
        return result
