"""The app in examples/app.py: its scores, its HTTP interface, and its page in a browser.

The tests of the running app need the extra `app-test`, and the last one a Chromium.
"""

import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import pytest
from anomalib.engine import Engine
from PIL import ExifTags, Image

from anomalib_aprilgan import AprilGan

APP = Path(__file__).parents[1] / "examples" / "app.py"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

DEAD_PROXY = "http://127.0.0.1:9"
WATCHED = """
import runpy, sys

def report(event, arguments):
    if event == "socket.connect" and (arguments[1][0] != "127.0.0.1" or arguments[1][1] == 9):
        print("connects to", arguments[1], flush=True)

sys.addaudithook(report)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script and prints each connection to another machine or to the dead proxy."""


@pytest.fixture(scope="module")
def inspector() -> Any:
    return runpy.run_path(str(APP))["Inspector"](backbone="ViT-builtin")


@pytest.fixture(scope="module")
def good(sample_root: Path) -> list[str]:
    return [str(sample_root / "coins" / "train" / "good" / f"{number:03}.png") for number in range(4)]


@pytest.fixture(scope="module")
def stained(sample_root: Path) -> str:
    return str(sample_root / "coins" / "test" / "stain" / "000.png")


@pytest.fixture(scope="module")
def expected(good: list[str], stained: str) -> Callable[..., float]:
    """Score the stained image with the Engine alone."""

    def score(**arguments: Any) -> float:
        model = AprilGan("ViT-builtin", class_name="coins", visualizer=False, **arguments)
        (prediction,) = Engine(logger=False, accelerator="cpu").predict(model, data_path=stained)
        return float(prediction.pred_score)

    return score


def test_help_needs_neither_gradio_nor_torch() -> None:
    without = "import sys; sys.modules.update(gradio=None, torch=None, anomalib=None); import runpy; "
    script = f"{without}sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    output = subprocess.run([sys.executable, "-c", script, APP, "--help"], check=True, capture_output=True, text=True)
    assert all(option in output.stdout for option in ("--backbone", "--pretrained", "--adapter", "--port", "firewall"))


def test_scores_are_those_of_the_engine(
    inspector: Any, good: list[str], stained: str, expected: Callable[..., float], tmp_path: Path
) -> None:
    sources = tmp_path / "good.txt"
    sources.write_text("\n".join(good), encoding="utf-8")
    few_shot = expected(k_shot=4, few_shot_source=sources)
    zero_shot = expected()
    assert abs(few_shot - zero_shot) > 0.01
    for files, score in (([], zero_shot), (good, few_shot), ([], zero_shot)):
        label, found, (photograph, heatmap) = inspector.inspect(stained, files, "coins")
        assert found == pytest.approx(score, abs=6e-4)
        assert label == ("anomalous" if score > 0.5 else "normal")
        assert photograph.size == heatmap.size == (64, 64)
        assert photograph.tobytes() != heatmap.tobytes()


