"""``fastsmtp send``: messages from files to a server, every one accounted for."""

import os
import signal
import smtplib
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from .connection import Connection, SectionedCommand, connection_options, option
from .exits import (
    INTERRUPTED,
    NO_INPUT,
    OK,
    SOME_NOT,
    TEMPORARY,
    Failure,
    describe,
    printable,
    status_for,
)
from .results import Earlier, Results, delivery_record, open_results, read, unsent_record
from .screen import Tally, closing, progress
from .sources import Item, Letter, Source, find

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..bulk import Mailer
    from ..delivery import Delivery
    from ..options import Options
    from ..outgoing import Message

_ENVELOPE = "Envelope"
_MERGE = "Mail merge"
_ACCOUNT = "Account of the run"
_REQUESTS = "Asked of the server"

#: A second Ctrl-C within these seconds of the first is the first one's echo:
#: a terminal signals every process, and wrappers pass it on.
ECHO_SECONDS = 0.3
LISTED = 100
#: The most octets of a message that are held while it waits.
LARGE = 1 << 20


@click.command(
    "send",
    cls=SectionedCommand,
    short_help="Send messages.",
    epilog="""\b
Exit status: 0 all accepted (or nothing to send); 1 some not; 2 usage;
66 a source cannot be read; 68 no such host; 69 the server cannot be had;
73, 74 the result file cannot be made, or written; 75 nothing worse than
trouble that may pass: try later; 76 TLS failed; 77 authentication failed;
130 Ctrl-C.""",
)
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@option(
    _ENVELOPE,
    "--from",
    "sender",
    metavar="ADDRESS",
    help='The sender, instead of the header\'s. "" is the null sender, <>.',
)
@option(
    _ENVELOPE,
    "--to",
    "recipients",
    metavar="ADDRESS",
    multiple=True,
    help="A recipient, instead of the header's To, Cc and Bcc. Repeatable.",
)
@option(
    _ENVELOPE,
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Send N messages at most.",
)
@option(
    _ENVELOPE,
    "--dry-run",
    is_flag=True,
    help="Read everything, show what would be sent to whom, and send nothing.",
)
@option(
    _MERGE,
    "--template",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="An .eml file with {{name}} where a value goes. Instead of SOURCE, with --data.",
)
@option(
    _MERGE,
    "--data",
    metavar="FILE",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="A message for each row of this .csv file, whose first row has the names, or for each "
    'object of this .jsonl file. "-" is stdin.',
)
@option(
    _MERGE,
    "--data-format",
    type=click.Choice(["csv", "jsonl"]),
    help="What FILE is, where its name does not tell.",
)
@option(
    _MERGE,
    "--id-column",
    metavar="NAME",
    help="The column that has the messages' ids for --results and --resume. Default: FILE:LINE.",
)
@option(_MERGE, "--ignore-columns", is_flag=True, help="Let FILE have columns that nothing uses.")
@option(
    _MERGE,
    "--preview",
    type=click.IntRange(min=1),
    metavar="N",
    help="Show the first N messages, and send nothing.",
)
@option(
    _ACCOUNT,
    "--results",
    "results_path",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Write what becomes of each message to a new FILE, as JSON Lines.",
)
@option(
    _ACCOUNT,
    "--resume",
    "resume_path",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Skip what this result file says was accepted, and write on to it unless "
    "--results names another. It need not be there yet.",
)
@option(_ACCOUNT, "--overwrite", is_flag=True, help="Let --results begin a FILE anew.")
@option(_ACCOUNT, "--quiet", "-q", is_flag=True, help="Show errors and warnings only.")
@connection_options()
@option(
    _REQUESTS,
    "--notify",
    metavar="WHEN",
    help="Report delivery: never, or success,failure,delay or some of these (DSN, RFC 3461).",
)
@option(
    _REQUESTS,
    "--ret",
    type=click.Choice(["full", "hdrs"]),
    help="What a report of failure has of the message.",
)
@option(_REQUESTS, "--envid", metavar="ID", help="An identifier for reports to repeat.")
@option(
    _REQUESTS, "--require-tls", is_flag=True, help="TLS on every hop, or no delivery (RFC 8689)."
)
@option(
    _REQUESTS,
    "--deliver-by",
    type=int,
    metavar="SECONDS",
    help="Deliver within this time, or return the message (RFC 2852).",
)
@option(
    _REQUESTS,
    "--priority",
    type=click.IntRange(-9, 9),
    metavar="-9..9",
    help="MT-PRIORITY (RFC 6710).",
)
@option(
    _REQUESTS,
    "--hold-for",
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help="Hold the message for so long (FUTURERELEASE, RFC 4865).",
)
@option(
    _REQUESTS,
    "--hold-until",
    metavar="TIME",
    help="Hold it until then: 2030-01-31T08:00:00+01:00, or local time.",
)
@click.pass_context
def command(ctx: click.Context, /, connection: Connection, **given: Any) -> None:
    """Send the messages that each SOURCE has.

    SOURCE is an .eml file, a folder of .eml files, a Maildir, an mbox, or "-"
    for one message on stdin. Envelopes come from the headers; Bcc is used and
    not sent. Or --template and --data make a message for each row of a file.
    """
    options = _options(given)
    sender = given["sender"]
    if sender == "<>":
        sender = ""
    sources = _sources(ctx, given)
    if given["preview"] is not None:
        from .preview import show

        ctx.exit(show(sources[0], given["preview"], sender))
    run = Run(
        connection,
        sources,
        sender,
        list(dict.fromkeys(given["recipients"])) or None,
        limit=given["limit"],
        quiet=given["quiet"],
    )
    results, resume = given["results_path"], given["resume_path"]
    if given["overwrite"] and (results is None or _same(results, resume)):
        raise click.UsageError("--overwrite is for --results, and not for what is resumed")
    if given["dry_run"]:
        ctx.exit(run.rehearse(_earlier(resume, may_be_missing=results in (None, resume))))
    ctx.exit(run.send(options, results, resume, given["overwrite"]))


