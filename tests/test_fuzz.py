# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Damaged files of every kind that this package reads: each is read rightly, or refused with an error that names it.

``pytest -n 0 -m slow tests/test_fuzz.py`` tries 10,000 files and prints how many of each kind were read or refused. The
files follow from their numbers alone, so that a failure can be repeated.

Not among them: exported models, which anomalib's inferencers read, and files of this package itself.
"""

import copy
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import shutil
import socket
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import yaml
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from numpy.random import default_rng
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor, nn

import anomalib_aprilgan
from anomalib_aprilgan import AprilGan, AprilGanModel, Product
from anomalib_aprilgan.cli import main
from anomalib_aprilgan.comparison import execution, report
from anomalib_aprilgan.comparison.folder import EXAMPLES, TABLE, safe_name
from anomalib_aprilgan.comparison.gallery import read_gallery
from anomalib_aprilgan.comparison.report import write_report
from anomalib_aprilgan.comparison.results import KEY, read_runs, refuse_other_table, run_file, write_run, write_table
from anomalib_aprilgan.comparison.tables import prepare
from anomalib_aprilgan.files import published
from anomalib_aprilgan.files.adapter_files import read_adapters
from anomalib_aprilgan.files.published import MIRROR_VARIABLE, PUBLISHED, fetch
from anomalib_aprilgan.files.weight_files import write_weight_file
from anomalib_aprilgan.integration.image_files import check_image_files
from anomalib_aprilgan.integration.output_files import INDEX, OutputFolder
from anomalib_aprilgan.integration.references import files_in_source, read_references
from anomalib_aprilgan.method.towers import build_towers
from anomalib_aprilgan.pretraining.materials import read_index, read_picture
from anomalib_aprilgan.pretraining.pair_files import pair_type
from anomalib_aprilgan.pretraining.pairs import Pairs
from anomalib_aprilgan.pretraining.training import Schedule, train
from anomalib_aprilgan.verification.text_check import similarities

resource = pytest.importorskip("resource", reason="needs limits of processes, which Windows has not")

PACKAGE = Path(anomalib_aprilgan.__file__).parent

SECONDS = 60
"""Longest time for one file. It is long since other processes may need the processors."""

MEMORY = 2_000_000_000
"""Bytes that reading one file may reserve beyond those of the process. A PNG may have 179 million pixels."""

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 300, "width": 64, "heads": 1, "layers": 1},
}
"""A CLIP whose files have some hundred kilobytes, since its text tower knows few words."""


# ---- Damage ---------------------------------------------------------------------------------------------------------

Random = random.Random


def flip(content: bytearray, rng: Random) -> None:
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def truncate(content: bytearray, rng: Random) -> None:
    del content[rng.randrange(len(content)) :]


def append(content: bytearray, rng: Random) -> None:
    content += rng.randbytes(rng.choice([1, 100, 5000]))


def block(content: bytearray, rng: Random) -> slice:
    start = rng.randrange(len(content))
    return slice(start, start + rng.choice([1, 4, 64, 1000]))


def remove(content: bytearray, rng: Random) -> None:
    del content[block(content, rng)]


def repeat(content: bytearray, rng: Random) -> None:
    part = block(content, rng)
    content[part] = content[part] * rng.choice([2, 3, 100])


def move(content: bytearray, rng: Random) -> None:
    part = content[place := block(content, rng)]
    del content[place]
    start = rng.randrange(len(content) + 1)
    content[start:start] = part


def zero(content: bytearray, rng: Random) -> None:
    part = block(content, rng)
    content[part] = bytes(len(content[part]))


def fill(content: bytearray, rng: Random) -> None:
    part = block(content, rng)
    content[part] = bytes([rng.choice([0xFF, 0x7F, 0x80, 0x30, 0x39])]) * len(content[part])


INSERTED = (
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\x80\x81", b"\0", b"\r", b"\r\n", b"\x1a", b'"', b"{", b"[", b"99999999999"),
    *(b"-1", b"NaN", b"1e999", b"\xed\xa0\x80", b"\t", b"&a [*a]", b"!!python/name:os.system", b"../../etc/passwd"),
)


def insert(content: bytearray, rng: Random) -> None:
    start = rng.randrange(len(content) + 1)
    content[start:start] = rng.choice(INSERTED)


def other_newlines(content: bytearray, rng: Random) -> None:
    content[:] = content.replace(b"\n", rng.choice([b"\r", b"\r\n", b"\n\n", b"\x0b", b"\xe2\x80\xa8"]))


def as_utf_16(content: bytearray, rng: Random) -> None:
    content[:] = bytes(content).decode("utf-8", "replace").encode(rng.choice(["utf-16", "utf-16-be", "utf-32"]))


DAMAGES: tuple[Callable[[bytearray, Random], None], ...] = (
    *(flip, flip, flip, truncate, truncate, append, remove, repeat, move, zero, fill, insert, insert),
    *(other_newlines, as_utf_16),
)


def damaged(content: bytes, others: list[bytes], rng: Random) -> bytes:
    """Damage a file without regard to its format, or take another one in its place."""
    way = rng.random()
    if way < 0.03:
        return rng.choice([b"", b"\n", b"\0", b"\xff" * 100, bytes(100_000), rng.randbytes(1000)])
    if way < 0.08:
        return rng.choice(others)
    result = bytearray(content)
    if way < 0.13:  # the head of another file
        head = rng.choice([8, 30, 64, 512])
        result[:head] = rng.choice(others)[:head]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if result:
            rng.choice(DAMAGES)(result, rng)
    return bytes(result)


def nested(depth: int) -> list[Any]:
    inner: list[Any] = [] if depth == 0 else [nested(depth - 1)]
    return inner


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(10**30), 0.5, 1e308, -0.0, float("nan"), float("inf")),
    *("", " ", "0", "x" * 5000, "a\nb", "\0", "../..", "/", "é\u2028", "\ud800", "=1+1", "<b>", "None"),
    *([], {}, [1, "a"], {"a": 1}, [[]], nested(30), {"class_path": "os.system"}, 10**400),
)

PLAIN: tuple[Callable[[], Any], ...] = tuple(partial(copy.deepcopy, value) for value in VALUES)

TENSORS: tuple[Callable[[], Any], ...] = (
    *PLAIN[::2],
    lambda: torch.zeros(()),
    lambda: torch.zeros(0),
    lambda: torch.zeros(0, 64),
    lambda: torch.rand(3, 5),
    lambda: torch.rand(32, 64),
    lambda: torch.full((32,), torch.nan),
    lambda: torch.full((32, 64), torch.inf),
    lambda: torch.zeros(32, 64, dtype=torch.int64),
    lambda: torch.zeros(32, dtype=torch.bool),
    lambda: torch.rand(32, 64, dtype=torch.float64),
    lambda: torch.rand(32, 64).half(),
    lambda: torch.zeros(32, 64, dtype=torch.complex64),
    lambda: torch.rand(64, 32).T,
    lambda: torch.zeros(1).expand(10**6, 10**6),
    lambda: torch.zeros(4, 4).to_sparse(),
    lambda: torch.zeros(2, 2, device="meta"),
    lambda: nn.Parameter(torch.rand(32, 64)),
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """List the places of values within a value: what holds each, and its key."""
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        found += [(value, key), *places(one)]
    return found


def change(value: Any, odd: tuple[Callable[[], Any], ...], rng: Random) -> Any:
    """Change a few values within a value of dicts and lists."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        found = places(value)
        if not found or rng.random() < 0.02:
            return rng.choice(odd)()
        holder, key = rng.choice(found)
        way = rng.random()
        if way < 0.2:
            del holder[key]
        elif way < 0.6:
            holder[key] = rng.choice(odd)()
        elif way < 0.75:
            source, name = rng.choice(found)
            with suppress(LookupError):  # just deleted
                holder[key] = source[name] if not isinstance(source[name], dict | list) else rng.choice(odd)()
        elif isinstance(holder, dict):
            holder[rng.choice(["", "extra", "fc.0.weight", f"{key}x", "_extra_state", "class_path", "\ud800"])] = (
                holder.pop(key) if rng.random() < 0.5 else rng.choice(odd)()
            )
        else:
            holder.insert(key, rng.choice(odd)())
    return value