def test_good_images_are_encoded_once(
    inspector: Any, good: list[str], stained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = inspector.model.model.encode_references
    monkeypatch.setattr(
        inspector.model.model, "encode_references", lambda images: encoded.append(len(images)) or encode(images)
    )
    for photograph in (stained, good[0], stained):
        inspector.inspect(photograph, good[1:], "coin")
    assert sum(encoded) == 3
    inspector.inspect(stained, good[2:], "coin")
    assert sum(encoded) == 3 + 2


def test_a_refused_image_leaves_nothing_behind(inspector: Any, good: list[str], stained: str, tmp_path: Path) -> None:
    _, before, _ = inspector.inspect(stained, good[:1], "coins")
    notes = tmp_path / "notes.png"
    notes.write_text("no image", encoding="utf-8")
    with pytest.raises(ValueError, match=r"notes\.png cannot be used: .* Choose another one"):
        inspector.inspect(stained, [good[1], str(notes)], "coins")
    with pytest.raises(ValueError, match=r"notes\.png cannot be used: .* Choose another one"):
        inspector.inspect(str(notes), good[:1], "coins")
    assert inspector.inspect(stained, good[:1], "coins")[1] == before
    assert inspector.model.reference_files == (good[0],)


def test_photographs_of_a_phone_are_turned(inspector: Any, good: list[str], stained: str, tmp_path: Path) -> None:
    def as_stored_by_a_phone(file: str) -> str:
        with Image.open(file) as image:
            exif = image.getexif()
            exif[ExifTags.Base.Orientation] = 6
            turned = tmp_path / Path(file).name
            image.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
        return str(turned)

    _, upright, _ = inspector.inspect(stained, good[1:3], "coins")
    phone = [as_stored_by_a_phone(file) for file in (stained, *good[1:3])]
    assert inspector.inspect(phone[0], phone[1:], "coins")[1] == upright


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run the app behind a proxy that does not answer; at the end, check that it connected to no other machine."""
    pytest.importorskip("gradio", reason='needs pip install ".[app-test]"')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, log = f"http://127.0.0.1:{port}/", tmp_path_factory.mktemp("app") / "log.txt"
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), DEAD_PROXY)
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", WATCHED, APP, "--port", str(port)],
            env=os.environ | proxies,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(address, process, log)
            yield address
        finally:
            process.terminate()
            process.wait(timeout=10)
    assert "connects to" not in log.read_text(encoding="utf-8")
    assert "Traceback" not in log.read_text(encoding="utf-8")


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    opener = build_opener(ProxyHandler({}))
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            opener.open(address, timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"The app did not start:\n{log.read_text(encoding='utf-8')}")


def test_http_interface(
    address: str, good: list[str], stained: str, expected: Callable[..., float], tmp_path: Path
) -> None:
    client_module = pytest.importorskip("gradio_client")
    client = client_module.Client(address, verbose=False, download_files=tmp_path)
    notes = tmp_path / "notes.png"
    notes.write_text("no image", encoding="utf-8")
    upload = client_module.handle_file

    label, score, images = client.predict(upload(stained), None, "coins", api_name="/inspect")
    assert float(score) == pytest.approx(expected(), abs=6e-4)
    assert label in {"anomalous", "normal"}
    with Image.open(images[0]) as photograph, Image.open(images[1]) as heatmap:
        assert photograph.size == heatmap.size == (64, 64)

    for arguments, message in (
        ((None, None, "coins"), "Choose a photograph first."),
        ((upload(notes), None, "coins"), "The file notes.png cannot be used"),
        ((upload(stained), [upload(good[0]), upload(notes)], "coins"), "The file notes.png cannot be used"),
    ):
        with pytest.raises(Exception, match=re.escape(message)) as raised:
            client.predict(*arguments, api_name="/inspect")
        assert type(raised.value).__name__ == "AppError"
        assert "/" not in str(raised.value)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the path")
def test_page_in_a_browser(address: str, good: list[str], stained: str, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason='needs pip install ".[app-test]"')
    expect = playwright.expect
    notes = tmp_path / "notes.png"
    notes.write_text("no image", encoding="utf-8")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 380, "height": 800})
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)

        def choose(selector: str, files: str | Path | list[str]) -> None:
            cleared = page.get_by_label("Clear").count()
            page.locator(selector).set_input_files(files)
            expect(page.get_by_label("Clear")).to_have_count(cleared + 1)  # the upload has ended

        choose("input[type=file]:not([multiple])", stained)
        choose("input[type=file][multiple]", good)
        page.get_by_label("Name of the object").fill("coins")
        page.get_by_role("button", name="Inspect").click()
        expect(page.get_by_label("Score")).to_have_value(re.compile(r"0\.\d+"))
        score = float(page.get_by_label("Score").input_value())
        assert page.get_by_label("Label").input_value() == ("anomalous" if score > 0.5 else "normal")
        page.wait_for_function("[...document.images].filter(image => image.naturalWidth == 64).length == 2")

        page.get_by_label("Clear").first.click()
        choose("input[type=file]:not([multiple])", notes)
        page.get_by_role("button", name="Inspect").click()
        expect(page.get_by_text("The file notes.png cannot be used")).to_be_visible()
        assert "Traceback" not in page.content()
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
        browser.close()
    outside = [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert outside == []
