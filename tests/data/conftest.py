"""A cache folder of its own for every test, and a small server that can be told how to misbehave."""

import http.server
import threading

import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, no MINIMAL_DATA, and no proxy between the test and its own server."""
    monkeypatch.delenv("MINIMAL_DATA", raising=False)
    monkeypatch.setenv("MINIMAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("CI", "1")
    return tmp_path / "cache"


class Server:
    """Serves `content` under any path. `requests` records the Range header of each request.

    fault: "" (Range is honoured), "no range", "cut" (the first answer breaks off half way), "missing" (404),
    "wrong range" (an answer for other bytes than were asked for).
    """

    def __init__(self, content: bytes):
        self.content, self.fault, self.requests = content, "", []
        handler = type("Handler", (_Handler,), {"serves": self})
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/file"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


class _Handler(http.server.BaseHTTPRequestHandler):
    serves: Server

    def do_GET(self):
        server, wanted = self.serves, self.headers.get("Range")
        server.requests.append(wanted)
        total, start = len(server.content), 0
        if server.fault == "missing":
            return self.send_error(404)
        if wanted and server.fault != "no range":
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.end_headers()
                return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            first = 0 if server.fault == "wrong range" else start
            self.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.fault == "cut" and len(server.requests) == 1:
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    """A function from bytes to a running Server."""
    running = []

    def start(content: bytes) -> Server:
        running.append(Server(content))
        return running[-1]

    yield start
    for server in running:
        server.http.shutdown()
        server.http.server_close()