def _sources(ctx: click.Context, given: dict[str, Any]) -> list[Source]:
    """Return what the messages come from.  Raises Failure, or click.UsageError."""
    template, data = given["template"], given["data"]
    if template is None and data is None:
        for name in ("data_format", "id_column", "ignore_columns", "preview"):
            if given[name]:
                raise click.UsageError(f"--{name.replace('_', '-')} needs --template and --data")
        if not given["sources"]:
            raise click.UsageError("Missing argument 'SOURCE...', or --template and --data.")
        return find(given["sources"])
    if template is None or data is None:
        one, other = ("--data", "--template") if template is None else ("--template", "--data")
        raise click.UsageError(f"{one} needs {other}")
    if given["sources"]:
        raise click.UsageError("--template and SOURCE exclude each other")
    if given["recipients"]:
        raise click.UsageError(
            "--template and --to exclude each other: the letter's To, Cc and Bcc count"
        )
    if given["preview"] and given["dry_run"]:
        raise click.UsageError("--preview and --dry-run exclude each other")
    return [_merge(ctx, template, data, given)]


def _merge(ctx: click.Context, template: str, data: str, given: dict[str, Any]) -> Source:
    from .merge import Merge, read_template
    from .rows import open_table

    compiled = read_template(template)
    table = open_table(data, given["data_format"])
    ctx.call_on_close(table.close)
    return Merge(
        compiled,
        table,
        name=template,
        id_column=given["id_column"],
        ignore=given["ignore_columns"],
    ).source()


def _options(given: dict[str, Any]) -> "Options | None":
    """Return what is asked of the server, None if nothing is."""
    names = ("notify", "ret", "envid", "require_tls", "deliver_by", "priority", "hold_for")
    asked = {name: given[name] for name in names if given[name] not in (None, False)}
    if "notify" in asked:
        asked["notify"] = [word.strip() for word in asked["notify"].lower().split(",")]
    try:
        if given["hold_until"] is not None:
            # Python 3.10 does not read Z.
            moment = datetime.fromisoformat(given["hold_until"].replace("Z", "+00:00"))
            asked["hold_until"] = moment.astimezone() if moment.tzinfo is None else moment
        if not asked:
            return None
        from ..options import Options

        return Options(**asked)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _same(one: str, other: str | None) -> bool:
    return other is not None and os.path.realpath(one) == os.path.realpath(other)


def _earlier(path: str | None, *, may_be_missing: bool) -> Earlier:
    """Return what a result file says that is not going to be written."""
    if path is None:
        return Earlier()
    try:
        return read(path)
    except FileNotFoundError:
        if may_be_missing:
            return Earlier()
        raise Failure(f"{path}: there is no such file to resume", NO_INPUT) from None


