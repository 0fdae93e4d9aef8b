# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The sample data set: reproducible, and laid out as anomalib reads MVTec AD."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from PIL import Image

from anomalib_aprilgan.sample_data import CATEGORIES, DEFECTS, write_sample_data


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def write_small(root: Path, *categories: str, seed: int = 0) -> Path:
    return write_sample_data(root, categories, size=32, train=2, test=1, seed=seed)


def test_the_layout_is_mvtec_ad_s(tmp_path):
    assert write_sample_data(str(tmp_path), ("coins",), size=32, train=2, test=3) == tmp_path
    expected = {f"coins/train/good/{number:03}.png" for number in range(2)}
    expected |= {f"coins/test/good/{number:03}.png" for number in range(3)}
    for defect in DEFECTS:
        for number in range(3):
            expected |= {f"coins/test/{defect}/{number:03}.png", f"coins/ground_truth/{defect}/{number:03}_mask.png"}
    assert set(contents(tmp_path)) == expected


def test_anomalib_reads_it(sample_root):
    datamodule = MVTecAD(root=sample_root, category="brick", train_batch_size=2, eval_batch_size=12, num_workers=0)
    datamodule.setup()
    assert len(datamodule.train_data) == 6
    assert len(datamodule.test_data) == 3 * (1 + len(DEFECTS))
    (batch,) = datamodule.test_dataloader()
    assert batch.image.shape == (12, 3, 64, 64)
    assert int(batch.gt_label.sum()) == 3 * len(DEFECTS)
    assert torch.equal(batch.gt_mask.flatten(1).any(dim=1), batch.gt_label), "a mask for each defect, and only there"


def test_masks_mark_a_part_of_the_image(sample_root):
    masks = sorted(sample_root.rglob("*_mask.png"))
    assert len(masks) == 3 * 3 * len(DEFECTS)
    for path in masks:
        mask = np.asarray(Image.open(path))
        assert mask.shape == (64, 64)
        assert set(np.unique(mask)) == {0, 255}
        assert 0.002 < (mask > 0).mean() < 0.5


@pytest.mark.parametrize("name", list(DEFECTS))
def test_a_defect_changes_what_its_mask_marks(name):
    """The foreign patch and the scratch end at the mask's rim; the stain's is soft."""
    image = Image.fromarray(np.full((64, 64, 3), 128, dtype=np.uint8))
    for seed in range(5):
        found, mask = DEFECTS[name](image, np.random.default_rng(seed))
        assert np.asarray(image).min() == np.asarray(image).max() == 128, "the input must stay as it is"
        changed = (np.asarray(found) != 128).any(axis=-1)
        marked = np.asarray(mask) > 0
        assert changed[marked].mean() > 0.9
        assert changed[~marked].mean() < (0.1 if name == "stain" else 1e-9)


def test_the_same_seed_writes_the_same_files(tmp_path):
    random.seed(1)
    first = contents(write_small(tmp_path / "first", "coins"))
    random.seed(2)
    assert contents(write_small(tmp_path / "second", "coins")) == first


def test_another_seed_writes_other_images(tmp_path):
    first, second = (contents(write_small(tmp_path / str(seed), "coins", seed=seed)) for seed in (0, 1))
    assert set(first) == set(second)
    assert all(first[name] != second[name] for name in first)


def test_images_of_a_category_differ(tmp_path):
    images = [value for name, value in contents(write_small(tmp_path, "coins")).items() if "ground_truth" not in name]
    assert len(set(images)) == len(images)


def test_a_category_does_not_depend_on_the_others(tmp_path):
    alone = contents(write_small(tmp_path / "alone", "gravel"))
    among = contents(write_small(tmp_path / "among", "coins", "gravel"))
    assert {name: value for name, value in among.items() if name.startswith("gravel")} == alone


def test_writing_again_replaces_the_files(tmp_path):
    expected = contents(write_small(tmp_path, "coins"))
    (tmp_path / "coins" / "train" / "good" / "000.png").write_bytes(b"damaged")
    assert contents(write_small(tmp_path, "coins")) == expected


def test_every_category_can_be_written(tmp_path):
    write_small(tmp_path, *CATEGORIES)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(CATEGORIES)
    assert all(Image.open(path).mode == "RGB" for path in tmp_path.rglob("good/*.png"))


@pytest.mark.parametrize("categories", [("coins", "camel"), ()])
def test_an_unknown_category_is_refused_before_anything_is_written(tmp_path, categories):
    with pytest.raises(ValueError, match="categories") as error:
        write_sample_data(tmp_path, categories)
    assert str(categories) in str(error.value)
    assert "'gravel'" in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["size", "train", "test"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_and_numbers_must_be_positive(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"`{name}` to be positive, but got {value}"):
        write_sample_data(tmp_path, ("coins",), **{name: value})
    assert not list(tmp_path.iterdir())