def plain(value: Any) -> Any:
    """Copy a value of mappings and lists, so that it can be changed."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def changed_torch(content: bytes, rng: Random) -> bytes:
    file = io.BytesIO()
    value = plain(torch.load(io.BytesIO(content), weights_only=False))
    torch.save(change(value, TENSORS, rng), file, _use_new_zipfile_serialization=rng.random() < 0.9)
    return file.getvalue()


def changed_model(content: bytes, rng: Random) -> bytes:
    """Change the part of a checkpoint that is the model's. Lightning reads the others without checks."""
    value = plain(torch.load(io.BytesIO(content), weights_only=False))
    value["state_dict"] = change(value["state_dict"], TENSORS, rng)
    torch.save(value, file := io.BytesIO())
    return file.getvalue()


def changed_safetensors(content: bytes, rng: Random) -> bytes:
    """Change the header alone, or tensors and metadata with a digest that fits."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    if rng.random() < 0.4:
        text = dumped(change(header, PLAIN, rng))
        return (len(text) + rng.choice([0, 0, 0, 1, 10**12])).to_bytes(8, "little") + text + content[end:]
    metadata = header.pop("__metadata__", {})
    metadata.pop("anomalib_aprilgan_sha256", None)
    for name in metadata:
        metadata[name] = dumped(change(json.loads(metadata[name]), PLAIN, rng)).decode("utf-8", "replace")
    tensors = load(content)
    for _ in range(rng.choice([0, 1, 2])):
        value = rng.choice(TENSORS)()
        if isinstance(value, Tensor) and value.device.type == "cpu" and value.layout == torch.strided:
            tensors[rng.choice([*tensors, "extra"])] = value[:100].clone() if value.ndim else value
    with suppress(Exception):  # what cannot be written is no file
        folder = Path(os.environ["FUZZ_FOLDER"])
        return write_weight_file(folder / "made.safetensors", tensors, metadata).read_bytes()
    return save({"x": torch.zeros(1)}, metadata)


def dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def changed_json(content: bytes, rng: Random) -> bytes:
    return dumped(change(json.loads(content), PLAIN, rng))


def changed_yaml(content: bytes, rng: Random) -> bytes:
    text: str = yaml.safe_dump(change(yaml.safe_load(content), PLAIN, rng))
    return text.encode("utf-8", "surrogatepass")


def changed_rows(delimiter: str, content: bytes, rng: Random) -> bytes:
    """Change the cells of a table."""
    rows: Any = change([line.split(delimiter) for line in content.decode().splitlines()], PLAIN, rng)
    lines = [
        delimiter.join(map(str, row)) if isinstance(row, list) else str(row)
        for row in (rows if isinstance(rows, list) else [rows])
    ]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def changed_list(content: bytes, rng: Random) -> bytes:
    """Change lines of a text."""
    lines = change(content.decode().split("\n"), PLAIN, rng)
    return "\n".join(map(str, lines if isinstance(lines, list) else [lines])).encode("utf-8", "surrogatepass")


def changed_image(content: bytes, rng: Random) -> bytes:
    """Write an image of another mode, size or format, or one whose head names another size."""
    if content.startswith(b"\x89PNG") and rng.random() < 0.4:
        size = [rng.choice([0, 1, 25, 5000, 13_000, 60_000, 2**31 - 1]).to_bytes(4, "big") for _ in "ab"]
        head = b"IHDR" + b"".join(size) + bytes([rng.choice([1, 8, 16]), rng.choice([0, 2, 3, 4, 6]), 0, 0, 0])
        return content[:12] + head + zlib.crc32(head).to_bytes(4, "big") + content[33:]
    size = (rng.choice([1, 2, 24, 100]), rng.choice([1, 24, 300]))
    image = Image.new(rng.choice(["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "LA", "YCbCr"]), size)
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = rng.choice([0, 1, 3, 6, 9, 60000])
    with suppress(OSError, ValueError, KeyError):  # a mode that the format does not have
        form = rng.choice(["PNG", "JPEG", "TIFF", "BMP", "PPM", "WEBP", "GIF", "ICO", "TGA", "EPS", "PDF"])
        image.save(file, form, **({"exif": exif} if rng.random() < 0.5 and form in {"PNG", "JPEG", "WEBP"} else {}))
    return file.getvalue()


def changed_array(content: bytes, rng: Random) -> bytes:
    """Write an array of another type or shape, also of objects."""
    array = np.load(io.BytesIO(content))
    odd: list[Callable[[], Any]] = [
        lambda: array[:0],
        lambda: array["images"],
        lambda: np.zeros(4),
        lambda: np.zeros(()),
        lambda: np.array([{"a": 1}], dtype=object),
        lambda: np.zeros(2, pair_type(8)),
        lambda: np.zeros((2, 2), array.dtype),
        lambda: np.zeros(1, [("images", "u1"), ("mask", "u1"), ("kind", "U24"), ("defect", "U24")]),
    ]
    file = io.BytesIO()
    np.save(file, rng.choice(odd)(), allow_pickle=True)
    return file.getvalue()


class Canary:
    """Writes a file if code of a pickle runs."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def canaries(trace: Path) -> list[bytes]:
    """Return files of several formats that run code if they are read carelessly."""
    files = []
    for value in ({"trainable_linearlayer": Canary(trace)}, {"state_dict": {"a": Canary(trace)}}, Canary(trace)):
        for is_zip in (True, False):
            torch.save(value, file := io.BytesIO(), _use_new_zipfile_serialization=is_zip)
            files.append(file.getvalue())
        files.append(pickle.dumps(value))
    np.save(file := io.BytesIO(), np.array([Canary(trace)]), allow_pickle=True)
    files.append(file.getvalue())
    files += [f"{tag} [{trace}]\n".encode() for tag in ("!!python/object/apply:os.mkdir", "models: !!python/name:os")]
    torch.save({}, file := io.BytesIO())
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/constants.pkl", pickle.dumps(Canary(trace)))
    return [*files, file.getvalue()]


