"""A web server that fails when it is told to, for tests of what reads from servers."""

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest


class Faults:
    """What goes wrong before a request is answered, what was asked for, and how many requests waited at once."""

    def __init__(self):
        self.kinds, self.delay, self.asked, self.log = (), 0.0, {}, []
        self.waiting, self.at_once, self.lock = 0, [], threading.Lock()

    def next_for(self, method, path, part):
        """"error", "cut" or "", in turn for each part of each file."""
        with self.lock:
            self.waiting += 1
        time.sleep(self.delay)
        with self.lock:
            self.at_once.append(self.waiting)
            self.waiting -= 1
        self.log.append((method, path, part))
        count = self.asked[method, path, part] = self.asked.get((method, path, part), -1) + 1
        return self.kinds[count] if count < len(self.kinds) else ""


class Handler(SimpleHTTPRequestHandler):
    """Files, whole or in parts."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments, faults, how, **options):
        self.faults, self.how = faults, how
        super().__init__(*arguments, **options)

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        part = self.headers.get("Range") if self.how["ranges"] else None
        fault = self.faults.next_for(self.command, self.path, part)
        path = Path(self.translate_path(self.path))
        if fault == "error" or not path.is_file():
            self.send_error(500 if path.is_file() else self.how["missing"])
            return
        content, whole = path.read_bytes(), path.stat().st_size
        if part:
            start, _, end = part.removeprefix("bytes=").partition("-")
            content = content[int(start) : int(end or whole) + 1]
        self.send_response(206 if part else 200)
        if part:
            self.send_header("Content-Range", f"bytes {start}-{int(start) + len(content) - 1}/{whole}")
        if self.how["size"]:
            self.send_header("Content-Length", str(len(content)))
        if "ETag" in self.how["signs"]:
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        if "Last-Modified" in self.how["signs"]:
            self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        if self.how["ranges"]:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
        self.close_connection = fault == "cut" or not self.how["size"]

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[SimpleNamespace]:
    """A folder on a web server: its ``url``, its ``faults``, and what kind of server it is (``options``)."""
    faults = Faults()
    options = {"ranges": True, "signs": ("ETag", "Last-Modified"), "size": True, "missing": 404}
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *a: Handler(*a, directory=str(folder), faults=faults, how=options)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", faults=faults, options=options)
    server.shutdown()


def until(condition, seconds=20):
    for _ in range(seconds * 50):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("did not happen")
