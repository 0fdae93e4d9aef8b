# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Download of the published adapters, from a local server that replaces the authors' repository."""

import errno
import hashlib
import multiprocessing
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from anomalib_aprilgan import AprilGanModel
from anomalib_aprilgan.files import published
from anomalib_aprilgan.files.adapter_origin import AdapterOrigin
from anomalib_aprilgan.files.downloads import TIMEOUT_VARIABLE, download
from anomalib_aprilgan.files.published import MIRROR_VARIABLE, PUBLISHED, PublishedAdapters, fetch


@dataclass
class Mirror:
    """A local server and an empty cache for one test.

    Attributes:
        content: Content of ``/folder/visa_pretrained.pth`` on the server; ``None`` if there is no such file.
        cached: Path of the file in the cache.
        mode: Fault of the server: ``"nonsense"``, ``"truncated"``, ``"silent"``, ``"slow"``, ``"endless"``, ``"huge"``,
            ``"drops"``, or none.
        requests: Requested paths.
        ranges: Requested parts of files.
    """

    content: bytes | None
    cached: Path
    mode: str = ""
    requests: list[str] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    server: ThreadingHTTPServer | None = None
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/folder"

    def start(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"mirror": self}))
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers requests to a mirror."""

    mirror: Mirror

    def do_GET(self) -> None:
        self.mirror.requests.append(self.path)
        if self.mirror.mode == "silent":
            self.mirror.stopped.wait()
        elif self.mirror.mode == "nonsense":
            self.wfile.write(b"nonsense\r\n\r\n")
        elif self.mirror.content is None or self.path != "/folder/visa_pretrained.pth":
            self.send_error(404)
        else:
            self.send_content(self.mirror.content)

    def send_content(self, content: bytes) -> None:
        self.mirror.ranges.append(self.headers.get("Range"))
        start = int(re.findall(r"\d+", self.headers.get("Range", "0"))[0])
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.mirror.mode != "endless":
            self.send_header("Content-Length", str(10**12 if self.mirror.mode == "huge" else len(content) - start))
        self.end_headers()
        rest = content[start:]
        with suppress(ConnectionError):
            self.wfile.write(rest[: len(rest) // 2] if self.mirror.mode == "truncated" else rest[:1])
            while self.mirror.mode == "endless":
                self.wfile.write(rest)
            while self.mirror.mode == "slow" and not self.mirror.stopped.wait(0.01):
                self.wfile.write(b"x")
            if self.mirror.mode == "drops":  # takes 50 ms in all
                for place in range(1, len(rest), size := len(content) // 50):
                    self.wfile.write(rest[place : place + size])
                    time.sleep(0.001)
            if not self.mirror.mode:
                self.wfile.write(rest[1:])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, official_adapter: Path) -> Iterator[Mirror]:
    """Start a server that has the correct file, with an empty cache."""
    content = official_adapter.read_bytes()
    git_object_id = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    monkeypatch.setitem(PUBLISHED, "visa", replace(PUBLISHED["visa"], git_object_id=git_object_id))
    monkeypatch.setattr(published, "user_cache_path", lambda name: tmp_path / "cache" / name)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    mirror = Mirror(content, tmp_path / "cache" / "anomalib-aprilgan" / "visa_pretrained.pth")
    mirror.start()
    monkeypatch.setenv(MIRROR_VARIABLE, mirror.address)
    yield mirror
    mirror.stop()


def assert_refused(mirror: Mirror) -> str:
    """Check that the download fails, leaves no file, and that the message names URL, cache and mirror variable."""
    with pytest.raises(RuntimeError) as error:
        fetch("visa")
    assert not mirror.cached.is_file()
    message = str(error.value)
    assert str(mirror.cached) in message
    assert f"{published.SOURCE}/visa_pretrained.pth" in message
    assert MIRROR_VARIABLE in message
    return message


# ---- Constants ----------------------------------------------------------------------------------------------------


def test_the_published_files_belong_to_one_commit():
    assert published.SOURCE.startswith("https://")
    assert "/ByChelsea/VAND-APRIL-GAN/f13b8a634e04f9fde8fa03db125b25af5695d8e1/exps/pretrained" in published.SOURCE
    assert {name: (entry.file_name, entry.git_object_id) for name, entry in PUBLISHED.items()} == {
        "mvtec": ("mvtec_pretrained.pth", "a057cec6c2ba5996baa0160a51e155908156813f"),
        "visa": ("visa_pretrained.pth", "86d6848c543f8393663d35c0333498ffb5ce9b68"),
    }


@pytest.mark.parametrize(("name", "data_set"), [("mvtec", "MVTecAD"), ("visa", "Visa")])
def test_the_origin_of_the_published_adapters(name, data_set):
    assert PUBLISHED[name].origin == AdapterOrigin(
        backbone="ViT-L-14-336",
        pretrained="openai",
        quick_gelu=False,
        image_size=518,
        layers=(6, 12, 18, 24),
        trained_on=(data_set,),
    )


@pytest.mark.parametrize(
    ("content", "git_object_id"),
    [
        (b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        (b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
    ],
)
def test_the_object_id_equals_git_s(tmp_path, content, git_object_id):
    (tmp_path / "file").write_bytes(content)
    assert published.git_object_id(tmp_path / "file") == git_object_id


# ---- Download -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_file_is_downloaded_into_the_cache(mirror, monkeypatch, slash):
    monkeypatch.setenv(MIRROR_VARIABLE, mirror.address + slash)
    assert fetch("visa") == mirror.cached
    assert mirror.cached.read_bytes() == mirror.content
    assert list(mirror.cached.parent.iterdir()) == [mirror.cached]
    assert mirror.requests == ["/folder/visa_pretrained.pth"]


def test_without_a_mirror_the_authors_repository_is_used(mirror, monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE)
    asked = []

    def download(url: str, path: Path, *_: object) -> None:
        asked.append(url)
        path.parent.mkdir(parents=True)
        path.write_bytes(mirror.content)

    monkeypatch.setattr(published, "download", download)
    assert fetch("visa").read_bytes() == mirror.content
    assert asked == [f"{published.SOURCE}/visa_pretrained.pth"]


def test_a_cached_file_needs_no_network(mirror):
    fetch("visa")
    mirror.stop()
    assert fetch("visa").read_bytes() == mirror.content
    assert len(mirror.requests) == 1


def test_a_file_that_was_copied_into_the_cache_is_used(mirror):
    mirror.cached.parent.mkdir(parents=True)
    mirror.cached.write_bytes(mirror.content)
    assert fetch("visa") == mirror.cached
    assert not mirror.requests


def test_a_damaged_file_in_the_cache_is_downloaded_again(mirror, caplog):
    fetch("visa")
    mirror.cached.write_bytes(mirror.content[:-1])
    assert fetch("visa").read_bytes() == mirror.content
    assert len(mirror.requests) == 2
    assert str(mirror.cached) in caplog.text


def test_a_corrupted_download_is_refused(mirror):
    right_id = PUBLISHED["visa"].git_object_id
    mirror.content = mirror.content[:-1] + bytes([mirror.content[-1] ^ 1])
    message = assert_refused(mirror)
    assert mirror.address in message
    assert right_id in message


def test_a_truncated_transfer_is_refused(mirror):
    mirror.mode = "truncated"
    assert mirror.address in assert_refused(mirror)


def test_a_missing_file_is_refused(mirror):
    mirror.content = None
    message = assert_refused(mirror)
    assert mirror.address in message
    assert "404" in message


def test_a_server_that_is_down_is_named(mirror):
    mirror.stop()
    assert mirror.address in assert_refused(mirror)


def test_a_silent_server_is_named(mirror, monkeypatch):
    monkeypatch.setenv(TIMEOUT_VARIABLE, "0.05")
    mirror.mode = "silent"
    message = assert_refused(mirror)
    assert mirror.address in message
    assert "timed out" in message


def test_a_server_with_an_invalid_response_is_named(mirror):
    mirror.mode = "nonsense"
    assert mirror.address in assert_refused(mirror)


@pytest.mark.parametrize("address", ["no address", "http://127.0.0.1:1/a folder", "gopher://127.0.0.1"])
def test_an_invalid_mirror_is_named(mirror, monkeypatch, address):
    monkeypatch.setenv(MIRROR_VARIABLE, address)
    assert address in assert_refused(mirror)


def test_after_a_failure_the_next_attempt_succeeds(mirror):
    mirror.mode = "truncated"
    assert_refused(mirror)
    mirror.mode = ""
    assert fetch("visa").read_bytes() == mirror.content


def test_a_cache_without_write_access_is_named(mirror):
    mirror.cached.parent.parent.write_bytes(b"a file in place of the folder")
    with pytest.raises(RuntimeError, match="the download failed") as error:
        fetch("visa")
    assert str(mirror.cached) in str(error.value)


# ---- Limits of time and size --------------------------------------------------------------------------------------


def parts(mirror: Mirror) -> Path:
    """Return the file that keeps what an unfinished download has brought."""
    return mirror.cached.with_name(".visa_pretrained.pth.parts") / "part"


@pytest.mark.posix
def test_a_broken_transfer_is_continued(mirror):
    half = len(mirror.content) // 2
    mirror.mode = "truncated"
    assert "the transfer ended after" in assert_refused(mirror)
    assert mirror.ranges == [None, f"bytes={half}-"], "one more attempt"
    mirror.mode = ""
    assert fetch("visa").read_bytes() == mirror.content
    assert mirror.ranges[2] == f"bytes={half + half // 2}-", "the next call goes on as well"
    assert list(mirror.cached.parent.iterdir()) == [mirror.cached]


@pytest.mark.posix
@pytest.mark.parametrize("size", [100, 9_999_999])
def test_a_part_of_another_file_is_not_continued(mirror, size):
    parts(mirror).parent.mkdir(parents=True)
    parts(mirror).write_bytes(b"x" * size)
    assert fetch("visa").read_bytes() == mirror.content
    assert mirror.ranges == [f"bytes={size}-", None]
    assert list(mirror.cached.parent.iterdir()) == [mirror.cached]


def test_a_file_of_which_nothing_is_known_is_never_continued(mirror, tmp_path):
    url, path = f"{mirror.address}/visa_pretrained.pth", tmp_path / "file"
    mirror.mode = "truncated"
    with pytest.raises(OSError, match="the transfer ended after"):
        download(url, path, 10**9, None)
    assert not path.exists()
    mirror.mode = ""
    download(url, path, 10**9, None)
    assert path.read_bytes() == mirror.content
    assert mirror.ranges == [None] * 2
    mirror.stop()
    download(url, path, 10**9, None)
    assert list(tmp_path.glob("*file*")) == [path]


@pytest.mark.posix
def test_a_transfer_that_was_complete_is_not_repeated(mirror):
    parts(mirror).parent.mkdir(parents=True)
    parts(mirror).write_bytes(mirror.content)
    assert fetch("visa").read_bytes() == mirror.content
    assert not mirror.requests


@pytest.mark.parametrize("mode", ["huge", "endless"])
def test_a_file_of_any_other_size_is_refused(mirror, monkeypatch, mode):
    monkeypatch.setattr(published, "LIMIT", 1_000_000)
    mirror.mode = mode
    assert "or more, but the file has at most 1 MB" in assert_refused(mirror)


def test_a_file_that_does_not_fit_on_the_disk_is_refused(mirror, small_disk):
    mirror.content = bytes(2 << 20)
    with pytest.raises(OSError, match=r"the file has 2 MB, but .*small-disk has only 1 MB left"):
        download(f"{mirror.address}/visa_pretrained.pth", small_disk / "file", 10**9, None)
    assert not list(small_disk.iterdir())


def test_a_server_that_sends_too_slowly_is_refused(mirror, monkeypatch):
    monkeypatch.setenv(TIMEOUT_VARIABLE, "0.2")
    mirror.mode = "slow"
    start = time.monotonic()
    assert "the server sends fewer than 1000 bytes per second" in assert_refused(mirror)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("value", ["", "soon", "-1", "0", "1e9"])
def test_a_time_that_is_none_is_refused(mirror, monkeypatch, value):
    monkeypatch.setenv(TIMEOUT_VARIABLE, value)
    assert f"{TIMEOUT_VARIABLE} to be a number of seconds, but got {value!r}" in assert_refused(mirror)


@pytest.mark.posix
def test_of_several_processes_one_downloads(mirror):
    workers = [multiprocessing.get_context("fork").Process(target=fetch, args=("visa",)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert mirror.requests == ["/folder/visa_pretrained.pth"]
    assert list(mirror.cached.parent.iterdir()) == [mirror.cached]


@pytest.mark.posix
@pytest.mark.parametrize("kills", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_a_download_that_is_killed_continues(
    kills: int, kill_repeatedly: Callable[..., Iterator[bool]], mirror, capsys: pytest.CaptureFixture[str]
):
    mirror.mode = "drops"
    ends = 0
    for was_killed in kill_repeatedly(lambda: fetch("visa"), kills, longest=0.12):
        assert not mirror.cached.exists() or mirror.cached.read_bytes() == mirror.content
        if not was_killed:
            files = [path for path in mirror.cached.parent.rglob("*") if path.is_file() and path.stat().st_size]
            assert files == [mirror.cached], "no part is left"  # the empty file of a lock may be, after a late kill
            mirror.cached.unlink()
            ends += 1
    assert fetch("visa").read_bytes() == mirror.content
    continued = sum(part is not None for part in mirror.ranges)
    if kills > 5:
        with capsys.disabled():
            print(f"\n{kills} kills of downloads: {continued} were continued, {ends} ended")
        assert min(continued, ends) > 5


def test_a_file_that_another_process_reads_is_not_replaced(mirror, monkeypatch):
    """Windows refuses to replace an open file. Without locks, another process may have downloaded the same one."""
    replace_file = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        replace_file(self, target)  # by the other process
        raise PermissionError(errno.EACCES, "The process cannot access the file", str(target))

    monkeypatch.setattr(Path, "replace", refuse)
    assert fetch("visa") == mirror.cached
    mirror.cached.unlink()

    monkeypatch.setattr(Path, "replace", lambda self, target: refuse(self, target.with_name("other")))
    with pytest.raises(RuntimeError, match="cannot access the file"):
        fetch("visa")


def test_without_a_home_directory_the_cache_is_named(mirror, monkeypatch, tmp_path):
    monkeypatch.setattr(published, "user_cache_path", lambda name: Path("~/.cache") / name)  # as platformdirs then
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="there is no home directory for the cache"):
        fetch("visa")
    assert not list(tmp_path.glob("~*"))


# ---- In the model -------------------------------------------------------------------------------------------------


def test_a_conflict_with_the_model_is_found_before_the_download(mirror, make_model: Callable[..., AprilGanModel]):
    with pytest.raises(ValueError, match="'visa'") as error:
        make_model(adapter="visa")
    for side in ("'ViT-L-14-336'", "'golden-vit'", "(6, 12, 18, 24)", "(2, 4)"):
        assert side in str(error.value)
    assert not mirror.requests
    assert not mirror.cached.exists()


def test_a_fitting_model_loads_the_published_adapters(
    mirror, monkeypatch, golden, make_model: Callable[..., AprilGanModel]
):
    origin = AdapterOrigin(backbone="golden-vit", quick_gelu=False, layers=(2, 4), trained_on=("Visa",))
    monkeypatch.setattr(PublishedAdapters, "origin", property(lambda entry: origin))
    model = make_model(adapter="visa")
    assert mirror.requests == ["/folder/visa_pretrained.pth"]
    assert all(torch.equal(value, golden["adapter_before"][key]) for key, value in model.adapters.state_dict().items())
    assert model.trained_on == ("Visa",)
    last = make_model(adapter="visa", layers=(4,), reference_layers=None)
    assert torch.equal(last.adapters.fc[0].weight, golden["adapter_before"]["fc.1.weight"])