# ---- Kinds of files -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of file that the package reads.

    Attributes:
        name: Name of the file.
        valid: Content of a file without fault.
        read: Reads the file as a user would make the package do it, and returns what it means.
        changed: Makes a file of the right format with other values.
        share: Number of files of this kind in proportion to the others; less where reading takes long.
        is_protected: Whether a checksum protects the content, so that a damaged file is refused or means the same.
        state: Returns what a refused file must not change.
    """

    name: str
    valid: bytes
    read: Callable[[Path], object]
    changed: Callable[[bytes, Random], bytes]
    share: float = 1.0
    is_protected: bool = False
    state: Callable[[], object] = lambda: None


def meaning(module: nn.Module | Mapping[str, Any], *facts: object) -> str:
    """Describe tensors and facts exactly, so that they can be compared."""
    state = module.state_dict() if isinstance(module, nn.Module) else module
    digest = hashlib.sha256(repr(facts).encode())
    for name, value in sorted(state.items()):
        digest.update(
            f"{name} {value.dtype} {value.shape}".encode()
            if isinstance(value, Tensor)
            else repr((name, value)).encode()
        )
        if isinstance(value, Tensor):
            digest.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def kinds(
    make_model: Callable[..., AprilGanModel],
    make_lightning_model: Callable[..., AprilGan],
    official_adapter: Path,
    sample_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Kind]:
    root = tmp_path_factory.mktemp("valid")
    return {
        **weight_files(make_model(), make_lightning_model, official_adapter, sample_root, root),
        **clip_files(root),
        **comparison_files(sample_root, root / "comparison"),
        **image_files(root),
        **pretraining_files(root),
        **other_files(root, official_adapter),
    }


def weight_files(
    model: AprilGanModel,
    make: Callable[..., AprilGan],
    official_adapter: Path,
    sample_root: Path,
    root: Path,
) -> dict[str, Kind]:
    trained = make(adapter=None)
    quiet: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "barebones": False, "default_root_dir": root}
    data = MVTecAD(sample_root, category="coins", num_workers=0)
    engine = Engine(max_epochs=1, limit_train_batches=1, **quiet)
    engine.fit(trained, datamodule=data)
    checkpoint = Path(engine.best_model_path).read_bytes()
    few_shot = make(k_shot=1, few_shot_source=sample_root / "coins/train/good", class_name="coin")
    few_shot.prepare()
    few_shot.product.save(root / "product.safetensors")
    own = model.save_adapters(root / "adapters.safetensors").read_bytes()

    def load_adapters(path: Path) -> object:
        before = {name: value.clone() for name, value in model.adapters.state_dict().items()}
        model.load_adapters(path)
        found = meaning(model.adapters.state_dict(), model.trained_on)
        model.adapters.load_state_dict(before)
        return found

    def load_checkpoint(path: Path) -> object:
        loaded = AprilGan.load_from_checkpoint(path)
        return meaning(loaded.state_dict(), loaded.setup_record)

    tested = make(class_name="coin")
    tested.prepare()

    def run_checkpoint(path: Path) -> object:
        Engine(**quiet).predict(tested, data_path=sample_root / "coins/test/good/000.png", ckpt_path=path)
        return meaning(tested.state_dict())

    def switch(path: Path) -> object:
        few_shot.switch_to(Product.load(path))
        return meaning(few_shot.state_dict(), few_shot.setup_record)

    adapters = {"read": load_adapters, "is_protected": True, "state": lambda: meaning(model)}
    return {
        "adapters of the authors": Kind(
            "adapters.pth", official_adapter.read_bytes(), changed=changed_torch, **adapters
        ),
        "adapters": Kind("adapters.safetensors", own, changed=changed_safetensors, **adapters),
        "adapters in a checkpoint": Kind(
            "model.ckpt",
            checkpoint,
            lambda path: meaning(*read_adapters(path)),
            changed_torch,
            is_protected=True,
        ),
        "checkpoint": Kind("model.ckpt", checkpoint, load_checkpoint, changed_torch, 0.3, is_protected=True),
        "checkpoint of a run": Kind(
            "model.ckpt", checkpoint, run_checkpoint, changed_model, 0.1, state=lambda: meaning(tested)
        ),
        "product": Kind(
            "product.safetensors",
            (root / "product.safetensors").read_bytes(),
            switch,
            changed_safetensors,
            is_protected=True,
            state=lambda: meaning(few_shot),
        ),
    }


class Node(nn.Module):
    """A module of modules and parameters, which can be written as a TorchScript archive."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in weights.items():
            first, _, rest = name.partition(".")
            if rest:
                parts.setdefault(first, {})[rest] = value
            else:
                self.register_buffer(first, value)
        for name, part in parts.items():
            self.add_module(name, Node(part))


