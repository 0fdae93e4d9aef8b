# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Reference images: finding, drawing and reading them, and errors that name the files."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from PIL import Image
from torchvision.transforms.v2 import Identity

from anomalib_aprilgan.integration.pre_processing import AprilGanPreProcessor
from anomalib_aprilgan.integration.references import draw, files_in_source, normal_training_files, read_references


def noise(height: int = 40, width: int = 30, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def write_image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed=seed)).save(path)
    return path


# ---- Finding ------------------------------------------------------------------------------------------------------


def test_a_folder_is_searched_with_its_subfolders(tmp_path):
    names = ["b.png", "a.JPG", "sub/c.bmp", "sub/deeper/d.tiff"]
    expected = sorted(write_image(tmp_path / name) for name in names)
    (tmp_path / "notes.txt").write_text("a.JPG", encoding="utf-8")
    (tmp_path / "folder.png").mkdir()
    assert files_in_source(tmp_path) == expected
    assert files_in_source(str(tmp_path)) == expected


def test_the_source_may_be_one_image(tmp_path):
    path = write_image(tmp_path / "one.png")
    assert files_in_source(path) == [path]


def test_a_text_file_lists_images(tmp_path):
    """Relative paths start from the folder of the list, comments and empty lines are ignored, the order is kept."""
    relative, absolute = write_image(tmp_path / "images" / "a b.png"), write_image(tmp_path / "elsewhere" / "c.png")
    source = tmp_path / "references.txt"
    source.write_text(f"# normal images\n\n  {absolute}\nimages/a b.png  \n   # the end\n", encoding="utf-8")
    assert files_in_source(source) == [absolute, relative]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_lists_may_have_any_unicode_encoding(tmp_path, encoding):
    """Windows programs write a byte-order mark, and some write UTF-16."""
    names = ["Prüfling ä.png", "图像.png", "c d.png"]
    expected = [write_image(tmp_path / "Maße und 尺寸" / name) for name in names]
    lines = "".join(f"Maße und 尺寸/{name}\r\n" for name in names)
    mark = "\ufeff" if encoding.endswith("e") else ""
    (tmp_path / "Liste ü.txt").write_bytes((mark + lines).encode(encoding))
    assert files_in_source(tmp_path / "Liste ü.txt") == expected


def test_a_list_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "list.txt").write_bytes("Prüfling.png".encode("cp1252"))
    with pytest.raises(ValueError, match="UTF-8"):
        files_in_source(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("folders", "advice"),
    [
        (["train/good", "test/good", "test/crack", "ground_truth/crack"], "train/good"),
        (["train/good", "test/crack"], "train/good"),
        (["train/ok", "test/ko"], "train/ok"),
        (["bottle/train/good", "bottle/ground_truth/crack"], "bottle/train/good"),
        (["good", "crack"], "good"),
        (["Normal", "Anomaly"], "Normal"),
        (["images", "masks"], ""),
        (["images", "images/Ground Truth"], ""),
    ],
)
def test_a_folder_with_masks_or_defects_is_refused(tmp_path, folders, advice):
    for folder in folders:
        write_image(tmp_path / folder / "000.png")
    with pytest.raises(ValueError, match="`few_shot_source`") as error:
        files_in_source(tmp_path)
    assert ("for instance" in str(error.value)) == bool(advice)
    assert repr(str(tmp_path / advice)) in str(error.value)


@pytest.mark.parametrize("folders", [["train/good"], ["monday", "tuesday"], ["good/left", "good/right"], ["test"]])
def test_other_subfolders_are_searched(tmp_path, folders):
    expected = [write_image(tmp_path / folder / "000.png") for folder in folders]
    assert files_in_source(tmp_path) == expected


def test_relative_paths_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    path = write_image(tmp_path / "lists" / "a.png")
    (tmp_path / "lists" / "references.txt").write_text("a.png\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = files_in_source(os.path.relpath(tmp_path / "lists" / "references.txt"))
    assert [file.resolve() for file in found] == [path.resolve()]


def test_a_missing_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"few_shot_source.*does not exist") as error:
        files_in_source(tmp_path / "none")
    assert str(tmp_path / "none") in str(error.value)