class Run:
    """One run of the command."""

    def __init__(
        self,
        connection: Connection,
        sources: list[Source],
        sender: str | None,
        recipients: list[str] | None,
        *,
        limit: int | None,
        quiet: bool,
    ) -> None:
        self._connection = connection
        self._resend_unknown = bool(connection.settings.get("resend_unknown"))
        self._sources = sources
        self._sender, self._recipients = sender, recipients
        self._limit = limit
        self._quiet = quiet
        self._earlier = Earlier()
        self._results: Results | None = None
        self._failure: Failure | None = None
        self._tally = Tally(None, limit)
        #: Messages left out because nobody knows whether they arrived.
        self._left_unknown = 0
        #: Whether a message was not accepted for a reason that will not pass.
        self._for_good = False

    # -- sending --

    def send(
        self, options: "Options | None", results: str | None, resume: str | None, overwrite: bool
    ) -> int:
        """Send everything; return the exit status.  Raises Failure."""
        path = results if results is not None else resume
        with self._connection.mailer(options=options) as mailer:  # may prompt
            if path is not None:
                self._open_results(path, resume, overwrite)
            try:
                self._warn_of_started(resume)
                self._tally = Tally(None if self._quiet else self._available(), self._limit)
                with _Interrupts(mailer, self._tally) as interrupts:
                    error = self._send_all(mailer)
            finally:
                self._close_results()
        if not self._quiet:
            self._close(mailer, path)
        return self._status(error, interrupts.received)

    def _open_results(self, path: str, resume: str | None, overwrite: bool) -> None:
        goes_on = _same(path, resume)
        if resume is not None and not goes_on:
            self._earlier = _earlier(resume, may_be_missing=False)
        self._results = open_results(path, resume=goes_on, overwrite=overwrite)
        if goes_on:
            self._earlier = self._results.earlier

    def _close_results(self) -> None:
        if self._results is not None:
            try:
                self._results.close()
            except Failure as failure:
                self._failure = self._failure or failure

    def _send_all(self, mailer: "Mailer") -> Exception | None:
        """Send everything; return the error that ended it early, if one did."""
        with progress(self._tally, quiet=self._quiet):
            try:
                for delivery in mailer.send_many(self._messages()):
                    self._take(delivery, mailer)
                mailer.close()
            except (OSError, ValueError) as error:  # SMTPException, ssl.SSLError are OSErrors
                return error
        return None

    def _messages(self) -> "Iterator[Message]":
        """Yield what is to be sent; what is yielded stands in the result file as started."""
        from ..outgoing import Message

        try:
            for entry, letter in self._letters():
                if self._results is not None:
                    self._results.started(entry.id)
                content = letter.content if len(letter.content) <= LARGE else _Later(entry, letter)
                yield Message(letter.sender, letter.recipients, content, id=entry.id)
        except Failure as failure:
            self._failure = self._failure or failure

    def _letters(self) -> Iterator[tuple[Item, Letter]]:
        """Yield what is to be sent, count what is left out, and note what cannot be read."""
        tally = self._tally
        for source in self._sources:
            for entry in source.entries():
                if tally.stopping or self._failure or tally.taken == self._limit:
                    return
                try:
                    letter = self._letter(entry)
                except Exception as error:
                    # Whatever is in a message, it must not cost the others.
                    self._cannot_send(entry, error)
                else:
                    if letter is not None:
                        tally.taken += 1
                        yield entry, letter

    def _letter(self, entry: Item) -> Letter | None:
        """Return what is to be sent of a message, None if nothing is."""
        if entry.id in self._earlier.done:
            self._tally.skipped += 1
            return None
        letter = entry.letter(self._sender, self._recipients)
        remaining = self._earlier.remaining(entry.id, letter.recipients, self._resend_unknown)
        if self._earlier.is_unknown(entry.id) and not self._resend_unknown:
            self._left_unknown += 1
        if not remaining:
            self._tally.skipped += 1
            return None
        return letter._replace(recipients=remaining)

    def _cannot_send(self, entry: Item, error: Exception) -> None:
        text = describe(error)
        told = entry.told(text)
        if self._tally.counts["not_sent"] < LISTED:
            # Not click.echo: it goes around what keeps the bar and the lines apart.
            print(f"Cannot be sent: {printable(entry.id)}: {told}", file=sys.stderr)
        self._for_good = True
        self._tally.taken += 1
        self._tally.count("not_sent", text)
        if self._results is not None:
            self._results.add(unsent_record(entry.id, self._recipients or (), told))

    def _take(self, delivery: "Delivery", mailer: "Mailer") -> None:
        """Account for a message that has its result."""
        error = delivery.error
        self._tally.count(delivery.status, None if error is None else describe(error))
        if delivery.status != "accepted":
            self._for_good = self._for_good or not _may_pass(delivery)
        if self._results is not None:
            try:
                self._results.add(delivery_record(delivery))
            except Failure as failure:
                self._failure = self._failure or failure
                mailer.stop()

    # -- words --

    def _available(self) -> int | None:
        counts = [source.count() for source in self._sources]
        return None if None in counts else sum(count or 0 for count in counts)

    def _warn_of_started(self, resume: str | None) -> None:
        started = list(self._earlier.started)
        if not started:
            return
        one = len(started) == 1
        click.echo(
            f"Warning: {resume} has {_count(len(started), 'message')} that "
            f"{'was' if one else 'were'} under way when it ended. "
            f"Sent again now, {'it' if one else 'they'} may arrive twice:",
            err=True,
        )
        for identity in started[:LISTED]:
            click.echo(f"  {printable(identity)}", err=True)
        if len(started) > LISTED:
            click.echo(f"  and {len(started) - LISTED:,} more", err=True)

    def _close(self, mailer: "Mailer", path: str | None) -> None:
        if not (self._tally.finished or self._tally.skipped or self._failure):
            click.echo("Nothing to send.")
            return
        counts = self._tally.counts
        remarks = []
        unknown = counts["unknown"] + self._left_unknown
        if unknown:
            remarks.append(
                f"{_count(unknown, 'message')} may or may not have arrived: the connection was "
                "lost before the reply. Not sent again without --resend-unknown."
            )
        if path is not None and self._tally.finished > counts["accepted"]:
            remarks.append(f"What was not accepted can be sent again with --resume {path}")
        closing(self._tally, mailer.totals, str(self._connection), remarks)

    def _status(self, error: Exception | None, received: int) -> int:
        if self._failure is not None:
            raise self._failure
        if received:
            return INTERRUPTED - signal.SIGINT + received
        if error is not None:
            raise Failure(f"{self._connection}: {_explained(error)}", status_for(error))
        if self._for_good or self._left_unknown:
            return SOME_NOT
        return OK if self._tally.finished == self._tally.counts["accepted"] else TEMPORARY

    # -- rehearsing --

    def rehearse(self, earlier: Earlier) -> int:
        """Show what would be sent, and return the exit status."""
        from ..envelope import Envelope

        self._earlier = earlier
        recipients = octets = 0
        for entry, letter in self._letters():
            try:
                Envelope(letter.sender, letter.recipients, utf8=True)
            except ValueError as error:
                self._cannot_send(entry, error)
                self._tally.taken -= 1
                continue
            recipients += len(letter.recipients)
            octets += len(letter.content)
            if not self._quiet:
                to = ", ".join(letter.recipients)
                click.echo(printable(f"{entry.id}: <{letter.sender}> to {to}"))
        if self._failure is not None:
            raise self._failure
        good = self._tally.taken - self._tally.counts["not_sent"]
        if not self._quiet:
            click.echo(
                f"Would be sent to {self._connection}: {_count(good, 'message')}, "
                f"{_count(recipients, 'recipient')}, {_count(octets, 'octet')}; "
                f"{self._tally.skipped:,} skipped, "
                f"{self._tally.counts['not_sent']:,} cannot be sent, "
                f"{self._left_unknown:,} may have arrived before"
            )
        return SOME_NOT if self._for_good or self._left_unknown else OK


