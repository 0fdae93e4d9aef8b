"""Auxiliary training data, with the folder layouts of anomalib's data sets."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from anomalib.data import MPDD, AnomalibDataModule, BTech, Folder, MVTecAD, MVTecLOCO, Tabular, Visa
from PIL import Image
from torchvision.transforms.v2 import Resize
from torchvision.transforms.v2.functional import pil_to_tensor

from anomalib_aprilgan import AuxiliaryDataModule
from anomalib_aprilgan.integration.auxiliary_dataset import AuxiliaryBatch, mosaic
from anomalib_aprilgan.integration.pre_processing import EightBitResize

NAMES = ("brick", "coins", "gravel")
DEFECTS = ("scratch", "stain", "wrong_texture")
IMAGES_PER_CATEGORY = 3 * 4  # three of each defect, three normal ones


def mvtec(root: Path, sample: Path) -> AnomalibDataModule:
    shutil.copytree(sample, root / "MVTecAD")
    return MVTecAD(root / "MVTecAD", category="coins")


def mpdd(root: Path, sample: Path) -> AnomalibDataModule:
    shutil.copytree(sample, root / "MPDD")
    return MPDD(root / "MPDD", category="coins")


def visa(root: Path, sample: Path) -> AnomalibDataModule:
    """Make VisA in the layout of anomalib's conversion: all defects are called bad."""
    for name in NAMES:
        source, target = sample / name, root / "visa" / "visa_pytorch" / name
        shutil.copytree(source / "train", target / "train")
        shutil.copytree(source / "test" / "good", target / "test" / "good")
        for folder in (target / "test" / "bad", target / "ground_truth" / "bad"):
            folder.mkdir(parents=True)
        for defect in DEFECTS:
            for path in (source / "test" / defect).iterdir():
                shutil.copy(path, target / "test" / "bad" / f"{defect}{path.stem}.png")
                mask = source / "ground_truth" / defect / f"{path.stem}_mask.png"
                shutil.copy(mask, target / "ground_truth" / "bad" / f"{defect}{path.stem}.png")
    return Visa(root / "visa", category="coins")


def btech(root: Path, sample: Path) -> AnomalibDataModule:
    """Make BTech: normal images are called ok, abnormal ones ko, and masks have the names of their images."""
    for name in NAMES:
        source, target = sample / name, root / "BTech" / name
        shutil.copytree(source / "train" / "good", target / "train" / "ok")
        shutil.copytree(source / "test" / "good", target / "test" / "ok")
        for folder in (target / "test" / "ko", target / "ground_truth" / "ko"):
            folder.mkdir(parents=True)
        for defect in DEFECTS:
            for path in (source / "test" / defect).iterdir():
                shutil.copy(path, target / "test" / "ko" / f"{defect}{path.stem}.png")
                mask = source / "ground_truth" / defect / f"{path.stem}_mask.png"
                shutil.copy(mask, target / "ground_truth" / "ko" / f"{defect}{path.stem}.png")
    return BTech(root / "BTech", category="coins")


TREES = {"MVTecAD": mvtec, "MPDD": mpdd, "Visa": visa, "BTech": btech}


def folder(sample: Path, name: str = "coins", **overrides: object) -> Folder:
    """Make a ``Folder`` datamodule; by default, anomalib uses half of its test images for validation."""
    arguments = {
        "root": sample / name,
        "normal_dir": "train/good",
        "normal_test_dir": "test/good",
        "abnormal_dir": [f"test/{defect}" for defect in DEFECTS],
        "mask_dir": [f"ground_truth/{defect}" for defect in DEFECTS],
    }
    return Folder(name=name, **arguments | overrides)


def set_up(source: AnomalibDataModule | list[AnomalibDataModule], **arguments: object) -> AuxiliaryDataModule:
    datamodule = AuxiliaryDataModule(source=source, **{"num_workers": 0} | arguments)
    datamodule.setup()
    return datamodule


@pytest.mark.parametrize("tree", TREES)
def test_all_images_of_all_categories_are_used(tree: str, tmp_path: Path, sample_root: Path) -> None:
    datamodule = set_up(TREES[tree](tmp_path, sample_root))
    samples = datamodule.train_data.samples
    assert samples.groupby("class_name").size().to_dict() == dict.fromkeys(NAMES, IMAGES_PER_CATEGORY)
    assert samples.groupby("class_name").label_index.sum().to_dict() == dict.fromkeys(NAMES, 9)
    assert datamodule.trained_on == tuple(f"{tree}/{name}" for name in NAMES)
    assert all(f"/{row.class_name}/test/" in row.image_path for row in samples.itertuples())


@pytest.mark.parametrize("tree", TREES)
def test_each_image_has_its_class_name_and_mask(tree: str, tmp_path: Path, sample_root: Path) -> None:
    datamodule = set_up(TREES[tree](tmp_path, sample_root), train_batch_size=36)
    (batch,) = datamodule.train_dataloader()
    assert isinstance(batch, AuxiliaryBatch)
    assert batch.image.shape == (36, 3, 64, 64)
    for path, name, label, mask in zip(batch.image_path, batch.class_name, batch.gt_label, batch.gt_mask, strict=True):
        assert f"/{name}/" in path
        assert bool(mask.any()) == bool(label) == ("good" not in path and "/ok/" not in path)