def test_a_list_of_missing_files_is_refused(tmp_path):
    write_image(tmp_path / "a.png")
    (tmp_path / "references.txt").write_text("a.png\nb.png\nc.png\n", encoding="utf-8")
    with pytest.raises(ValueError, match="do not exist") as error:
        files_in_source(tmp_path / "references.txt")
    message = str(error.value)
    assert str(tmp_path / "references.txt") in message
    assert str(tmp_path / "b.png") in message
    assert str(tmp_path / "c.png") in message
    assert str(tmp_path / "a.png") not in message


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_an_empty_source_is_refused(tmp_path, kind):
    source = tmp_path / "source"
    if kind == "folder":
        source.mkdir()
        (source / "notes.md").write_text("no images", encoding="utf-8")
    else:
        source.write_text("# nothing yet\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match="found none") as error:
        files_in_source(source)
    assert str(source) in str(error.value)


def test_a_file_of_another_format_is_refused(tmp_path):
    (tmp_path / "references.npz").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="is none of these") as error:
        files_in_source(tmp_path / "references.npz")
    assert str(tmp_path / "references.npz") in str(error.value)


def test_the_normal_images_of_a_training_split_are_listed(sample_root):
    datamodule = MVTecAD(root=sample_root, category="coins", num_workers=0)
    datamodule.setup()
    files = normal_training_files(datamodule)
    assert sorted(files) == sorted((sample_root / "coins" / "train" / "good").glob("*.png"))
    assert files == [Path(path) for path in datamodule.train_data.samples.image_path]


def test_abnormal_images_of_a_training_split_are_ignored(sample_root):
    datamodule = MVTecAD(root=sample_root, category="coins", num_workers=0)
    datamodule.setup()
    datamodule.train_data = datamodule.test_data
    assert {path.parent.name for path in normal_training_files(datamodule)} == {"good"}


def test_a_datamodule_without_training_split_has_no_files(sample_root):
    assert normal_training_files(MVTecAD(root=sample_root, category="coins", num_workers=0)) == []


# ---- Drawing ------------------------------------------------------------------------------------------------------

FILES = [Path(f"{number}.png") for number in range(20)]


def test_no_file_is_drawn_twice():
    for seed in range(20):
        assert len(set(draw(FILES, 15, seed))) == 15
    assert sorted(draw(FILES, 20, seed=0)) == sorted(FILES)


def test_a_draw_depends_only_on_the_seed():
    expected = draw(FILES, 4, seed=7)
    torch.manual_seed(1)
    assert draw(FILES, 4, seed=7) == expected
    assert len({tuple(draw(FILES, 4, seed)) for seed in range(10)}) > 5


def test_a_larger_draw_contains_a_smaller_one():
    for seed in range(5):
        assert draw(FILES, 4, seed)[:2] == draw(FILES, 2, seed)


def test_each_file_can_be_drawn():
    assert {path for seed in range(100) for path in draw(FILES, 2, seed)} == set(FILES)


