# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Weight files: TorchScript archives, whose code must not run, damaged files, and values that are not finite."""

import math
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from anomalib.post_processing import PostProcessor
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._utils import _rebuild_tensor_v2

from anomalib_aprilgan import AprilGan
from anomalib_aprilgan.cli import main
from anomalib_aprilgan.export.products import Product
from anomalib_aprilgan.files import weight_files
from anomalib_aprilgan.files.adapter_files import read_adapters, write_adapters
from anomalib_aprilgan.files.adapter_origin import AdapterOrigin
from anomalib_aprilgan.files.embedded import ADAPTERS
from anomalib_aprilgan.files.torchscript import is_torchscript, read_torchscript
from anomalib_aprilgan.files.weight_files import read_weight_file, write_weight_file
from anomalib_aprilgan.integration.checkpoints import check_checkpoint, non_finite_state
from anomalib_aprilgan.method.clip_weights import read_clip_weights
from anomalib_aprilgan.method.setup import Setup

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

# ---- TorchScript archives -----------------------------------------------------------------------------------------


class WritesWhenRead(nn.Module):
    """A module whose TorchScript archive writes a file when ``torch.jit.load`` reads it."""

    def __init__(self, trace: Path) -> None:
        super().__init__()
        self.trace = str(trace)

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.trace, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.trace = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.trace)

    def forward(self, images: Tensor) -> Tensor:
        return images


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace"


@pytest.fixture
def archive(tmp_path: Path, trace: Path) -> Path:
    path = tmp_path / "archive.pt"
    torch.jit.script(WritesWhenRead(trace)).save(str(path))
    trace.unlink(missing_ok=True)
    return path


def test_reading_the_archive_with_torch_runs_its_code(archive: Path, trace: Path) -> None:
    """Otherwise the tests below could not fail."""
    torch.jit.load(archive)
    assert trace.exists()


@pytest.mark.parametrize("read", [read_adapters, Product.load, check_checkpoint, read_clip_weights])
def test_the_code_of_an_archive_is_not_run(archive: Path, trace: Path, read) -> None:
    with pytest.raises(ValueError, match="would run code") as error:
        read(archive)
    assert str(archive) in str(error.value)
    assert not trace.exists()