class _Later:
    """The content of a large message, read or made again when its turn comes.

    The Mailer holds dozens of messages that wait: large ones would fill the memory.
    """

    def __init__(self, entry: Item, letter: Letter) -> None:
        self._entry = entry
        self._sender, self._recipients = letter.sender, letter.recipients

    def read(self) -> bytes:
        """Return the content.  Raises OSError if the file is not there any more."""
        return self._entry.letter(self._sender, self._recipients).content


def _count(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def _may_pass(delivery: "Delivery") -> bool:
    """Say whether what kept a message from being accepted may be over when it is tried again."""
    if delivery.status == "unknown" or any(r.status == "rejected" for r in delivery.recipients):
        return False
    error = delivery.error
    if error is None:
        return True
    if isinstance(error, smtplib.SMTPResponseException):
        return error.smtp_code // 100 == 4
    if isinstance(error, (smtplib.SMTPNotSupportedError, ssl.SSLCertVerificationError)):
        return False
    return isinstance(error, OSError)


def _explained(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return f"authentication failed: {describe(error)}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not good: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {describe(error)}"
    return describe(error).replace("cleartext_auth=True", "--cleartext-auth")


class _Interrupts:
    """Ctrl-C, and SIGTERM: the first one stops the mailer, the second one ends the process."""

    def __init__(self, mailer: "Mailer", tally: Tally) -> None:
        self._mailer, self._tally = mailer, tally
        self._before: dict[int, Any] = {}
        self._when = 0.0
        #: The number of the first signal, 0 if none came.
        self.received = 0

    def __enter__(self) -> "Self":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._when = number, now
            self._tally.stopping = True
            self._mailer.stop()
            if not os.isatty(2):
                os.write(2, b"Stopping: finishing what is under way.\n")
        elif now - self._when > ECHO_SECONDS:
            # The cursor may be hidden. Nothing else is pending: every line of
            # the result file has gone to the kernel.
            os.write(2, b"\x1b[?25h\n" if os.isatty(2) else b"")
            os._exit(INTERRUPTED - signal.SIGINT + number)