def clip_files(root: Path) -> dict[str, Kind]:
    (root / "tiny-vit.json").write_text(json.dumps(TINY), encoding="utf-8")
    open_clip.add_model_config(root / "tiny-vit.json")
    made = build_towers("tiny-vit", None, 16, quick_gelu=False).requires_grad_(requires_grad=False)
    weights = {name: value.contiguous() for name, value in made.state_dict().items() if "mask" not in name}
    torch.save(weights, file := io.BytesIO())
    torch.jit.save(torch.jit.script(Node(weights)), archive := io.BytesIO())

    def load_clip(path: Path) -> object:
        return meaning(build_towers("tiny-vit", path, 16, quick_gelu=False).state_dict())

    return {
        "CLIP": Kind("clip.pt", file.getvalue(), load_clip, changed_torch, is_protected=True),
        "CLIP, safetensors": Kind("clip.safetensors", save(weights), load_clip, changed_safetensors),
        "CLIP, TorchScript": Kind("clip.pt", archive.getvalue(), load_clip, changed_script, is_protected=True),
    }


def changed_script(content: bytes, rng: Random) -> bytes:
    """Change a file within a TorchScript archive, and its checksum."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    usual = [name for name in records if records[name]]
    chosen = rng.choice([name for name in usual if name.endswith((".pkl", ".py"))] if rng.random() < 0.8 else usual)
    records[chosen] = damaged(records[chosen], list(records.values()), rng)
    if rng.random() < 0.1:
        del records[rng.choice(usual)]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    return file.getvalue()


def run_row(**values: Any) -> dict[str, Any]:
    metrics = {"image_AUROC": 0.9, "pixel_AUROC": 0.8, "images": 7, "parameters": 1000, "seconds_per_image": 0.1}
    key = {"model": "ours", "data": "MVTecAD", "category": "coins", "shots": "0", "seed": "0"}
    arguments = json.dumps({"data": {"class_path": "MVTecAD", "init_args": {"root": "data"}}})
    texts = {"class_path": "AprilGan", "started": "2026-01-01T00:00:00", "settings": "0", "arguments": arguments}
    return {**key, "status": "done", **metrics, **texts, **values}


def comparison_files(sample_root: Path, folder: Path) -> dict[str, Kind]:
    write_run(folder, run_row())
    write_run(folder, run_row(model="theirs"))
    write_run(folder, run_row(model="theirs", shots="1", status="failed", error="ValueError: none"))
    runs = read_runs(folder)
    name = run_file(folder, [str(run_row()[key]) for key in KEY]).name
    other = run_file(folder, ["theirs", *(str(run_row()[key]) for key in KEY[1:])])

    def read_run_file(path: Path) -> object:
        (path.parent / "runs").mkdir()
        shutil.copy(other, path.parent / "runs" / other.name)
        path.replace(path.parent / "runs" / path.name)
        return read_runs(path.parent).to_csv()

    def report_on(path: Path) -> object:
        read_run_file(path)
        return write_report(path.parent).stat().st_size

    def read_table(path: Path) -> None:
        refuse_other_table(path.parent)

    picture = io.BytesIO()
    Image.new("L", (24, 24), 128).save(picture, "PNG")
    prediction = {key: str(run_row()[key]) for key in KEY} | {"started": run_row()["started"], "image": "a/0.png"}
    prediction |= {"score": 0.9, "label": True, "anomalous": True}

    def show(path: Path) -> object:
        example = path.parent / EXAMPLES / safe_name("MVTecAD", "coins") / safe_name("a", "0.png")
        example.mkdir(parents=True)
        stem = safe_name(*(str(run_row()[key]) for key in KEY))
        for file in ("image.png", "mask.png", f"{stem}.png"):
            (example / file).write_bytes(picture.getvalue())
        (example / f"{stem}.json").write_bytes(dumped(prediction))
        path.replace(example / (f"{stem}.json" if path.suffix == ".json" else "image.png"))
        gallery = read_gallery(path.parent / EXAMPLES, prepare(runs), {"MVTecAD": "MVTecAD"})
        return len(gallery.rows)

    config = {
        "models": {"ours": {"class_path": "AprilGan", "init_args": {"backbone": "ViT-builtin", "k_shot": 0}}},
        "data": {"class_path": "MVTecAD", "init_args": {"root": "sample", "num_workers": 0}},
        "categories": ["coins", "brick"],
        "shots": [0, 2],
        "seeds": [0, 1],
        "output": "comparison",
        "trainer": {"accelerator": "cpu"},
    }

    def configure(path: Path) -> None:
        """Check a configuration. Its data are relative, since anomalib makes folders for data that are missing."""
        if not Path("sample").exists():
            Path("sample").symlink_to(sample_root)
        main(["compare", "--config", str(path), "--output", "comparison"])

    return {
        "configuration": Kind("compare.yaml", yaml.safe_dump(config).encode(), configure, changed_yaml, 0.15),
        "run": Kind(name, (folder / "runs" / name).read_bytes(), read_run_file, changed_json),
        "run in a report": Kind(name, (folder / "runs" / name).read_bytes(), report_on, changed_json, 0.1),
        "table": Kind(TABLE, write_table(folder, runs).read_bytes(), read_table, partial(changed_rows, ",")),
        "example": Kind("prediction.json", dumped(prediction), show, changed_json),
        "example image": Kind("image.png", picture.getvalue(), show, changed_image),
    }


def image_files(root: Path) -> dict[str, Kind]:
    pixels = default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)

    def read_image(path: Path) -> object:
        (image,) = read_references([path], lambda image: image[:, :24, :24])
        return image.tolist()

    def read_mask(path: Path) -> object:
        image = root / "photograph.png"
        return check_image_files([image], {str(image): path})

    Image.fromarray(pixels).save(root / "photograph.png")
    found = {}
    for suffix in ("png", "jpg", "tiff", "bmp", "ppm", "webp", "gif", "jp2"):
        Image.fromarray(pixels).save(root / f"image.{suffix}")
        content = (root / f"image.{suffix}").read_bytes()
        found[f"image, {suffix}"] = Kind(
            f"image.{suffix}", content, read_image, changed_image, 0.7, is_protected=suffix == "png"
        )
    mask = found["image, png"]
    found["mask"] = Kind("mask.png", mask.valid, read_mask, changed_image, 0.7)
    return found


def pretraining_files(root: Path) -> dict[str, Kind]:
    rows = np.zeros(3, pair_type(128))
    rows["images"] = default_rng(0).integers(0, 255, rows["images"].shape)
    rows["kind"], rows["defect"] = "gear", "crack"
    np.save(root / "drawn-128-0-0000-3.npy", rows)
    files = [root / "drawn-128-0-0000-3.npy"]
    schedule = Schedule(1, batch_size=2, learning_rate=1e-3, image_sizes=(96,), seed=0)
    with redirect_stdout(io.StringIO()):
        train(root / "round", Pairs(files), schedule)
    (root / "brick").mkdir()
    shutil.copy(root / "photograph.png", root / "brick/one.png")
    index = "file\tsource\tlicence\tcopyright\nbrick/one.png\tsomewhere\tCC0\tnone\n"

    def read_pairs(path: Path) -> object:
        return Pairs([path]).batch(2, default_rng(0), 96, 8).captions

    def resume(path: Path) -> object:
        with redirect_stdout(io.StringIO()):
            return meaning(train(path.parent, Pairs(files), schedule).towers.state_dict())

    def read_photograph(path: Path) -> object:
        read_picture.cache_clear()
        return read_picture(path)[:24].tolist()

    def read_photographs(path: Path) -> object:
        (path.parent / "brick").mkdir()
        shutil.copy(root / "photograph.png", path.parent / "brick/one.png")
        return [picture._replace(path=Path()) for picture in read_index(path.parent)]

    return {
        "pairs": Kind(files[0].name, files[0].read_bytes(), read_pairs, changed_array),
        "checkpoint of a pre-training": Kind(
            "checkpoint.pt", (root / "round/checkpoint.pt").read_bytes(), resume, changed_torch, 0.05, is_protected=True
        ),
        "index of photographs": Kind("INDEX.tsv", index.encode(), read_photographs, partial(changed_rows, "\t")),
        "photograph": Kind(
            "photograph.png",
            (root / "photograph.png").read_bytes(),
            read_photograph,
            changed_image,
            0.7,
        ),
    }


def other_files(root: Path, official_adapter: Path) -> dict[str, Kind]:
    model: Any = SimpleNamespace(
        origin=SimpleNamespace(fingerprint="0123"), encode_class=lambda name: torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    )
    cosines = dumped({"weights": "0123", "cosines": {"coin": 0.5, "screw": 0.25}})
    listed = f"# chosen\n\n{root / 'photograph.png'}\n{root / 'image.bmp'}\n".encode()

    def clear(path: Path) -> object:
        """Remove the files that an index names, which are in its folder."""
        (path.parent / "images").mkdir()
        (path.parent / "images/a.png").touch()
        strategy = SimpleNamespace(barrier=lambda name: None)
        trainer: Any = SimpleNamespace(global_rank=0, is_global_zero=True, strategy=strategy)
        OutputFolder(path.parent, []).clear(trainer)
        assert (root / "photograph.png").is_file()
        return sorted(file.name for file in path.parent.rglob("*"))

    object_id = published.git_object_id(official_adapter)

    def use_cache(path: Path) -> bytes:
        """Look for adapters in the cache, or take them from a folder in place of the authors' server."""
        (path.parent / "mirror").mkdir()
        shutil.copy(official_adapter, path.parent / "mirror" / path.name)
        os.environ[MIRROR_VARIABLE] = (path.parent / "mirror").as_uri()
        vars(published)["user_cache_path"] = lambda name: path.parent
        PUBLISHED["visa"] = replace(PUBLISHED["visa"], git_object_id=object_id)
        return fetch("visa").read_bytes()

    return {
        "list of images": Kind("list.txt", listed, files_in_source, changed_list),
        "similarities": Kind(
            "text.json", cosines, lambda path: similarities(model, ["coin", "screw"], path), changed_json
        ),
        "index of results": Kind(INDEX, b'"images/a.png"\n"predictions.csv"\n', clear, changed_list),
        "cached adapters": Kind(
            PUBLISHED["visa"].file_name, official_adapter.read_bytes(), use_cache, changed_torch, is_protected=True
        ),
    }


