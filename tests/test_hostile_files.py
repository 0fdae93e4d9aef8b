# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Hostile files and arguments: each is refused by name, soon, with little memory, and without dangerous advice."""

import json
import os
import pickle
import struct
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from anomalib_aprilgan import AprilGan, AprilGanModel, Product
from anomalib_aprilgan.cli import main
from anomalib_aprilgan.files.adapter_files import read_adapters
from anomalib_aprilgan.integration.checkpoints import check_checkpoint
from anomalib_aprilgan.integration.references import files_in_source
from anomalib_aprilgan.method.clip_weights import read_clip_weights

READERS = {
    "adapters": read_adapters,
    "product": Product.load,
    "checkpoint": check_checkpoint,
    "clip": read_clip_weights,
}
TORCH_READERS = [READERS[name] for name in ("adapters", "checkpoint", "clip")]

Read = Callable[[Path], Any]


@contextmanager
def little_memory(megabytes: int = 1000) -> Iterator[None]:
    """Limit the memory that may be reserved within a block."""
    resource: Any = pytest.importorskip("resource", reason="Windows has no limit of memory")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 1_000_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refusal(read: Callable[[Any], Any], source: object) -> str:
    """Return the message of the refusal, after checking what a user would see of it."""
    with pytest.raises(ValueError, match=r".") as error:
        read(source)
    shown = "".join(traceback.format_exception(error.value)).splitlines()
    assert not [line for line in shown if "weights_only" in line and not line.startswith("  ")], "torch's advice"
    message = str(error.value)
    assert len(message) < 1500
    return message


