# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Checks of image and mask files: files that cannot be read rightly are refused by name, all others are accepted."""

import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from anomalib.data import ImageBatch, MVTecAD, PredictDataset
from anomalib.data.utils import read_image, read_mask
from anomalib.engine import Engine
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from anomalib_aprilgan.integration.image_files import check_image_files


def pixels(height: int = 40, width: int = 30, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(60, 200, (height, width, channels), dtype=np.uint8)


def write(path: Path, size: tuple[int, int] = (30, 40), **options: object) -> Path:
    Image.fromarray(pixels(size[1], size[0])).save(path, **options)
    return path


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[274] = orientation
    return found


def refusal(path: Path, masks: dict[str, str | None] | None = None) -> str:
    with pytest.raises(ValueError, match=r"^Some image files cannot be used") as error:
        check_image_files([path], masks)
    return str(error.value)


# ---- Bits per channel ---------------------------------------------------------------------------------------------


def test_images_of_more_than_8_bits_are_refused_by_name(tmp_path):
    """PIL opens many of them in the mode RGB, which has 8 bits, and anomalib reads them as nearly black or white."""
    colour = pixels().astype(np.uint16)
    alpha = np.full((40, 30, 1), 65535, dtype=np.uint16)
    arrays = {"rgb": colour, "rgba": np.concatenate([colour, alpha], axis=-1), "grey": colour[..., 0]}
    suffixes = {"rgb": (".png", ".tiff", ".ppm"), "rgba": (".png", ".tiff"), "grey": (".png", ".tiff", ".pgm")}
    for factor in (1, 4, 16, 257):  # 8, 10, 12 and 16 bits that are stored in 16
        for name, array in arrays.items():
            for suffix in suffixes[name]:
                path = tmp_path / f"{name}{factor}{suffix}"
                assert cv2.imwrite(str(path), array * factor)
                message = refusal(path)
                assert f"{path} has more than 8 bits per channel (16)" in message
                assert "convert them to 8 bits" in message


def test_images_of_8_bits_or_less_are_accepted(tmp_path):
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK"):
        for suffix in (".png", ".tiff", ".jpg", ".webp", ".bmp", ".ppm"):
            path = tmp_path / f"{mode}{suffix}"
            try:
                Image.fromarray(pixels()).convert(mode).save(path)
            except (OSError, KeyError):
                continue  # the format has no such mode
            assert check_image_files([path]) == {str(path): (30, 40)}


def test_float_images_are_refused(tmp_path):
    path = tmp_path / "float.tiff"
    Image.fromarray(pixels()[..., 0].astype(np.float32)).save(path)
    assert "has more than 8 bits per channel (32)" in refusal(path)


# ---- Size and orientation -----------------------------------------------------------------------------------------


def test_narrow_images_are_accepted(tmp_path):
    for size in ((7, 200), (200, 7), (1, 1), (7, 7)):
        for suffix in (".jpg", ".png"):
            path = write(tmp_path / f"{size[0]}x{size[1]}{suffix}", size)
            assert check_image_files([path]) == {str(path): size}


def test_huge_images_are_refused_with_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for suffix in (".jpg", ".png", ".tiff"):
        message = refusal(write(tmp_path / f"huge{suffix}"))
        assert f"huge{suffix} is too large" in message
        assert "MAX_IMAGE_PIXELS" in message


def test_rotated_photographs_are_refused(tmp_path):
    for orientation in range(2, 9):
        for suffix in (".jpg", ".png", ".webp"):
            path = write(tmp_path / f"{orientation}{suffix}", exif=exif(orientation))
            message = refusal(path)
            assert f"{path} is stored rotated or mirrored (EXIF orientation {orientation})" in message
            assert "exif_transpose" in message
            with Image.open(path) as image:
                ImageOps.exif_transpose(image).save(path)  # the remedy
            check_image_files([path])
    for suffix in (".jpg", ".png", ".webp"):
        check_image_files([write(tmp_path / f"upright{suffix}", exif=exif(1))])


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_that_shows_only_in_the_pixels_is_named(tmp_path, make_lightning_model, sample_root, workers):
    """The checksums of such a PNG are right, but pixels are missing."""
    folder = tmp_path / "images"
    shutil.copytree(sample_root / "coins/test/good", folder)
    path = folder / "001.png"
    header = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for part in (b"IHDR" + header, b"IDAT" + zlib.compress(bytes(100)), b"IEND"):
        content += struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
    path.write_bytes(content)
    model = make_lightning_model(class_name="coins")
    dataset = PredictDataset(folder, transform=model.pre_processor.resize)
    loader = DataLoader(dataset, num_workers=workers, collate_fn=ImageBatch.collate)
    with pytest.raises(ValueError, match=r"001\.png is damaged or no image \(image file is trunc.*replace or remove"):
        quiet_engine(tmp_path / "run").predict(model, dataloaders=loader)


def test_an_orientation_at_the_end_of_a_png_is_found(tmp_path):
    path = write(tmp_path / "late.png")
    content = path.read_bytes()
    chunk = b"eXIf" + exif(6).tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(content[:-12] + chunk + content[-12:])
    assert "EXIF orientation 6" in refusal(path)


def test_rotated_tiff_files_are_accepted_since_pil_turns_them(tmp_path):
    path = write(tmp_path / "image.tiff", exif=exif(6))
    assert check_image_files([path]) == {str(path): (40, 30)}
    assert read_image(path).shape == (30, 40, 3)


# ---- Damage -------------------------------------------------------------------------------------------------------


@pytest.mark.posix
def test_pipes_and_devices_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe.png", tmp_path / "device.png", tmp_path):
        assert f"{path} is no file" in refusal(path)


def test_formats_that_run_other_programs_are_refused(tmp_path):
    """PIL would call Ghostscript, whatever the suffix of the file is."""
    Image.fromarray(pixels()).save(tmp_path / "image.png", format="EPS")
    assert "image.png is of the format EPS. Use PNG, JPEG, " in refusal(tmp_path / "image.png")


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL warns of what it skips
def test_damaged_files_are_refused_or_can_be_read(tmp_path):
    """Three bytes of each header are changed, 40 times per format; nothing else than a refusal may be raised."""
    rng = np.random.default_rng(0)
    refused = 0
    for suffix in (".png", ".jpg", ".tiff", ".webp", ".bmp", ".ppm"):
        path = write(tmp_path / f"image{suffix}")
        whole = path.read_bytes()
        for _ in range(40):
            content = bytearray(whole)
            for place in rng.integers(300, size=3):
                content[place] ^= int(rng.integers(1, 256))
            path.write_bytes(content)
            try:
                check_image_files([path])
            except ValueError as error:
                assert str(path) in str(error)  # noqa: PT017
                refused += 1
            else:
                read_image(path)
    assert refused > 100


def test_up_to_ten_faulty_files_are_named(tmp_path):
    sound = write(tmp_path / "sound.png")
    faulty = [tmp_path / f"faulty{number:02}.png" for number in range(12)]
    for path in faulty:
        path.write_text("no image", encoding="utf-8")
    check_image_files([sound, str(sound)])
    with pytest.raises(ValueError, match="and 2 more") as error:
        check_image_files([sound, *faulty])
    assert [str(path) in str(error.value) for path in faulty] == [True] * 10 + [False] * 2
    assert str(sound) not in str(error.value)


# ---- Masks --------------------------------------------------------------------------------------------------------


def test_masks_are_checked_with_their_images(tmp_path):
    image, mask = write(tmp_path / "image.png"), tmp_path / "mask.png"
    Image.fromarray(pixels()[..., 0]).save(mask)
    whole = mask.read_bytes()
    check_image_files([image], {str(image): str(mask)})
    for content in (b"", whole[: len(whole) // 2], b"no image"):
        mask.write_bytes(content)
        assert f"{mask} is damaged or no image" in refusal(image, {str(image): str(mask)})
    for size in ((40, 30), (15, 20), (30, 41)):
        write(mask, size)
        message = refusal(image, {str(image): str(mask)})
        assert f"the mask {mask} is {size[0]} x {size[1]} pixels (width x height), but its image is 30 x 40" in message
    mask.unlink()
    assert f"the abnormal image {image} has no mask: {mask} does not exist" in refusal(image, {str(image): str(mask)})
    for missing in (None, "", float("nan")):
        assert f"the abnormal image {image} has no mask. Add" in refusal(image, {str(image): missing})


def test_grey_masks_may_have_more_bits(tmp_path):
    """anomalib counts every value above 0, also in 16 bits."""
    image = write(tmp_path / "image.png")
    for number, kind in enumerate((np.uint16, np.float32, np.int32)):
        mask = tmp_path / f"{number}.tiff"
        array = np.zeros((40, 30), dtype=kind)
        array[:20] = 1
        Image.fromarray(array).save(mask)
        check_image_files([image], {str(image): str(mask)})
        assert int(read_mask(mask, as_tensor=True).sum()) == 600


def test_colour_masks_of_16_bits_are_refused(tmp_path):
    image, mask = write(tmp_path / "image.png"), tmp_path / "mask.png"
    cv2.imwrite(str(mask), pixels().astype(np.uint16))
    assert f"{mask} has more than 8 bits" in refusal(image, {str(image): str(mask)})


# ---- Skipping -------------------------------------------------------------------------------------------------------


def quiet_engine(folder: Path, **arguments: Any) -> Engine:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Engine(default_root_dir=folder, **quiet | arguments)


def test_bad_images_are_skipped_if_the_user_asks_for_it(make_lightning_model, sample_root, tmp_path, caplog):
    folder = tmp_path / "shots"
    shutil.copytree(sample_root / "gravel" / "test" / "stain", folder)
    (folder / "000.png").write_bytes(b"nonsense")
    write(folder / "turned.jpg", exif=exif(6))

    with pytest.raises(ValueError, match=r"000\.png .*turned\.jpg"):
        quiet_engine(tmp_path).predict(make_lightning_model(), data_path=folder)
    batches = quiet_engine(tmp_path).predict(make_lightning_model(on_bad_image="skip"), data_path=folder)

    assert [Path(path).name for batch in batches for path in batch.image_path] == ["001.png", "002.png"]
    assert "2 of 4 images are skipped" in caplog.text
    assert "000.png" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_with_bad_masks_are_skipped_in_a_datamodule(
    num_workers, make_lightning_model, sample_root, tmp_path, caplog
):
    root = tmp_path / "data"
    shutil.copytree(sample_root / "gravel", root / "gravel")
    (root / "gravel/ground_truth/stain/001_mask.png").write_bytes(b"nonsense")
    (root / "gravel/test/good/002.png").write_bytes(b"nonsense")
    (root / "gravel/train/good/003.png").write_bytes(b"nonsense")
    datamodule = MVTecAD(root, category="gravel", num_workers=num_workers, eval_batch_size=2)
    model = make_lightning_model(on_bad_image="skip", k_shot=5, visualizer=False)

    (metrics,) = quiet_engine(tmp_path).test(model, datamodule=datamodule, verbose=False)

    assert all(np.isfinite(list(metrics.values())))
    assert len(datamodule.test_data) == 10
    assert not any("003" in file for file in model.reference_files)
    assert len(model.reference_files) == 5
    assert caplog.text.count("2 of 12 images are skipped") == 1, "validation and test split are the same"


def test_bad_references_are_skipped(make_lightning_model, sample_root, tmp_path, caplog):
    good = tmp_path / "good"
    shutil.copytree(sample_root / "gravel/train/good", good)
    for name in ("000.png", "001.png", "002.png"):
        (good / name).write_bytes(b"nonsense")
    model = make_lightning_model(on_bad_image="skip", k_shot=3, few_shot_source=good)
    model.prepare()
    assert {Path(file).name for file in model.reference_files} == {"003.png", "004.png", "005.png"}
    assert "3 images of" in caplog.text


def test_a_run_without_any_usable_image_is_refused(make_lightning_model, tmp_path):
    (tmp_path / "shots").mkdir()
    (tmp_path / "shots/a.png").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"None of the 1 images can be used.*a\.png"):
        quiet_engine(tmp_path).predict(make_lightning_model(on_bad_image="skip"), data_path=tmp_path / "shots")


def test_other_values_than_error_and_skip_are_refused(make_lightning_model):
    with pytest.raises(ValueError, match="`on_bad_image`"):
        make_lightning_model(on_bad_image="ignore")


def test_sound_files_are_read_once_until_they_change(tmp_path, monkeypatch):
    images = [tmp_path / f"{number}.png" for number in range(3)]
    for image in images:
        Image.new("RGB", (30, 40)).save(image)
    opened: list[str] = []
    open_image = Image.open

    def counting(path, *args, **kwargs):
        opened.append(Path(path).name)
        return open_image(path, *args, **kwargs)

    monkeypatch.setattr(Image, "open", counting)
    for _ in range(2):
        assert check_image_files(images) == {str(image): (30, 40) for image in images}
    assert set(opened) == {image.name for image in images}
    opened.clear()
    check_image_files(images)
    assert opened == []
    Image.new("RGB", (50, 60)).save(images[1])
    assert check_image_files(images)[str(images[1])] == (50, 60)
    assert set(opened) == {images[1].name}
    content = images[2].read_bytes()
    images[2].write_bytes(content[:-20])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"2\.png is damaged"):
            check_image_files(images)
    images[2].write_bytes(content)
    check_image_files(images)
