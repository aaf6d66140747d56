"""A file server whose faults a test chooses."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Source(ThreadingHTTPServer):
    "Serves `files` by name, in ranges."

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[int, int]] = []  # the requested ranges, except the first request's
        self.faults: list = []  # for the next requests of a part: "503", "cut", "drop"
        self.gone_after: int | None = None  # number of parts after which each is a 503
        self.parts, self.tags, self.versions = True, True, True

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{{category}}.jsonl.gz"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server, body = self.server, self.server.files.get(self.path[1:])
        if body is None:
            return self.answer(404)
        tag = f'"{hashlib.md5(body).hexdigest()}"' if server.tags else "Tue, 24 Nov 2026 10:00:00 GMT"
        version = {"ETag" if server.tags else "Last-Modified": tag} if server.versions else {}
        if not server.parts:
            return self.answer(200, body, version)
        start, stop = (int(n) for n in re.findall(r"\d+", self.headers["Range"]))
        if stop > 0:
            server.asked.append((start, stop + 1))
            fault = server.faults.pop(0) if server.faults else None
            if server.gone_after is not None and len(server.asked) > server.gone_after:
                fault = "503"
            if fault == "503":
                return self.answer(503)
            if fault == "drop":
                self.close_connection = True
                return None
            if self.headers.get("If-Match" if server.tags else "If-Unmodified-Since", tag) != tag:
                return self.answer(412)
            if fault == "cut":
                self.close_connection = True
                return self.answer(206, body[start : stop + 1], version, sent=(stop - start) // 2)
        if not body:
            return self.answer(416)
        version["Content-Range"] = f"bytes {start}-{stop}/{len(body)}"
        return self.answer(206, body[start : stop + 1], version)

    def answer(self, status: int, body: bytes = b"", headers: dict | None = None, sent: int | None = None):
        self.send_response(status)
        for name, value in ((headers or {}) | {"Content-Length": len(body)}).items():
            self.send_header(name, str(value))
        self.end_headers()
        with suppress(ConnectionError):  # a client that only wants the size disconnects
            self.wfile.write(body[:sent])

    def log_message(self, *_):
        pass


@contextmanager
def serving() -> Iterator[Source]:
    "Serve files on this machine."
    with Source() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
