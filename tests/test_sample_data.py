"""The sample data sets: reproducible, in MVTec AD's folder layout."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from PIL import Image

from anomalib_aprilgan import AuxiliaryDataModule
from anomalib_aprilgan.demo.sample_data import DATA_SETS, write_sample_data

DEFECTS = DATA_SETS["photographs"][1]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def write_small(root: Path, *categories: str, seed: int = 0) -> Path:
    return write_sample_data(root, categories, size=32, train=2, test=1, seed=seed)


def test_the_folder_layout_equals_mvtec_ad(tmp_path: Path) -> None:
    assert write_sample_data(str(tmp_path), ("coins",), size=32, train=2, test=3) == tmp_path
    expected = {f"coins/train/good/{number:03}.png" for number in range(2)}
    expected |= {f"coins/test/good/{number:03}.png" for number in range(3)}
    for defect in DEFECTS:
        for number in range(3):
            expected |= {f"coins/test/{defect}/{number:03}.png", f"coins/ground_truth/{defect}/{number:03}_mask.png"}
    assert set(contents(tmp_path)) == expected


def test_anomalib_reads_it(sample_root: Path) -> None:
    datamodule = MVTecAD(root=sample_root, category="brick", train_batch_size=2, eval_batch_size=12, num_workers=0)
    datamodule.setup()
    assert len(datamodule.train_data) == 6
    assert len(datamodule.test_data) == 3 * (1 + len(DEFECTS))
    (batch,) = datamodule.test_dataloader()
    assert batch.image.shape == (12, 3, 64, 64)
    assert int(batch.gt_label.sum()) == 3 * len(DEFECTS)
    assert torch.equal(batch.gt_mask.flatten(1).any(dim=1), batch.gt_label), "a mask if and only if there is a defect"


def test_adapters_can_be_trained_on_the_auxiliary_data_set(tmp_path: Path) -> None:
    categories, defects = DATA_SETS["auxiliary"]
    write_sample_data(tmp_path, categories[:3], defects, size=64, train=1, test=2)
    datamodule = AuxiliaryDataModule(source=MVTecAD(root=tmp_path, category=categories[0]), num_workers=0)
    datamodule.setup()
    samples = datamodule.train_data.samples
    assert samples.groupby("class_name").size().to_dict() == dict.fromkeys(categories[:3], 2 * (1 + len(defects)))
    assert samples.groupby("class_name").label_index.sum().to_dict() == dict.fromkeys(categories[:3], 2 * len(defects))


def test_held_out_kinds_and_defects_are_not_in_the_training_data() -> None:
    (auxiliary, seen), (held_out, all_defects) = DATA_SETS["auxiliary"], DATA_SETS["held_out"]
    assert not set(auxiliary) & (set(held_out) | set(DATA_SETS["photographs"][0]))
    assert len(set(all_defects) - set(seen)) == 2
    assert len(held_out) >= 8


def test_masks_mark_a_part_of_the_image(sample_root: Path) -> None:
    masks = sorted(sample_root.rglob("*_mask.png"))
    assert len(masks) == 3 * 3 * len(DEFECTS)
    for path in masks:
        mask = np.asarray(Image.open(path))
        assert mask.shape == (64, 64)
        assert set(np.unique(mask)) == {0, 255}
        assert 0.002 < (mask > 0).mean() < 0.5


def test_the_same_seed_writes_the_same_files(tmp_path: Path) -> None:
    random.seed(1)
    first = contents(write_small(tmp_path / "first", "coins", "gear"))
    random.seed(2)
    assert contents(write_small(tmp_path / "second", "coins", "gear")) == first


def test_another_seed_writes_other_images(tmp_path: Path) -> None:
    first, second = (contents(write_small(tmp_path / str(seed), "coins", seed=seed)) for seed in (0, 1))
    assert set(first) == set(second)
    assert all(first[name] != second[name] for name in first)


def test_images_of_a_category_differ(tmp_path: Path) -> None:
    images = [value for name, value in contents(write_small(tmp_path, "coins")).items() if "ground_truth" not in name]
    assert len(set(images)) == len(images)


def test_a_category_does_not_depend_on_the_others(tmp_path: Path) -> None:
    alone = contents(write_small(tmp_path / "alone", "gravel"))
    among = contents(write_small(tmp_path / "among", "coins", "gravel"))
    assert {name: value for name, value in among.items() if name.startswith("gravel")} == alone


def test_writing_again_replaces_the_files(tmp_path: Path) -> None:
    expected = contents(write_small(tmp_path, "coins"))
    (tmp_path / "coins" / "train" / "good" / "000.png").write_bytes(b"damaged")
    assert contents(write_small(tmp_path, "coins")) == expected


def test_every_category_can_be_written(tmp_path: Path) -> None:
    categories = [category for data_set, _ in DATA_SETS.values() for category in data_set]
    write_sample_data(tmp_path, categories, ("scratch",), size=32, train=1, test=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(categories)
    assert all(Image.open(path).mode == "RGB" for path in tmp_path.rglob("good/*.png"))


@pytest.mark.parametrize(
    ("argument", "names", "known"),
    [
        ("categories", ("coins", "camel"), "'gravel'"),
        ("categories", (), "'gravel'"),
        ("defects", ("scratch", "rust"), "'stain'"),
        ("defects", (), "'stain'"),
    ],
)
def test_unknown_names_are_refused_before_anything_is_written(
    tmp_path: Path, argument: str, names: tuple[str, ...], known: str
) -> None:
    with pytest.raises(ValueError, match=argument) as error:
        write_sample_data(tmp_path, **{argument: names})
    assert str(names) in str(error.value)
    assert known in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["size", "train", "test"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_and_numbers_must_be_positive(tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"`{name}` to be positive, but got {value}"):
        write_sample_data(tmp_path, ("coins",), **{name: value})
    assert not list(tmp_path.iterdir())