def test_masks_belong_to_their_images(sample_root: Path) -> None:
    datamodule = set_up(MVTecAD(sample_root, category="brick"))
    dataset = datamodule.train_data
    index = next(i for i, path in enumerate(dataset.samples.image_path) if path.endswith("coins/test/stain/001.png"))
    with Image.open(sample_root / "coins" / "ground_truth" / "stain" / "001_mask.png") as image:
        expected = pil_to_tensor(image)[0] > 0
    assert torch.equal(dataset[index].gt_mask.bool(), expected)


def test_a_list_restricts_the_categories(sample_root: Path) -> None:
    datamodule = set_up(MVTecAD(sample_root, category="coins"), categories=["gravel", "brick"])
    assert set(datamodule.train_data.samples.class_name) == {"brick", "gravel"}


def test_several_sources_are_combined(tmp_path: Path, sample_root: Path) -> None:
    sources = [mvtec(tmp_path, sample_root), btech(tmp_path, sample_root), folder(sample_root, "gravel")]
    datamodule = set_up(sources)
    assert len(datamodule.train_data) == 7 * IMAGES_PER_CATEGORY
    assert datamodule.trained_on[-1] == "gravel/gravel"


def test_a_folder_is_one_category_and_its_whole_test_split_is_used(sample_root: Path) -> None:
    datamodule = set_up(folder(sample_root))
    assert len(datamodule.train_data) == IMAGES_PER_CATEGORY
    assert set(datamodule.train_data.samples.class_name) == {"coins"}


def test_the_source_is_not_changed(sample_root: Path) -> None:
    source = MVTecAD(sample_root, category="coins")
    set_up(source)
    assert source.category == "coins"
    assert not hasattr(source, "train_data")


def test_mosaics_occur_with_their_probability_and_within_a_category(sample_root: Path) -> None:
    torch.manual_seed(0)
    never, always, sometimes = (
        set_up(MVTecAD(sample_root, category="coins"), mosaic_probability=probability).train_data
        for probability in (0.0, 1.0, 0.5)
    )
    assert all(never[index].image.shape == (3, 64, 64) for index in range(12))
    assert all(always[index].image.shape == (3, 128, 128) for index in range(12))
    sizes = [sometimes[index].image.shape[-1] for index in range(36)]
    assert 8 < sizes.count(128) < 28
    # Each tile of a mosaic equals a test image of the category.
    tests = {path.name: path for path in (sample_root / "brick" / "test").rglob("*.png")}
    assert tests
    brick = [never[index].image for index in range(len(never)) if never[index].class_name == "brick"]
    item = next(always[index] for index in range(36) if always.samples.iloc[index].class_name == "brick")
    for row, column in ((0, 0), (0, 64), (64, 0), (64, 64)):
        tile = item.image[:, row : row + 64, column : column + 64]
        assert any(torch.equal(tile, image) for image in brick)
    assert bool(item.gt_label) == bool(item.gt_mask.any())
    assert torch.equal(always[5].image, always[5].image)  # the tiles depend only on seed, epoch and index
    before = always[5].image
    always.epoch = 1
    assert not torch.equal(always[5].image, before)


def test_a_mosaic_consists_of_four_images_and_masks_in_row_major_order(sample_root: Path) -> None:
    items = [set_up(folder(sample_root)).train_data[index] for index in (0, 1, 2, 3)]
    items[2].image, items[2].gt_mask = items[2].image[:, :50, :40], items[2].gt_mask[:50, :40]  # another size
    image, mask = mosaic(items)
    assert image.shape == (3, 128, 128)
    assert mask.shape == (128, 128)
    for item, row, column in ((items[0], 0, 0), (items[1], 0, 64), (items[3], 64, 64)):
        assert torch.equal(image[:, row : row + 64, column : column + 64], item.image)
        assert torch.equal(mask[row : row + 64, column : column + 64], item.gt_mask)


def test_the_order_depends_only_on_seed_and_epoch(sample_root: Path) -> None:
    datamodule = set_up(MVTecAD(sample_root, category="coins"), seed=3)

    def order(epoch: int) -> list[str]:
        torch.rand(epoch + 5)  # changes the global random state
        loader = datamodule.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # a sampler of ours
        return [path for batch in loader for path in batch.image_path]

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert sorted(order(0)) == sorted(order(1))


def test_validation_data_are_not_used_for_training(sample_root: Path) -> None:
    source = MVTecAD(sample_root, category="coins")
    datamodule = set_up(source, categories=["coins"], validation=MVTecAD(sample_root, category="gravel"))
    batches = list(datamodule.val_dataloader())
    assert {name for batch in batches for name in batch.class_name} == {"gravel"}
    assert sum(len(batch.image) for batch in batches) == IMAGES_PER_CATEGORY
    assert not any("gravel" in path for path in datamodule.train_data.samples.image_path)
    assert set_up(source).val_dataloader() == []


