"""A server that pipelines, behind a proxy that delays: on loopback, in a thread of their own."""

import asyncio
import re
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from contextlib import contextmanager

HOST = "127.0.0.1"
LIMIT = 1 << 20  # bytes of one message
EHLO = b"250-model.example\r\n250 PIPELINING\r\n"
EHLO_CHUNKING = b"250-model.example\r\n250-CHUNKING\r\n250 PIPELINING\r\n"
TAKEN = b"250 2.0.0 Ok\r\n"
REPLIES = {
    b"RSET": b"250 2.0.0 Ok\r\n",
    b"MAIL": b"250 2.1.0 Ok\r\n",
    b"RCPT": b"250 2.1.5 Ok\r\n",
    b"DATA": b"354 End data with <CR><LF>.<CR><LF>\r\n",
    b"BDAT": b"",  # until all of it is there
    b"QUIT": b"221 2.0.0 Bye\r\n",
}


class Network:
    """What the server got, and how often the client had to wait for it.

    *round_trips* grows by one whenever the client speaks and the server spoke last: it is counted
    at the proxy, not derived from time.
    """

    def __init__(self, delay: float, chunking: bool) -> None:
        self.delay = delay  # seconds, each way
        self._replies = {**REPLIES, b"EHLO": EHLO_CHUNKING if chunking else EHLO}
        self.port = 0
        self.round_trips = 0
        #: Recipients, and the data as it came: by DATA, with the final dot.
        self.messages: list[tuple[list[str], bytes]] = []
        self._client_spoke = False

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self._smtp, HOST, 0, limit=LIMIT)
        self._upstream = server.sockets[0].getsockname()[1]
        proxy = await asyncio.start_server(self._relay, HOST, 0)
        self.port = proxy.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        proxy.close()
        server.close()
        while connections := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(connections)  # The clients have gone; that has to get through.

    # -- the proxy --

    async def _relay(self, reader: StreamReader, writer: StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(HOST, self._upstream)
        await asyncio.gather(
            self._pump(reader, upstream_writer, from_client=True),
            self._pump(upstream_reader, writer, from_client=False),
        )

    async def _pump(self, reader: StreamReader, writer: StreamWriter, from_client: bool) -> None:
        now = asyncio.get_running_loop().time
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            data = b"."
            while data:
                due, data = await under_way.get()
                await asyncio.sleep(due - now())
                writer.write(data)
            writer.close()

        delivery = asyncio.create_task(deliver())
        data = b"."
        while data:
            data = await reader.read(65536)
            if data:
                self.round_trips += from_client and not self._client_spoke
                self._client_spoke = from_client
            under_way.put_nowait((now() + self.delay, data))
        await delivery

    # -- the server --

    async def _smtp(self, reader: StreamReader, writer: StreamWriter) -> None:
        writer.write(b"220 model.example ESMTP\r\n")
        recipients: list[str] = []
        while line := await reader.readline():
            verb = line[:4].upper()
            writer.write(self._replies[verb])
            if verb == b"RCPT":
                recipients += re.findall("<(.*)>", line.decode("ascii"))
            elif verb == b"DATA":
                self.messages.append((recipients, await reader.readuntil(b"\r\n.\r\n")))
                recipients = []
                writer.write(TAKEN)
            elif verb == b"BDAT":
                octets = await reader.readexactly(int(line.split()[1]))
                self.messages.append((recipients, octets))
                recipients = []
                writer.write(TAKEN)
        writer.close()


@contextmanager
def delayed(delay: float, *, chunking: bool = False) -> Iterator[Network]:
    """Run the server and the proxy for one client at a time, which connects to the given port."""
    network, ready, stop = Network(delay, chunking), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(network.serve(ready, stop),))
    thread.start()
    try:
        assert ready.wait(10), "the proxy does not listen"
        yield network
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