def test_extract_refuses_an_archive(archive: Path, trace: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as error:
        main(["extract", str(archive), str(tmp_path / "adapters.safetensors")])
    assert error.value.code not in {0, None}
    assert str(archive) in f"{error.value.code}{capsys.readouterr().err}"
    assert not trace.exists()


def test_the_engine_refuses_an_archive_as_checkpoint(
    archive: Path, trace: Path, make_lightning_model, sample_root: Path, tmp_path: Path
) -> None:
    engine = Engine(accelerator="cpu", devices=1, logger=False, default_root_dir=tmp_path / "results")
    model, images = make_lightning_model(class_name="gravel"), sample_root / "gravel/test/good"
    for use in (
        lambda: engine.predict(model, data_path=images, ckpt_path=archive),
        lambda: AprilGan.load_from_checkpoint(archive),
        lambda: make_lightning_model(adapter=archive).model,
    ):
        with pytest.raises(ValueError, match="would run code") as error:
            use()
        assert str(archive) in str(error.value)
        assert not trace.exists()


@pytest.mark.parametrize("read", [read_adapters, Product.load, check_checkpoint])
def test_an_archive_without_code_is_refused_as_well(tmp_path: Path, read) -> None:
    path = tmp_path / "archive.pt"
    torch.jit.script(nn.Linear(2, 3)).save(str(path))
    with pytest.raises(ValueError, match="would run code") as error:
        read(path)
    assert str(path) in str(error.value)


class Various(nn.Module):
    """Submodules, types and views that an archive may have, and attributes that are no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 2, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 4).half())
        self.register_buffer("number", torch.tensor(77))
        self.register_buffer("view", torch.arange(24.0).reshape(4, 6).T[1:4, ::2])
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("brief", torch.ones(3, dtype=torch.bfloat16))
        self.same = self.layers[0]
        self.mask = torch.full((2, 2), float("-inf"))
        self.sizes = [1, 2]

    def forward(self, images: Tensor) -> Tensor:
        return self.same(images) + self.mask.sum() + self.sizes[0]


def test_the_tensors_of_an_archive_equal_those_that_torch_reads(tmp_path: Path) -> None:
    path = tmp_path / "archive.pt"
    torch.jit.script(Various()).save(str(path))
    expected = torch.jit.load(path).state_dict()
    found = read_clip_weights(path)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


class Calls:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


def forged(path: Path, content: bytes, values: bytes = bytes(16)) -> Path:
    """Write an archive with another pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {"constants.pkl": b"", "data.pkl": content, "data/0": values}.items():
            archive.writestr(f"forged/{name}", data)
    return path


def test_functions_in_a_forged_archive_are_not_called(tmp_path: Path, trace: Path) -> None:
    calls = (Calls(Path.touch, trace), Calls(eval, f"open({str(trace)!r}, 'w')"), Calls(torch.save, 1, str(trace)))
    for call in calls:
        path = forged(tmp_path / "forged.pt", pickle.dumps(call, protocol=2))
        assert is_torchscript(path)
        with pytest.raises(ValueError, match="would run code") as error:
            read_clip_weights(path)
        assert str(path) in str(error.value)
        assert not trace.exists()


def test_a_forged_tensor_reads_no_memory_outside_its_storage(tmp_path: Path) -> None:
    class Forger(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if value == "values" else None

    for offset, size, stride in ((0, (5,), (1,)), (2, (3,), (1,)), (0, (2,), (4,)), (-1, (2,), (1,)), (3, (2,), (-1,))):
        with (tmp_path / "data.pkl").open("wb") as file:
            Forger(file, protocol=2).dump(Calls(_rebuild_tensor_v2, "values", offset, size, stride, None))
        path = forged(tmp_path / "forged.pt", (tmp_path / "data.pkl").read_bytes())
        with pytest.raises((RuntimeError, ValueError)):
            read_torchscript(path)
        with pytest.raises(ValueError, match="Could not read CLIP weights"):
            read_clip_weights(path)


# ---- Damaged files ------------------------------------------------------------------------------------------------


def small_adapters(value: float = 0.5) -> dict[str, Tensor]:
    weight = torch.arange(6.0).reshape(2, 3)
    weight[1, 1] = value
    return {"fc.0.weight": weight, "fc.0.bias": torch.zeros(2)}


def small_product(tmp_path: Path, **changes: Tensor) -> Path:
    tensors = {
        "model.state.text_features": torch.ones(2, 3),
        "model.state.map_range": torch.tensor([0.0, 1.0]),
        "model.state.memory_banks.0.tokens": torch.ones(2, 4),
        "post_processor._image_threshold": torch.tensor(0.5),
        "post_processor.margin": torch.tensor(0.0),
    }
    facts = {"setup": Setup().to_dict(), "k_shot": 2, "has_reduced_banks": False, "origin": {}, "reference_layers": [1]}
    return Product(tensors | changes, facts, {}, {}).save(tmp_path / "product.safetensors")


def adapter_content(path: Path) -> object:
    weights, origin = read_adapters(path)
    return {name: value.tolist() for name, value in weights.items()}, origin


def product_content(path: Path) -> object:
    product = Product.load(path)
    return {name: value.tolist() for name, value in product.tensors.items()}, product.facts, product.options


def flipped(content: bytes, position: int) -> bytes:
    """Return the content with one bit changed: another bit of each byte."""
    damaged = bytearray(content)
    damaged[position] ^= 1 << position % 8
    return bytes(damaged)


@pytest.mark.parametrize("kind", ["adapters", "product"])
def test_each_flipped_bit_in_an_own_file_is_found(tmp_path: Path, kind: str) -> None:
    if kind == "adapters":
        path = write_adapters(tmp_path / "adapters.safetensors", small_adapters(), AdapterOrigin(layers=(1,)))
        read = adapter_content
    else:
        path, read = small_product(tmp_path), product_content
    content, expected = path.read_bytes(), read(path)
    for position in range(len(content)):
        path.write_bytes(flipped(content, position))
        try:
            found = read(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert found == expected, position  # such as another spelling of the same JSON


def test_each_flipped_bit_in_the_weights_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    """The zip archive holds the checksums, so this is true for the authors' files and CLIP weights as well."""
    path = tmp_path / "adapters.pth"
    torch.save({"trainable_linearlayer": small_adapters(0.7)}, path)
    content = path.read_bytes()
    start = content.index(small_adapters(0.7)["fc.0.weight"].numpy().tobytes())
    for position in range(start, start + 24):
        path.write_bytes(flipped(content, position))
        with pytest.raises(ValueError, match="damaged") as error:
            read_adapters(path)
        assert str(path) in str(error.value)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="only Linux lists mapped files")
def test_a_file_that_was_read_can_be_replaced_on_windows(tmp_path: Path) -> None:
    """Tensors from a file that is mapped into memory would hold it as long as they live."""
    path = write_weight_file(tmp_path / "own.safetensors", {"weight": torch.ones(3000, 1000)}, {})
    tensors, _ = read_weight_file(path, "weights")
    assert str(path) not in Path("/proc/self/maps").read_text(encoding="utf-8")
    assert tensors["weight"].sum() == 3e6


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux tells a peak of the memory this way")
def test_a_file_is_in_memory_once(tmp_path: Path) -> None:
    """Its tensors, and not all that is mapped of it as well."""
    megabytes = 200
    save_file({str(number): torch.ones(1_000_000) for number in range(megabytes // 4)}, tmp_path / "large.safetensors")
    code = """
import re, sys
from pathlib import Path
from anomalib_aprilgan.files.weight_files import read_weight_file
def largest():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1000
before = largest()
content = read_weight_file(Path(sys.argv[1]), "weights")
print(largest() - before)
"""
    command = [sys.executable, "-W", "ignore", "-c", code, tmp_path / "large.safetensors"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert megabytes < float(output) < 1.5 * megabytes


@pytest.mark.posix
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.safetensors"
    save_file({"weight": torch.zeros(2)}, path)

    def replacing(*args: Any, **kwargs: Any) -> Any:
        opened = safe_open(*args, **kwargs)
        save_file({"weight": torch.ones(2)}, tmp_path / "other")
        (tmp_path / "other").replace(path)
        return opened

    monkeypatch.setattr(weight_files, "safe_open", replacing)
    with pytest.raises(ValueError, match="changed while it was read"):
        read_clip_weights(path)


@pytest.mark.parametrize("has_digest", [False, True])
def test_weights_are_read_without_those_of_a_tower(tmp_path: Path, has_digest: bool) -> None:
    weights = {"visual.proj": torch.zeros(2), "text_projection": torch.ones(2)}
    path = tmp_path / "clip.safetensors"
    if has_digest:
        write_weight_file(path, weights, {})
    else:
        save_file(weights, path)
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "clip.pt")
    for file in (path, tmp_path / "clip.pt"):
        assert list(read_clip_weights(file, without="visual.")) == ["text_projection"]


def test_files_of_other_programs_need_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "adapters.safetensors"
    for metadata in (None, {"format": "pt"}, {"format": "pt", "author": "somebody"}, {"anomalib_aprilgan": "{}"}):
        save_file(small_adapters(), path, metadata)
        assert torch.equal(read_adapters(path)[0]["fc.0.weight"], small_adapters()["fc.0.weight"])


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    path = tmp_path / "adapters.safetensors"
    for trained_on in (("first",), ("käse",)):
        origin = AdapterOrigin(layers=(1,), trained_on=trained_on)
        written = {write_adapters(path, small_adapters(), origin).read_bytes() for _ in range(20)}
        assert len(written) == 1
        assert read_adapters(path)[1] == origin


def test_the_embedded_adapters_have_a_digest() -> None:
    with safe_open(ADAPTERS, framework="pt") as file:
        assert len(file.metadata()["anomalib_aprilgan_sha256"]) == 64


# ---- Values that are not finite -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    weights = small_adapters(value)
    torch.save({"trainable_linearlayer": weights}, tmp_path / "adapters.pth")
    write_adapters(tmp_path / "adapters.safetensors", weights, AdapterOrigin(layers=(1,)))
    torch.save(
        {"state_dict": {f"module.{name}": tensor.half() for name, tensor in weights.items()}}, tmp_path / "clip.pt"
    )
    for name, read in (
        ("adapters.pth", read_adapters),
        ("adapters.safetensors", read_adapters),
        ("clip.pt", read_clip_weights),
    ):
        with pytest.raises(ValueError, match=r"NaN or infinite values in fc\.0\.weight\.") as error:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_products_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    for name in ("model.state.memory_banks.0.tokens", "model.state.map_range", "post_processor._image_threshold"):
        path = small_product(tmp_path, **{name: torch.tensor([0.0, value])})
        with pytest.raises(ValueError, match=f"NaN or infinite values in {name}") as error:
            Product.load(path)
        assert str(path) in str(error.value)


def test_thresholds_of_a_post_processor_of_anomalib_may_be_nan_but_not_infinite() -> None:
    state = {f"post_processor.{name}": value for name, value in PostProcessor().state_dict().items()}
    assert non_finite_state(state) == []
    assert non_finite_state(state | {"post_processor.margin": torch.tensor(0.0)}) == list(state)
    assert non_finite_state(state | {"post_processor.image_max": torch.tensor(-math.inf)}) == [
        "post_processor.image_max"
    ]