# ---- The test -------------------------------------------------------------------------------------------------------

FEW, MANY = 2, 410
"""Number of files of each kind, where reading is quick."""


@dataclass(frozen=True)
class Outcome:
    """What became of a file.

    Attributes:
        kind: Kind of the file.
        number: Number of the file, which determines its content.
        result: ``"read"``, ``"refused"``, ``"blocked"`` or ``"crashed"``.
        fault: What is wrong with that; empty if nothing is.
    """

    kind: str
    number: int
    result: str
    fault: str = ""


def content_of(kind: Kind, number: int, others: list[bytes]) -> tuple[bytes, bool]:
    """Make a file. Return its content, and whether it is damaged without regard to its format."""
    rng = Random(f"{kind.name} {number}")
    if number == 0:
        return kind.valid, True
    is_damaged = rng.random() < 0.6
    return (damaged(kind.valid, others, rng) if is_damaged else kind.changed(kind.valid, rng)), is_damaged


NAMES = ("argument `", "The product '", "Expected a product", "The checkpoint's weights", "The state")
"""What names the argument that a file was passed as."""


def fault_of_error(error: BaseException, path: Path, printed: str) -> str:
    """Say what is wrong with an error; empty if nothing is."""
    shown = "".join(traceback.format_exception(error))
    message = str(error)
    if [line for line in shown.splitlines() if "weights_only" in line and not line.startswith("  ")]:
        return f"torch's advice is passed on\n{shown}"
    if "allocate memory" in message or "MemoryError" in message:
        return f"too much memory\n{shown}"
    if isinstance(error, SystemExit):
        message = f"{message} {printed}"
        is_ours = "Traceback" not in message
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        is_ours = PACKAGE in Path(frame.filename).parents and (frame.line or "").startswith("raise ")
        is_ours |= isinstance(error, OSError) and error.filename is not None
        if not isinstance(error, ValueError | RuntimeError | OSError):
            return f"an error of another type\n{shown}"
    is_named = path.name in message or any(name in message for name in NAMES)
    if not is_named and not isinstance(error, SystemExit):
        return f"the error does not name the file\n{shown}"
    return "" if is_ours else f"the error is not ours\n{shown}"


