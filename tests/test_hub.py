# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Downloads from a Hugging Face hub on this machine, which may accept connections and say nothing."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CONTENT = b"weights" * 100

PROGRAM = """
import sys
from anomalib_aprilgan.files import downloads
downloads.CONNECT_SECONDS = 1
print(downloads.fetch_from_hub("some/clip", ["missing.safetensors", "clip.bin"], int(sys.argv[1])).read_bytes())
"""


class Hub(BaseHTTPRequestHandler):
    """A hub with one file. A test says which of its answers it gives: those about files, those with files."""

    answers: frozenset[str] = frozenset()
    stopped = threading.Event()

    def do_HEAD(self) -> None:
        self.answer(is_head=True)

    def do_GET(self) -> None:
        self.answer(is_head=False)

    def answer(self, *, is_head: bool) -> None:
        if self.command not in self.answers:
            self.stopped.wait()
            return
        found = self.path == "/some/clip/resolve/main/clip.bin"
        self.send_response(200 if found else 404)
        if found:
            self.send_header("ETag", '"0123456789"')
            self.send_header("Content-Length", str(len(CONTENT)))
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if found and not is_head:
            self.wfile.write(CONTENT)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    Hub.stopped.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    Hub.stopped.set()
    server.shutdown()
    server.server_close()


def fetch(hub: ThreadingHTTPServer, cache: Path, limit: int = 10_000) -> tuple[str, str, float]:
    """Return output, errors and seconds of a download."""
    address = f"http://127.0.0.1:{hub.server_address[1]}"
    own = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache), "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    own |= {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    start = time.monotonic()
    command = [sys.executable, "-c", PROGRAM, str(limit)]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=False, timeout=100)
    return done.stdout, done.stderr, time.monotonic() - start


def test_a_file_is_found_under_its_second_name_and_kept(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    Hub.answers = frozenset({"HEAD", "GET"})
    output, errors, _ = fetch(hub, tmp_path)
    assert output.strip() == repr(CONTENT), errors
    Hub.answers = frozenset()
    output, errors, _ = fetch(hub, tmp_path)
    assert output.strip() == repr(CONTENT), errors


@pytest.mark.parametrize("answers", [set(), pytest.param({"HEAD"}, marks=pytest.mark.slow)])
def test_a_hub_that_says_nothing_does_not_block(answers: set[str], hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    Hub.answers = frozenset(answers)
    output, errors, seconds = fetch(hub, tmp_path)
    assert not output
    assert "imeout" in errors or "timed out" in errors
    assert seconds < 60


def test_a_file_that_is_too_large_is_refused_before_the_download(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    Hub.answers = frozenset({"HEAD"})
    assert "more than the expected" in fetch(hub, tmp_path, limit=100)[1]
