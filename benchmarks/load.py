"""A load generator that uses little CPU: plain sockets, one process, prepared requests."""

import asyncio
import itertools
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

LENGTH = re.compile(rb"^content-length:\s*(\d+)", re.I | re.M)
CHUNKED = re.compile(rb"^transfer-encoding:\s*chunked", re.I | re.M)
PATIENCE = 300.0  # seconds to wait for one answer


def request_bytes(inputs: str | list[str], **more) -> bytes:
    "Build a POST /invocations for a keep-alive connection."
    body = json.dumps({"inputs": inputs, **more}).encode()
    head = (
        "POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Accept: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def split_answer(received: bytes) -> tuple[int, bytes, bytes] | None:  # status, body, remaining bytes
    "Split the first answer off `received`. Returns None if it is incomplete."
    head, found, rest = received.partition(b"\r\n\r\n")
    if not found:
        return None
    status = int(head[9:12])
    if length := LENGTH.search(head):
        size = int(length[1])
        return (status, rest[:size], rest[size:]) if len(rest) >= size else None
    if not CHUNKED.search(head):
        raise ValueError(f"an answer of unknown length: {head[:200]!r}")
    body = b""
    while True:
        line, found, rest = rest.partition(b"\r\n")
        if not found or len(rest) < int(line, 16) + 2:
            return None
        if not (size := int(line, 16)):
            return status, body, rest[2:]
        body, rest = body + rest[:size], rest[size + 2 :]


@dataclass
class Load:
    "The result of a load."

    seconds: float = 0.0  # from the first request to the last answer
    latencies: list[float] = field(default_factory=list)  # seconds, of answers with status 200
    failures: Counter = field(default_factory=Counter)  # by HTTP status
    client_cpu: float = 0.0  # CPU seconds of this process

    @property
    def rate(self) -> float:  # answers per second
        return len(self.latencies) / self.seconds


class Client(asyncio.Protocol):
    "One connection: sends a request, waits for its answer, sends the next."

    def __init__(self, requests: Iterator[bytes], until: float, load: Load):
        self.requests, self.until, self.load, self.received = requests, until, load, b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.send()

    def send(self):
        request = next(self.requests, None) if time.perf_counter() < self.until else None
        if request is None:
            self.transport.close()
            self.done.set_result(None)
            return
        self.sent = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data):
        self.received += data
        if (answer := split_answer(self.received)) is None:
            return
        status, _, self.received = answer
        if status == 200:
            self.load.latencies.append(time.perf_counter() - self.sent)
        else:
            self.load.failures[status] += 1
        self.send()

    def connection_lost(self, exc):
        if not self.done.done():
            self.done.set_exception(ConnectionError("the server hung up"))


async def _drive(port: int, requests: Iterator[bytes], clients: int, seconds: float) -> Load:
    load, loop, start, cpu = Load(), asyncio.get_running_loop(), time.perf_counter(), time.process_time()
    made = [
        loop.create_connection(lambda: Client(requests, start + seconds, load), "127.0.0.1", port)
        for _ in range(clients)
    ]
    connections = await asyncio.gather(*made)
    await asyncio.wait_for(asyncio.gather(*(client.done for _, client in connections)), seconds + PATIENCE)
    load.seconds, load.client_cpu = time.perf_counter() - start, time.process_time() - cpu
    return load


def drive(
    port: int,
    requests: Iterable[bytes],
    clients: int = 1,
    seconds: float | None = None,  # repeat the requests for this long; None: send each once
) -> Load:
    """Send requests over `clients` concurrent connections, each of which waits for its answer before the next request.

    Requests sent within the time are awaited and counted, so the rate covers all the work.
    """
    several = iter(requests) if seconds is None else itertools.cycle(requests)
    return asyncio.run(_drive(port, several, clients, float("inf") if seconds is None else seconds))


def ask(
    port: int,
    request: bytes,
    patience: float = PATIENCE,  # seconds
) -> tuple[int, bytes]:  # status, body
    "Send one request over a new connection. Raises OSError without an answer."
    with socket.create_connection(("127.0.0.1", port), patience) as connection:
        connection.settimeout(patience)
        connection.sendall(request)
        received = b""
        while data := connection.recv(65536):
            received += data
            if (answer := split_answer(received)) is not None:
                return answer[0], answer[1]
    raise ConnectionError("the server hung up")
