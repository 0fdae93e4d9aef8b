# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Adapters, their files, and conflicts between adapters and a model."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anomalib_aprilgan.files.adapter_files import read_adapters, write_adapters
from anomalib_aprilgan.files.adapter_origin import AdapterOrigin
from anomalib_aprilgan.method.adapters import StageAdapters

ORIGIN = AdapterOrigin(
    backbone="ViT-B-16",
    pretrained="openai",
    fingerprint="0123456789abcdef",
    quick_gelu=False,
    image_size=224,
    layers=(3, 6),
    window=0,
    trained_on=("Visa/candle", "Visa/pcb1"),
)


class RunsCode:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def fresh_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """State dict of two adapters from 6 to 4 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"fc.{number}.{name}": shape for number in (0, 1) for name, shape in (("weight", (4, 6)), ("bias", (4,)))}
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# ---- The layers ---------------------------------------------------------------------------------------------------


def test_each_stage_has_its_own_linear_layer():
    module = StageAdapters(2, width=6, embed_dim=4)
    module.load_state_dict(fresh_weights())
    tokens = [torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    found = module(tokens)
    assert len(found) == 2
    for number, (adapted, stage) in enumerate(zip(found, tokens, strict=True)):
        weight, bias = fresh_weights()[f"fc.{number}.weight"], fresh_weights()[f"fc.{number}.bias"]
        for image in range(3):
            for patch in range(5):
                expected = torch.stack([(row * stage[image, patch]).sum() for row in weight]) + bias
                torch.testing.assert_close(adapted[image, patch], expected / expected.square().sum().sqrt())


def test_another_number_of_stages_is_refused():
    with pytest.raises(ValueError, match="zip"):
        StageAdapters(2, width=6, embed_dim=4)([torch.zeros(1, 5, 6)])


# ---- Files --------------------------------------------------------------------------------------------------------


def test_written_adapters_are_read_unchanged(tmp_path):
    path = write_adapters(tmp_path / "new" / "folder" / "adapters.safetensors", fresh_weights(), ORIGIN)
    weights, origin = read_adapters(str(path))
    assert_same(weights, fresh_weights())
    assert origin == ORIGIN


def test_weights_that_share_memory_or_are_transposed_can_be_written(tmp_path):
    weights = {"fc.0.weight": torch.arange(24.0).reshape(6, 4).T, "fc.0.bias": torch.zeros(4, requires_grad=True)}
    read, _ = read_adapters(write_adapters(tmp_path / "a.safetensors", weights, AdapterOrigin()))
    assert_same(read, weights)


def test_the_authors_format_is_read(tmp_path):
    torch.save({"trainable_linearlayer": fresh_weights()}, tmp_path / "theirs.pth")
    weights, origin = read_adapters(tmp_path / "theirs.pth")
    assert_same(weights, fresh_weights())
    assert origin == AdapterOrigin(quick_gelu=False)


def test_the_recorded_file_of_the_authors_is_read(golden, official_adapter):
    weights, _ = read_adapters(official_adapter)
    assert_same(weights, dict(golden["adapter_before"]))


def test_a_checkpoint_of_the_lightning_model_is_read(tmp_path):
    state = {f"model.adapters.{name}": value for name, value in fresh_weights().items()}
    state |= {"model._extra_state": {"origin": ORIGIN.to_dict()}, "model.text_features": torch.zeros(2, 4)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    weights, origin = read_adapters(tmp_path / "last.ckpt")
    assert_same(weights, fresh_weights())
    assert origin == ORIGIN


@pytest.mark.parametrize("prefix", ["", "adapters."])
def test_a_state_dict_without_origin_is_read(tmp_path, prefix):
    torch.save({prefix + name: value for name, value in fresh_weights().items()}, tmp_path / "bare.pt")
    weights, origin = read_adapters(tmp_path / "bare.pt")
    assert_same(weights, fresh_weights())
    assert origin == AdapterOrigin()


def test_half_precision_becomes_single_precision(tmp_path):
    halves = {name: value.half() for name, value in fresh_weights().items()}
    torch.save(halves, tmp_path / "half.pt")
    weights, _ = read_adapters(tmp_path / "half.pt")
    assert_same(weights, {name: value.float() for name, value in halves.items()})
    assert all(value.dtype == torch.float32 for value in weights.values())


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no existing file") as error:
        read_adapters(tmp_path / "none.pth")
    assert str(tmp_path / "none.pth") in str(error.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.95], ids=lambda share: f"{share:.0%}")
def test_a_truncated_file_is_refused_by_name(tmp_path, suffix, share):
    path = tmp_path / f"adapters{suffix}"
    if suffix == ".safetensors":
        write_adapters(path, fresh_weights(), ORIGIN)
    else:
        torch.save({"trainable_linearlayer": fresh_weights()}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="adapter") as error:
        read_adapters(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ""])
@pytest.mark.parametrize(
    "content",
    [b"<!DOCTYPE html><html>Not found</html>", b"\x00" * 64, b"version https://git-lfs.github.com/spec/v1\n", b"("],
    ids=["html", "zeros", "git-lfs pointer", "bracket"],
)
def test_a_file_of_another_format_is_refused_by_name(tmp_path, suffix, content):
    path = tmp_path / f"adapters{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="adapter") as error:
        read_adapters(path)
    assert str(path) in str(error.value)


def test_a_web_page_is_refused_without_a_warning_about_code(tmp_path):
    """Many download links return a web page instead of the file."""
    (tmp_path / "adapters.pth").write_bytes(b"<!DOCTYPE html><html>Not found</html>")
    with pytest.raises(ValueError, match="adapter") as error:
        read_adapters(tmp_path / "adapters.pth")
    assert "would run code" not in str(error.value)


@pytest.mark.parametrize("zipped", [True, False], ids=["torch.save", "pickle"])
def test_a_file_with_code_is_refused_and_its_code_is_not_run(tmp_path, zipped):
    path, trace = tmp_path / "adapters.pth", tmp_path / "trace"
    content = {"trainable_linearlayer": fresh_weights() | {"fc.2.weight": RunsCode(trace)}}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match="would run code") as error:
        read_adapters(path)
    assert str(path) in str(error.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        torch.zeros(3),
        {},
        {"weight": torch.zeros(4, 6)},
        {"trainable_linearlayer": {"weight": torch.zeros(4, 6)}},
        {"trainable_linearlayer": torch.zeros(4, 6)},
        {"trainable_linearlayer": None},
        {"state_dict": torch.zeros(4, 6)},
        {"state_dict": [1, 2]},
        {"fc.0.weight": torch.zeros(4, 6)},
        {"fc.0.weight": torch.zeros(4, 6), "fc.0.bias": torch.zeros(6)},
        {"fc.0.weight": [1.0], "fc.0.bias": torch.zeros(1)},
        {"fc.0.weight": torch.tensor(1.0), "fc.0.bias": torch.tensor(1.0)},
    ],
    ids=[
        "list",
        "tensor",
        "empty",
        "other names",
        "other names in the authors' format",
        "a tensor in the authors' format",
        "nothing in the authors' format",
        "a tensor as state dict",
        "a list as state dict",
        "no bias",
        "bias of another shape",
        "no tensor",
        "scalars",
    ],
)
def test_wrong_content_is_refused_by_name(tmp_path, content):
    torch.save(content, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match="adapter") as error:
        read_adapters(tmp_path / "wrong.pth")
    assert str(tmp_path / "wrong.pth") in str(error.value)


def test_wrong_names_in_a_safetensors_file_are_named(tmp_path):
    save_file({"visual.proj": torch.zeros(4, 6)}, tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match=r"visual\.proj"):
        read_adapters(tmp_path / "clip.safetensors")


@pytest.mark.parametrize("metadata", ["{", "5", "null"])
def test_damaged_metadata_are_refused_by_name(tmp_path, metadata):
    save_file(fresh_weights(), tmp_path / "a.safetensors", metadata={"anomalib_aprilgan": metadata})
    with pytest.raises(ValueError, match="adapter") as error:
        read_adapters(tmp_path / "a.safetensors")
    assert str(tmp_path / "a.safetensors") in str(error.value)


def test_a_number_of_adapters_that_contradicts_the_metadata_is_refused(tmp_path):
    path = write_adapters(tmp_path / "a.safetensors", fresh_weights(), replace(ORIGIN, layers=(3, 6, 9)))
    with pytest.raises(ValueError, match=r"\(3, 6, 9\), but it contains 2 adapters"):
        read_adapters(path)


@pytest.mark.parametrize("name", ["adapters.pth", "adapters", "adapters.safetensors.bak"])
def test_another_suffix_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(ValueError, match=r"\.safetensors") as error:
        write_adapters(tmp_path / name, fresh_weights(), ORIGIN)
    assert name in str(error.value)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_adapters(tmp_path / "a.safetensors", fresh_weights(), ORIGIN)

    write_bytes = Path.write_bytes

    def stop_halfway(file, content):
        write_bytes(file, content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", stop_halfway)
    with pytest.raises(KeyboardInterrupt):
        write_adapters(path, fresh_weights(seed=1), ORIGIN)
    weights, _ = read_adapters(path)
    assert_same(weights, fresh_weights())
    assert list(tmp_path.iterdir()) == [path], "the unfinished file must be gone"


def test_writing_again_replaces_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    for seed in (0, 1):
        write_adapters(path, fresh_weights(seed), ORIGIN)
    weights, _ = read_adapters(path)
    assert_same(weights, fresh_weights(seed=1))
    assert list(tmp_path.iterdir()) == [path]


# ---- Origin of adapters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sides"),
    [
        ({"backbone": "ViT-L-14"}, ("'ViT-B-16'", "'ViT-L-14'")),
        ({"quick_gelu": True}, ("quick_gelu False", "True")),
        ({"layers": (3, 9)}, ("(3, 6)", "(3, 9)")),
        ({"layers": (3, 6, 9)}, ("(3, 6)", "(3, 6, 9)")),
        ({"fingerprint": "f" * 16}, ("0123456789abcdef", "f" * 16)),
        ({"fingerprint": None, "pretrained": "laion400m_e32"}, ("'openai'", "'laion400m_e32'")),
        ({"fingerprint": None, "pretrained": None}, ("'openai'", "None")),
    ],
    ids=["backbone", "quick_gelu", "layers", "number of layers", "weights", "tag", "random weights"],
)
def test_each_kind_of_conflict_is_named_with_both_sides(change, sides):
    conflicts = ORIGIN.conflicts_with(replace(ORIGIN, **change))
    assert len(conflicts) == 1
    assert all(side in conflicts[0] for side in sides), conflicts[0]


def test_all_conflicts_are_named():
    conflicts = ORIGIN.conflicts_with(replace(ORIGIN, backbone="ViT-L-14", quick_gelu=True, layers=(6, 12)))
    assert len(conflicts) == 3


@pytest.mark.parametrize(
    ("change", "model_change"),
    [
        ({}, {}),
        ({}, {"image_size": 336}),
        ({}, {"window": 112}),
        ({}, {"trained_on": ()}),
        ({}, {"pretrained": "/weights/clip.pt"}),
        ({"fingerprint": None, "pretrained": "/weights/clip.pt"}, {}),
        ({"fingerprint": None}, {"pretrained": "/weights/clip.pt"}),
        (dict.fromkeys(("backbone", "pretrained", "fingerprint", "quick_gelu", "image_size", "layers")), {}),
    ],
    ids=[
        "the same",
        "another image size",
        "with windows",
        "seen nothing yet",
        "same weights from a file",
        "trained with a file",
        "a file of unknown weights",
        "a file that tells nothing",
    ],
)
def test_differences_that_are_no_conflict(change, model_change):
    assert replace(ORIGIN, **change).conflicts_with(replace(ORIGIN, **model_change)) == []


def test_an_origin_is_restored_from_plain_data():
    fields = ORIGIN.to_dict()
    assert all(isinstance(value, str | bool | int | list) for value in fields.values())
    assert AdapterOrigin.from_dict(fields | {"of a later version": 1}) == ORIGIN
    assert AdapterOrigin.from_dict({}) == AdapterOrigin()