def test_augmentations_are_applied_to_image_and_mask(sample_root: Path) -> None:
    datamodule = set_up(folder(sample_root), train_augmentations=Resize((32, 48)))
    item = datamodule.train_data[0]
    assert item.image.shape == (3, 32, 48)
    assert item.gt_mask.shape == (32, 48)


def test_a_source_without_masks_is_refused(tmp_path: Path, sample_root: Path) -> None:
    with pytest.raises(ValueError, match="mask for each abnormal image"):
        set_up(folder(sample_root, mask_dir=None))
    source = mvtec(tmp_path, sample_root)
    shutil.rmtree(tmp_path / "MVTecAD" / "brick" / "ground_truth")
    with pytest.raises(ValueError, match=r"category 'brick' of MVTecAD.*mask"):
        set_up(source)
    incomplete = btech(tmp_path, sample_root)
    (tmp_path / "BTech" / "coins" / "ground_truth" / "ko" / "stain000.png").unlink()
    with pytest.raises(ValueError, match="1 of 9 in category 'coins' of BTech have none"):
        set_up(incomplete)


def test_a_source_without_anomalies_is_refused(tmp_path: Path, sample_root: Path) -> None:
    source = mvtec(tmp_path, sample_root)
    for name in NAMES:
        shutil.rmtree(tmp_path / "MVTecAD" / name / "ground_truth")
        for defect in DEFECTS:
            shutil.rmtree(tmp_path / "MVTecAD" / name / "test" / defect)
    with pytest.raises(ValueError, match="abnormal images in its test split, but MVTecAD has none"):
        set_up(source)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"categories": ["brick", "bottle"]}, r"\['brick', 'coins', 'gravel'\], but got \['bottle'\]"),
        ({"categories": []}, "`categories`"),
        ({"categories": "brick"}, "`categories`"),
        ({"mosaic_probability": 1.5}, "`mosaic_probability`"),
        ({"mosaic_probability": -0.1}, "`mosaic_probability`"),
    ],
)
def test_invalid_arguments_are_named(arguments: dict[str, object], message: str, sample_root: Path) -> None:
    with pytest.raises(ValueError, match=message):
        set_up(MVTecAD(sample_root, category="coins"), **arguments)


@pytest.mark.parametrize("source", [None, [], "MVTecAD"])
def test_a_source_must_be_a_datamodule(source: object) -> None:
    with pytest.raises(ValueError, match="`source`"):
        AuxiliaryDataModule(source=source)


def test_a_category_that_is_not_on_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'bottle' of MVTecAD"):
        set_up(MVTecAD(tmp_path / "nowhere", category="bottle"))


def test_an_image_stays_abnormal_if_its_mask_vanishes_by_resizing(tmp_path: Path, sample_root: Path) -> None:
    source = mvtec(tmp_path, sample_root)
    path = tmp_path / "MVTecAD" / "coins" / "ground_truth" / "stain" / "000_mask.png"
    mask = Image.new("L", (64, 64))
    mask.putpixel((3, 3), 255)
    mask.save(path)
    dataset = set_up(source, train_augmentations=EightBitResize(16)).train_data
    index = next(i for i, path in enumerate(dataset.samples.image_path) if path.endswith("coins/test/stain/000.png"))
    assert not dataset[index].gt_mask.any()
    assert dataset[index].gt_label == 1


# ---- pandas ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(int(pd.__version__.split(".")[0]) >= 3, reason="pyproject.toml excludes pandas 3 because of this")
def test_datamodules_that_fail_with_pandas_3_work(sample_root: Path, tmp_path: Path) -> None:
    source, target = sample_root / "coins", tmp_path / "loco" / "juice_bottle"
    for split in ("train", "validation", "test"):
        shutil.copytree(source / "train" / "good", target / split / "good")
    shutil.copytree(source / "test" / "scratch", target / "test" / "logical_anomalies")
    for path in (source / "ground_truth" / "scratch").iterdir():
        folder = target / "ground_truth" / "logical_anomalies" / path.name.removesuffix("_mask.png")
        folder.mkdir(parents=True)
        shutil.copy(path, folder / "000.png")
    normal, abnormal = sorted((source / "train" / "good").iterdir()), sorted((source / "test" / "scratch").iterdir())
    rows = [{"image_path": str(path), "label_index": 0, "split": "train", "mask_path": ""} for path in normal]
    for path in abnormal:
        mask = source / "ground_truth" / "scratch" / f"{path.stem}_mask.png"
        rows.append({"image_path": str(path), "label_index": 1, "split": "test", "mask_path": str(mask)})
    for datamodule in (
        MVTecLOCO(tmp_path / "loco", category="juice_bottle"),
        Tabular("coins", pd.DataFrame(rows), root=sample_root, val_split_mode="same_as_test"),
    ):
        datamodule.setup()
        masks = [item.gt_mask for item in iter(datamodule.test_data) if item.gt_label]
        assert len(masks) == len(abnormal)
        assert all(mask.any() for mask in masks)