def archive(path: Path, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in records.items():
            file.writestr(name, content)
    return path


def torch_file(path: Path, pickled: bytes, **storages: bytes) -> Path:
    """Write a file as ``torch.save`` does, with any pickle."""
    records = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"}
    records |= {f"data/{name.removeprefix('s')}": content for name, content in storages.items()}
    return archive(path, {f"archive/{name}": content for name, content in records.items()})


# ---- Bombs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", TORCH_READERS)
def test_an_archive_that_would_unpack_to_gigabytes_is_refused(read: Read, tmp_path: Path) -> None:
    path = archive(tmp_path / "bomb.pt", {"a/data.pkl": bytes(300_000_000)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000
    with little_memory(200):
        assert "would unpack to 300 MB" in refusal(read, path)


@pytest.mark.parametrize("read", TORCH_READERS)
def test_tensors_that_are_larger_than_their_values_are_refused(read: Read, tmp_path: Path) -> None:
    torch.save({"fc.0.weight": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "large.pt")
    with little_memory():
        assert "larger than its values" in refusal(read, tmp_path / "large.pt")


@pytest.mark.parametrize("read", TORCH_READERS)
@pytest.mark.parametrize("value", ["sparse", "meta", "quantized"])
def test_tensors_without_plain_values_are_refused(read: Read, value: str, tmp_path: Path) -> None:
    tensors = {
        "sparse": lambda: torch.zeros(4, 4).to_sparse(),
        "meta": lambda: torch.zeros(10**6, 10**6, device="meta"),
        "quantized": lambda: torch.quantize_per_tensor(torch.zeros(4, 4), 0.1, 0, torch.quint8),
    }
    torch.save({"fc.0.weight": tensors[value](), "fc.0.bias": torch.zeros(4)}, tmp_path / "file.pt")
    assert str(tmp_path / "file.pt") in refusal(read, tmp_path / "file.pt")


@pytest.mark.parametrize("read", TORCH_READERS)
def test_values_that_multiply_are_refused(read: Read, tmp_path: Path) -> None:
    value: list[Any] = ["x"]
    for _ in range(40):
        value = [value] * 10
    torch.save({"state_dict": value}, tmp_path / "laughs.pt")
    assert "has more than 1000000 values" in refusal(read, tmp_path / "laughs.pt")
    own: list[Any] = []
    own.append(own)
    torch.save({"state_dict": own}, tmp_path / "own.pt")
    assert str(tmp_path / "own.pt") in refusal(read, tmp_path / "own.pt")


def test_archives_of_torchscript_cannot_reserve_memory_or_contain_themselves(tmp_path: Path) -> None:
    records = {"a/constants.pkl": b"\x80\x02).", "a/code/__torch__.py": b"class M(Module):\n"}
    many = b"\x80\x02Nr" + struct.pack("<I", 500_000_000) + b"."  # the index of a value that is used again
    own = b"\x80\x02c__torch__\nM\n)\x81q\x00}U\x04selfh\x00sb."
    module = b"c__torch__\nM\n)\x81}sb"
    for level in range(40):  # each holds the one before twice
        module = b"c__torch__\nM\n)\x81}(U\x01a" + module + b"q" + bytes([level]) + b"U\x01bh" + bytes([level]) + b"ub"
    laughs = b"\x80\x02" + module.replace(b"}sb", b"}b") + b"."
    cases = ((many, "Could not read"), (own, "RecursionError"), (laughs, "more than 10000 modules"))
    for number, (content, expected) in enumerate(cases):
        path = archive(tmp_path / f"{number}.pt", records | {"a/data.pkl": content})
        with little_memory():
            assert expected in refusal(read_clip_weights, path)


@pytest.mark.parametrize("key", ["anomalib_aprilgan", "anomalib_aprilgan_product"])
def test_nested_and_large_metadata_are_refused(key: str, tmp_path: Path) -> None:
    read = Product.load if key.endswith("product") else read_adapters
    tensors = {"fc.0.weight": torch.zeros(2, 2), "fc.0.bias": torch.zeros(2)}
    for content in ("[" * 100_000, '{"a":' * 50_000, json.dumps({"layers": {"a": 1}}), " " * 11_000_000, "nonsense"):
        save_file(tensors, tmp_path / "file.safetensors", {key: content})
        assert str(tmp_path / "file.safetensors") in refusal(read, tmp_path / "file.safetensors")


def test_configurations_that_multiply_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    contents: dict[str, tuple[str | bytes, str]] = {
        "laughs": ("trainer:\n  " + "\n  ".join(lines), "at most 100000 values"),
        "own": ("models: &a [*a]", "a value contains itself"),
        "deep": ("models: " + "[" * 5000, "Could not read the configuration"),
        "bytes": (b"models: \xff\xfe", "UTF-8"),
        "broken": ("models: {", "Could not read the configuration"),
        "large": ("# " + "x" * 2_000_000, "at most 1048576 bytes"),
    }
    for name, (content, expected) in contents.items():
        path = tmp_path / f"{name}.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        for argument in (["--config", str(path)], [f"--config={path}"]):
            with pytest.raises(SystemExit) as stopped:
                main(["compare", *argument])
            assert expected in str(stopped.value), name
            assert str(path) in str(stopped.value)
    for suffix in (".txt", ".YAML"):  # which jsonargparse reads as YAML, too
        path = (tmp_path / "laughs.yaml").rename(tmp_path / f"laughs{suffix}")
        with pytest.raises(SystemExit, match="at most 100000 values"):
            main(["compare", "--config", str(path)])
        path.rename(tmp_path / "laughs.yaml")
    with pytest.raises(SystemExit, match="to be a file, but"):
        main(["compare", "--config", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--trainer", "{" + ", ".join(line for line in lines) + "}"])
    assert "at most 100000 values" in str(stopped.value)


# ---- Pickles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", TORCH_READERS)
def test_no_message_advises_to_run_the_code_of_a_file(read: Read, tmp_path: Path) -> None:
    whole = pickle.dumps({"state_dict": {"a": 1}}, protocol=2)
    damaged = [whole[:count] for count in range(len(whole))]
    damaged += [whole[:place] + bytes([255 - whole[place]]) + whole[place + 1 :] for place in range(len(whole))]
    damaged += [b"\x80\x02cos\nsystem\nU\x04truetR.", b"\x80\x02cbuiltins\neval\nU\x011tR.", b"\x80\x05\x8c\x01a\x93."]
    damaged.append(bytes(100_000))  # an empty tar archive, a format that torch has given up
    for number, content in enumerate(damaged):
        refusal(read, torch_file(tmp_path / f"{number}.pt", content))
        (tmp_path / "plain.pt").write_bytes(content)
        refusal(read, tmp_path / "plain.pt")


def test_a_checkpoint_that_would_run_code_is_refused_without_advice(
    make_lightning_model: Callable[..., AprilGan], sample_root: Path, tmp_path: Path
) -> None:
    from anomalib.engine import Engine  # noqa: PLC0415

    path = torch_file(tmp_path / "model.ckpt", b"\x80\x02cos\nsystem\nU\x04truetR.")
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False)
    data = sample_root / "coins" / "test" / "good"
    message = refusal(lambda ckpt: engine.predict(make_lightning_model(), data_path=data, ckpt_path=ckpt), path)
    assert "would run code" in message


# ---- Pipes, devices, folders, paths ---------------------------------------------------------------------------------


@pytest.fixture
def no_files(tmp_path: Path) -> list[Path]:
    """Return what can be opened but is no file: reading would wait or go on for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    return [tmp_path / "pipe", Path("/dev/zero"), Path("/dev/stdin"), tmp_path / "folder"]


@pytest.mark.posix
@pytest.mark.parametrize("read", READERS.values())
def test_what_is_no_file_is_refused_without_waiting(read: Read, no_files: list[Path]) -> None:
    for path in no_files:
        assert str(path) in refusal(read, path)


@pytest.mark.posix
def test_pipes_and_devices_are_no_source_of_images(no_files: list[Path], tmp_path: Path) -> None:
    for path in no_files:
        assert str(path) in refusal(files_in_source, path)
    (tmp_path / "list.txt").write_text("\n".join(map(str, no_files)), encoding="utf-8")
    assert "do not exist" in refusal(files_in_source, tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("x" * 5000, encoding="utf-8")
    assert "do not exist" in refusal(files_in_source, tmp_path / "list.txt")


ARGUMENTS: list[object] = [5, 1.5, b"path", ["path"], {"a": 1}, object(), "~nobody_of_this_name/x", "a\0b", "x" * 5000]


@pytest.mark.parametrize("argument", ARGUMENTS, ids=lambda argument: repr(argument)[:20])
def test_arguments_that_are_no_paths_are_named(
    argument: object, make_lightning_model: Callable[..., AprilGan], make_model: Callable[..., AprilGanModel]
) -> None:
    assert "`path`" in refusal(Product.load, argument)
    assert "`adapter`" in refusal(read_adapters, argument)
    assert "`adapter`" in refusal(lambda value: make_model(adapter=value), argument)
    assert "`few_shot_source`" in refusal(files_in_source, argument)
    assert "`few_shot_source`" in refusal(lambda value: make_lightning_model(few_shot_source=value, k_shot=1), argument)
    assert "`pretrained`" in refusal(lambda value: make_model(pretrained=value), argument)
    assert "`path`" in refusal(make_model().save_adapters, argument)


# ---- CLIP -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["logit_scale", "visual.positional_embedding", "visual.proj", "token_embedding.weight", "positional_embedding"],
)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (7, 64), (0, 64), (2, 3, 64)])
def test_weights_of_wrong_shapes_are_refused_by_name(
    name: str, shape: tuple[int, ...], make_model: Callable[..., AprilGanModel], clip_weights: Path, tmp_path: Path
) -> None:
    weights = torch.load(clip_weights, weights_only=True)
    if name == "logit_scale" and shape == ():
        pytest.skip("it has this shape")
    torch.save({**weights, name: torch.zeros(shape)}, tmp_path / "clip.pt")
    message = refusal(lambda path: make_model(pretrained=path), tmp_path / "clip.pt")
    assert "CLIP weights do not fit" in message
    assert str(tmp_path / "clip.pt") in message
