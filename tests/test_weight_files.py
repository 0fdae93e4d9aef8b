# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Weight files: TorchScript archives, whose code must not run."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._utils import _rebuild_tensor_v2

from anomalib_aprilgan.cli import main
from anomalib_aprilgan.export.products import Product
from anomalib_aprilgan.files.adapter_files import read_adapters
from anomalib_aprilgan.files.torchscript import is_torchscript, read_torchscript
from anomalib_aprilgan.integration.checkpoints import check_checkpoint
from anomalib_aprilgan.method.clip_weights import read_clip_weights

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