def try_file(name: str, kind: Kind, number: int, others: list[bytes], expected: object, trace: Path) -> Outcome:
    """Read a file, and judge what happens."""
    content, is_damaged = content_of(kind, number, others)
    folder = Path.cwd() / "file"
    folder.mkdir()
    path = folder / kind.name
    path.write_bytes(content)
    before, fault, result, printed = kind.state(), "", "read", io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            found = kind.read(path)
        if kind.is_protected and is_damaged and found != expected and content not in others:
            fault = "a damaged file is read as something else"
    except (Exception, SystemExit) as error:
        result = "refused"
        fault = fault_of_error(error, path, printed.getvalue())
        if not fault and kind.state() != before:
            fault = f"the model has changed\n{traceback.format_exc()}"
        if number == 0:
            fault = f"a file without fault is refused\n{traceback.format_exc()}"
    if trace.exists():
        fault = "code of the file was run"
        trace.rmdir()
    if fault:
        path.parent.mkdir(exist_ok=True)
        (Path.cwd() / f"{name} {number}").write_bytes(content)
    shutil.rmtree(folder)
    return Outcome(name, number, result, fault)


def no_network(*_: object) -> None:
    message = "there is no network in this test"
    raise OSError(message)


def try_files(
    kinds: Mapping[str, Kind], work: list[tuple[str, int]], others: list[bytes], trace: Path, report_to: Connection
) -> None:
    """Read files, in a process of its own with little memory."""
    torch.set_num_threads(1)
    vars(socket)["socket"] = no_network
    vars(execution)["do_runs"] = lambda *_: None  # what follows a configuration without fault
    vars(report)["write_report"] = lambda folder: folder
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    expected: dict[str, object] = {}
    for name, number in work:
        kind = kinds[name]
        if name not in expected:
            folder = Path.cwd() / "file"
            folder.mkdir()
            (folder / kind.name).write_bytes(kind.valid)
            with redirect_stdout(io.StringIO()):
                expected[name] = kind.read(folder / kind.name)
            shutil.rmtree(folder)
        report_to.send(try_file(name, kind, number, others, expected[name], trace))


