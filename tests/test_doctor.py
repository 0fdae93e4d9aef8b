"""The command `doctor`: what it reports about installations that work and that do not."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anomalib.models
import pytest
import torch
from open_clip import pretrained as open_clip_pretrained

from anomalib_aprilgan.cli import main
from anomalib_aprilgan.diagnosis import doctor, self_test
from anomalib_aprilgan.diagnosis.doctor import BROKEN, NOTE, OK, Finding
from anomalib_aprilgan.files import embedded, published
from anomalib_aprilgan.method import pretrained
from anomalib_aprilgan.torch_model import AprilGanModel


def of(section: str) -> dict[str, list[str]]:
    """Return the findings of a section by status."""
    found: dict[str, list[str]] = {OK: [], NOTE: [], BROKEN: []}
    for status, text in doctor._findings(doctor.SECTIONS[section]):
        found[status].append(text)
    return found


def test_an_installation_that_works() -> None:
    """In a process of its own, as a user runs it, where only the hook has made the model known."""
    code = "from anomalib_aprilgan.cli import main; main(['doctor'])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    report = process.stdout
    assert process.returncode == 0, report + process.stderr
    assert [line for line in report.splitlines() if not line.startswith(" ")][:-1] == list(doctor.SECTIONS)
    assert "ok      anomalib knows AprilGan" in report
    assert "Result: everything works" in report
    assert str(Path.home()) not in report.replace(str(Path(sys.prefix)), "")
    assert report.isascii()


def test_a_broken_installation_has_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash() -> Iterator[Finding]:
        yield Finding(OK, "begun")
        msg = f"no library in {Path.home() / 'somewhere'}"
        raise ImportError(msg)

    monkeypatch.setattr(doctor, "SECTIONS", {"First": crash, "Second": lambda: iter([Finding(NOTE, "goes on")])})
    with pytest.raises(SystemExit, match="1"):
        main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:2]] == [["First"], ["ok", "begun"]]
    somewhere = Path("~", "somewhere")
    assert lines[2:5] == [f"  BROKEN  ImportError: no library in {somewhere}", "Second", "  --      goes on"]
    assert lines[5].startswith("Result: 1 broken")


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requires", lambda _: ["torch>=2", "numpy<1", "no-such-package", "onnx; extra == 'x'"])
    monkeypatch.setenv("ANOMALIB_APRILGAN_MIRROR", "https://user:secret@example.org")
    monkeypatch.setenv("ANOMALIB_APRILGAN_VERBOSE", "1")
    found = of("Versions")
    assert f"torch {torch.__version__.partition('+')[0]}" in " ".join(found[OK])
    assert [text.split()[0] for text in found[BROKEN]] == ["numpy", "no-such-package"]
    assert "Run: pip install 'numpy<1'" in found[BROKEN][0]
    assert {"ANOMALIB_APRILGAN_MIRROR=...", "ANOMALIB_APRILGAN_VERBOSE=1"} <= set(found[NOTE])


def test_discovery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANOMALIB_APRILGAN_AUTOLOAD", raising=False)
    assert of("Discovery by anomalib")[OK] == ["anomalib knows AprilGan"]
    monkeypatch.setattr(anomalib.models, "list_models", list)
    assert "Reinstall it" in of("Discovery by anomalib")[BROKEN][0]
    monkeypatch.setenv("ANOMALIB_APRILGAN_AUTOLOAD", "0")
    found = of("Discovery by anomalib")
    assert not found[BROKEN], "the user wants it so"
    assert "AUTOLOAD is 0" in found[NOTE][0]


def test_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = Path(shutil.copy(embedded.ADAPTERS, tmp_path))
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    monkeypatch.setattr(embedded, "ADAPTERS", damaged)
    monkeypatch.setattr(published, "user_cache_path", lambda _: tmp_path)
    (tmp_path / "visa_pretrained.pth").write_bytes(b"an error page")
    clip = {name: tmp_path / name for name in ("right", "wrong", "unknown")}
    for path in clip.values():
        path.write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    stated = {"right": sha256, "wrong": "0" * 64, "unknown": ""}
    monkeypatch.setattr(pretrained, "cached_weights", lambda *_: [(clip[name], stated[name]) for name in clip])
    found = of("Weights")
    assert [text.split()[0] for text in found[OK]] == ["ViT-builtin.safetensors", "CLIP:", "CLIP:"]
    assert [text.split(":")[0] for text in found[BROKEN]] == ["ValueError", "adapters 'visa'", "CLIP"]
    assert "fetch mvtec" in found[NOTE][0]


def test_cached_weights_and_their_stated_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setattr(pretrained, "cached_from_hub", lambda *_: None)
    assert pretrained.cached_weights("ViT-L-14-336", "openai") == []
    file = tmp_path / ".cache" / "clip" / "ViT-L-14-336px.pt"
    file.parent.mkdir(parents=True)
    file.touch()
    ((path, sha256),) = pretrained.cached_weights("ViT-L-14-336", "openai")
    assert path == file
    assert sha256.startswith("3035c92b350959924f9f")
    blob = tmp_path / "blobs" / ("a" * 64)
    blob.parent.mkdir()
    blob.touch()
    source = {"url": open_clip_pretrained.get_pretrained_cfg("ViT-L-14-336", "openai")["url"], "hf_hub": "a/b/"}
    monkeypatch.setattr(open_clip_pretrained, "get_pretrained_cfg", lambda *_: source)  # 2.24 names no hub
    monkeypatch.setattr(pretrained, "cached_from_hub", lambda *_: blob)
    assert pretrained.cached_weights("ViT-L-14-336", "openai")[1] == (blob, "a" * 64)


@pytest.fixture(scope="module")
def measured() -> dict[str, float]:
    return self_test.measure()


def test_the_recorded_numbers_are_those_of_the_weights(measured: dict[str, float]) -> None:
    """After a training of ViT-builtin, run `anomalib-aprilgan doctor --record true`."""
    name, difference = self_test.largest_difference(measured)
    assert difference <= self_test.TOLERANCE, name


def test_the_recorded_numbers_mean_something(measured: dict[str, float]) -> None:
    for shots in ("zero-shot", "2-shot"):
        for value in ("score", "map maximum", "map mean"):
            assert measured[f"{shots}, damaged, {value}"] > measured[f"{shots}, normal, {value}"]
    assert len({round(value, 6) for value in measured.values()}) == len(measured)


def test_mistakes_exceed_the_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_quick_gelu(backbone: str, adapter: str) -> AprilGanModel:
        model = AprilGanModel(backbone, quick_gelu=True)
        model.adapters.load_state_dict(AprilGanModel(backbone, adapter=adapter).adapters.state_dict())
        return model

    monkeypatch.setattr(self_test, "AprilGanModel", with_quick_gelu)
    assert self_test.largest_difference(self_test.measure())[1] > self_test.TOLERANCE


def test_recording(
    measured: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    others: dict[str, Any] = {name: value + 0.01 for name, value in measured.items()}
    monkeypatch.setattr(self_test, "RECORD", tmp_path / "self_test.json")
    monkeypatch.setattr(self_test, "measure", lambda *_: others)
    main(["doctor", "--record", "true"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "self_test.json")
    assert self_test.largest_difference(others)[1] < 1e-6
    assert self_test.largest_difference(measured)[1] == pytest.approx(0.01, abs=1e-5)
    assert set(json.loads(self_test.RECORD.read_text(encoding="utf-8"))["made_with"]) == {"torch", "open_clip_torch"}
    others["a new number"] = 1.0
    with pytest.raises(ValueError, match="Record the numbers anew"):
        self_test.largest_difference(others)
    assert "ValueError" in of("Self-test")[BROKEN][0]