def test_a_draw_does_not_change_the_global_random_states():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    draw(FILES, 4, seed=0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


def test_too_few_files_are_refused():
    with pytest.raises(ValueError, match=r"k_shot=21 normal reference images, but there are 20"):
        draw(FILES, 21, seed=0)


# ---- Reading ------------------------------------------------------------------------------------------------------


def test_references_are_read_in_order_and_unchanged(tmp_path):
    paths = [write_image(tmp_path / f"{seed}.png", seed) for seed in (3, 1, 2)]
    found = read_references(paths, Identity())
    assert type(found) is torch.Tensor
    expected = np.stack([noise(seed=seed) for seed in (3, 1, 2)])
    torch.testing.assert_close(found, torch.from_numpy(expected).permute(0, 3, 1, 2) / 255)


def test_references_are_read_like_test_images(tmp_path, sample_root):
    """The same file as reference and as test image must give the same tensor."""
    datamodule = MVTecAD(root=sample_root, category="coins", num_workers=0)
    datamodule.setup()
    transform = AprilGanPreProcessor(40).transform
    expected = torch.stack([transform(datamodule.test_data[index].image) for index in (0, 4)])
    paths = [Path(datamodule.test_data.samples.image_path[index]) for index in (0, 4)]
    torch.testing.assert_close(read_references(paths, transform), expected.as_subclass(torch.Tensor))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("L", noise()[..., :1].repeat(3, axis=-1)),
        ("RGBA", noise(channels=4)[..., :3]),
        ("1", None),
        ("P", None),
        ("LA", None),
        ("CMYK", None),
    ],
)
def test_images_of_other_modes_are_read(tmp_path, mode, expected):
    array = {"L": noise()[..., 0], "RGBA": noise(channels=4)}.get(mode, noise())
    image = Image.fromarray(array)
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    (image if image.mode == mode else image.convert(mode)).save(path)
    found = read_references([path], Identity())
    assert found.shape == (1, 3, 40, 30)
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.std() > 0.05, "the image has turned into one colour"
    if expected is not None:
        torch.testing.assert_close(found[0], torch.from_numpy(expected.copy()).permute(2, 0, 1) / 255)


def test_images_of_odd_and_different_sizes_are_read(tmp_path):
    paths = []
    for height, width in ((1, 1), (37, 53), (200, 11)):
        paths.append(tmp_path / f"{height}.png")
        Image.fromarray(noise(height, width)).save(paths[-1])
    found = read_references(paths, AprilGanPreProcessor(16).transform)
    assert found.shape == (3, 3, 16, 16)
    assert found.isfinite().all()


def write_text(path: Path) -> Path:
    path = path.with_suffix(".png")
    path.write_text("no image", encoding="utf-8")
    return path


def write_nothing(path: Path) -> Path:
    path = path.with_suffix(".jpg")
    path.touch()
    return path


def write_truncated_png(path: Path) -> Path:
    path = write_image(path.with_suffix(".png"))
    path.write_bytes(path.read_bytes()[:1000])
    return path


def write_truncated_jpeg(path: Path) -> Path:
    """Write a JPEG with a complete header, so that only decoding fails."""
    path = write_image(path.with_suffix(".jpg"))
    path.write_bytes(path.read_bytes()[:-500])
    return path


def write_corrupt_png(path: Path) -> Path:
    path = write_image(path.with_suffix(".png"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    return path


def write_deep_grey(path: Path) -> Path:
    path = path.with_suffix(".png")
    Image.fromarray(noise()[..., 0].astype(np.uint16) * 257).save(path)
    return path


def write_deep_tiff(path: Path) -> Path:
    path = path.with_suffix(".tiff")
    Image.fromarray(noise()[..., 0].astype(np.float32)).save(path)
    return path


def write_no_file(path: Path) -> Path:
    return path.with_suffix(".png")


@pytest.mark.parametrize(
    "write",
    [
        write_text,
        write_nothing,
        write_truncated_png,
        write_truncated_jpeg,
        write_corrupt_png,
        write_deep_grey,
        write_deep_tiff,
        write_no_file,
    ],
)
def test_unusable_images_are_refused_by_name(tmp_path, write):
    sound, path = write_image(tmp_path / "sound.png"), write(tmp_path / "faulty")
    with pytest.raises(ValueError, match=r"replace or remove it|convert them to 8 bits") as error:
        read_references([sound, path], Identity())
    assert str(path) in str(error.value)
    assert str(sound) not in str(error.value)


def test_all_unusable_references_are_named_together(tmp_path):
    paths = [write_image(tmp_path / "sound.png"), write_deep_grey(tmp_path / "deep"), write_text(tmp_path / "text")]
    with pytest.raises(ValueError, match=r"deep\.png.*text\.png") as error:
        read_references(paths, Identity())
    assert "sound.png" not in str(error.value)


def test_a_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert files_in_source("~/a.png") == [tmp_path / "a.png"]
