"""A model hub on this machine: as much of the Hugging Face hub's protocol as its client uses.

Listing (`/api/models/{repo}/tree/{commit}`), files (`/{repo}/resolve/{commit}/{name}`) with ETag,
X-Repo-Commit, X-Linked-Size and ranges, large files behind a redirect to another host, access by
token; and faults on demand.
"""

import hashlib
import http.server
import json
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

REPO = "someone/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    token: str | None
    answered: int = 0
    sent: int = 0


@dataclass
class Fault:
    """What to do instead of answering the next `times` requests of a method and part of a path."""

    method: str
    part: str
    act: Callable[["Handler"], None]
    times: int


@dataclass
class Hub:
    """State of the server; tests change it and look at `requests`."""

    files: dict[str, bytes]
    token: str | None = None
    #: Accounts by token that have accepted the licence; None for a repository without one.
    licensed: set[str] | None = None
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, method: str, part: str, status: int, times: int = 10**6, **headers: str):
        """Answer with a status. Underscores in the names of headers stand for hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(method, part, lambda h: h.reply(status, b"", **named), times))

    def cut(self, part: str, after: int, times: int = 1, reset: bool = False):
        """Close, or reset, the connection after so many bytes of a file."""

        def act(handler: "Handler"):
            handler.send_file(part, cut=after)
            if reset:
                linger = struct.pack("ii", 1, 0)
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        self.faults.append(Fault("GET", part, act, times))

    def stall(self, method: str, part: str, seconds: float, times: int = 10**6):
        """Say nothing for a while, then hang up."""
        self.faults.append(Fault(method, part, lambda h: h.hang(seconds), times))

    def asked(self, method: str, part: str) -> list[Request]:
        return [r for r in self.requests if r.method == method and part in r.path]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def do_GET(self):
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.seen = Request(self.command, self.path, self.headers.get("Range"), bearer)
        self.hub.requests.append(self.seen)
        for fault in self.hub.faults:
            if fault.times and fault.method == self.command and fault.part in self.path:
                fault.times -= 1
                return fault.act(self)
        path = urlsplit(self.path).path
        if path.startswith("/cdn/"):
            return self.send_file(path.removeprefix("/cdn/"))
        if not self.allowed():
            return None
        if path == f"/api/models/{REPO}/tree/{COMMIT}":
            return self.reply(200, json.dumps(self.listing()).encode())
        if path.startswith(f"/api/models/{REPO}/") or path.startswith(f"/{REPO}/resolve/"):
            start, _, name = path.rpartition("/")
            if not start.endswith(COMMIT):
                return self.reply(404, b"", **{"X-Error-Code": "RevisionNotFound"})
            if name not in self.hub.files:
                return self.reply(404, b"", **{"X-Error-Code": "EntryNotFound"})
            return self.resolve(name)
        return self.reply(404, b"", **{"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def allowed(self) -> bool:
        hub = self.hub
        if self.seen.token is not None and self.seen.token != hub.token:
            message = "Invalid credentials in Authorization header"
            self.reply(401, b"", **{"X-Error-Message": message})
        elif hub.licensed is not None and self.seen.token not in hub.licensed:
            self.reply(403 if self.seen.token else 401, b"", **{"X-Error-Code": "GatedRepo"})
        elif hub.token and self.seen.token is None:
            self.reply(401, b"", **{"X-Error-Code": "RepoNotFound"})
        else:
            return True
        return False

    def listing(self) -> list[dict]:
        files = []
        for name, content in self.hub.files.items():
            entry = {"type": "file", "path": name, "size": len(content), "oid": git_oid(content)}
            if is_large(name):
                large = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
                entry["lfs"] = large
            files.append(entry)
        return files

    def resolve(self, name: str):
        content = self.hub.files[name]
        if not is_large(name):
            return self.send_file(name)
        # As the real hub does it: large files lie elsewhere, where the token must not go.
        return self.reply(
            302,
            b"",
            **{
                "Location": f"http://localhost:{self.hub.port}/cdn/{name}",
                "X-Repo-Commit": COMMIT,
                "X-Linked-Etag": f'"{sha256(content)}"',
                "X-Linked-Size": str(len(content)),
            },
        )

    def send_file(self, name: str, cut: int | None = None):
        content = self.hub.files[name]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{git_oid(content)}"'}
        status, start = 200, 0
        if self.seen.range:
            start = int(self.seen.range.removeprefix("bytes=").partition("-")[0])
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.reply(status, content[start:], cut, **headers)

    def reply(self, status: int, body: bytes, cut: int | None = None, **headers: str):
        self.seen.answered = status
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
            self.seen.sent = len(body[:cut])
        if cut is not None:
            self.close_connection = True

    def hang(self, seconds: float):
        threading.Event().wait(seconds)
        self.close_connection = True

    def log_message(self, *_):
        pass


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


@contextmanager
def serve(files: dict[str, bytes]):
    """A hub that holds `files` as `REPO` at `COMMIT`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.hub = Hub(files, port=server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