def outcomes(
    kinds: Mapping[str, Kind], work: list[tuple[str, int]], others: list[bytes], trace: Path
) -> Iterator[Outcome]:
    """Read files in other processes. After a file that crashes or blocks a process, another process goes on."""
    while work:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        arguments = (kinds, work, others, trace, theirs)
        process = multiprocessing.get_context("fork").Process(target=try_files, args=arguments)
        process.start()
        theirs.close()
        try:
            while work and ours.poll(SECONDS):
                yield ours.recv()
                work = work[1:]
            if work:
                yield Outcome(*work[0], "blocked", f"reading took more than {SECONDS} seconds")
        except EOFError:
            process.join()
            yield Outcome(*work[0], "crashed", f"the process ended with exit code {process.exitcode}")
        work = work[1:]
        process.kill()
        process.join()
        shutil.rmtree("file", ignore_errors=True)


@pytest.mark.parametrize("number", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_damaged_files_are_read_rightly_or_refused_by_name(
    number: int,
    kinds: dict[str, Kind],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUZZ_FOLDER", str(tmp_path))
    trace = tmp_path / "code was run"
    others = [kind.valid for kind in kinds.values() if len(kind.valid) < 1_000_000] + canaries(trace)
    work = [(name, one) for name, kind in kinds.items() for one in range(max(1, round(number * kind.share)))]
    start = before = time.monotonic()
    found: list[Outcome] = []
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for outcome in outcomes(kinds, work, others, trace):
        seconds[outcome.kind].append(time.monotonic() - before)
        before = time.monotonic()
        found.append(outcome)
    counts = Counter((one.kind, one.result) for one in found)
    with capsys.disabled():
        print(f"\n{len(found)} files in {before - start:.0f} s:")
        for name, times in seconds.items():
            results = ", ".join(f"{count} {result}" for (kind, result), count in counts.items() if kind == name)
            print(f"  {name}: {results}; {sum(times):.1f} s, at most {max(times):.1f} s")
    faults: dict[str, list[Outcome]] = {}
    for one in found:
        if one.fault:
            faults.setdefault(f"{one.kind}: {signature(one.fault)}", []).append(one)
    assert len(found) == len(work)
    assert number < MANY or len(found) > 10_000
    assert not faults, "\n\n".join(
        f"{name}\n(files {', '.join(str(one.number) for one in same[:20])}) {same[0].fault}"
        for name, same in faults.items()
    )


def signature(fault: str) -> str:
    """Shorten a fault to its first line and the place of the error, so that equal faults are shown once."""
    places = [line.strip() for line in fault.splitlines() if line.startswith("  File ")]
    return " ".join([*fault.splitlines()[:1], *places[-1:]])
