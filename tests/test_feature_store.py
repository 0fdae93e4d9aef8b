# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Stored features: found only for what determines them, never damaged, within a limit; and the runs that use them."""

import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import MVTecAD, PredictDataset
from lightning.pytorch import seed_everything
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.v2 import RandomHorizontalFlip

from anomalib_aprilgan import AprilGan, AprilGanModel, AuxiliaryDataModule
from anomalib_aprilgan.cli import main
from anomalib_aprilgan.files import feature_files
from anomalib_aprilgan.files.feature_files import FeatureFiles
from anomalib_aprilgan.files.whole_files import UNFINISHED
from anomalib_aprilgan.integration.pre_processing import EightBitResize
from anomalib_aprilgan.integration.quiet_engine import quiet_engine
from anomalib_aprilgan.method.clip import Clip
from anomalib_aprilgan.method.feature_store import FeatureStore

CONTENT = {"embedding": torch.arange(4.0).half(), "stage_2": torch.arange(8.0).half().reshape(2, 4)}
SIZE = 24
"""Bytes of the tensors in CONTENT."""


def file_of(folder: Path, name: str = "one") -> Path:
    return folder / "group" / f"{name}.safetensors"


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


# ---- Files ----------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read(tmp_path):
    files = FeatureFiles(tmp_path / "new" / "folder")
    assert files.read("group", "one") is None
    assert files.write("group", "one", CONTENT, {"seconds": "0.5"})
    tensors, metadata = FeatureFiles(files.folder).read("group", "one")
    assert_same(tensors, CONTENT)
    assert metadata == {"seconds": "0.5"}
    (group,) = files.groups()
    assert (group.name, group.files) == ("group", 1)
    assert abs(group.used - time.time()) < 60


def test_a_file_with_any_changed_byte_counts_as_missing(tmp_path):
    files = FeatureFiles(tmp_path)
    files.write("group", "one", CONTENT, {"seconds": "0.5"})
    path = file_of(tmp_path)
    whole = path.read_bytes()
    padding = {number for number in range(8, len(whole) - SIZE) if whole[number : number + 1] == b" "}
    for number in set(range(len(whole))) - padding:  # spaces of the header have no meaning
        path.write_bytes(whole[:number] + bytes([whole[number] ^ 1]) + whole[number + 1 :])
        stored = files.read("group", "one")
        assert stored is None or (stored[1] == {"seconds": "0.5"} and stored[0].keys() == CONTENT.keys()), number
        if stored is not None:
            assert_same(stored[0], CONTENT)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert files.read("group", "one") is None
    path.write_bytes(whole)
    assert files.read("group", "one") is not None


@pytest.mark.parametrize("kind", ["of another image", "of another program", "a folder"])
def test_a_foreign_file_counts_as_missing_and_is_replaced(tmp_path, kind):
    files = FeatureFiles(tmp_path)
    files.write("group", "other", CONTENT, {})
    if kind == "of another image":
        file_of(tmp_path, "other").rename(file_of(tmp_path))
    elif kind == "of another program":
        save_file(CONTENT, file_of(tmp_path))
    else:
        file_of(tmp_path).mkdir()
    assert files.read("group", "one") is None
    assert files.write("group", "one", CONTENT, {}) is (kind != "a folder")
    assert (files.read("group", "one") is None) is (kind == "a folder")


def test_the_oldest_files_make_room_for_new_ones(tmp_path):
    size = _written_size(tmp_path / "measured")
    earlier = FeatureFiles(tmp_path, limit=10**6)
    for number in range(8):
        earlier.write("group", f"old{number}", CONTENT, {})
        os.utime(file_of(tmp_path, f"old{number}"), (1000 + number, 1000 + number))
    assert earlier.read("group", "old0") is not None  # now it is the one that was used last
    files = FeatureFiles(tmp_path, limit=8 * size)
    assert all(files.write("group", f"new{number}", CONTENT, {}) for number in range(4))
    names = {path.stem for path in (tmp_path / "group").iterdir()}
    assert {f"new{number}" for number in range(4)} | {"old0"} <= names
    assert "old1" not in names
    assert sum(path.stat().st_size for path in (tmp_path / "group").iterdir()) <= 8 * size


def test_what_a_run_has_written_stays_when_the_limit_is_reached(tmp_path, caplog):
    size = _written_size(tmp_path / "measured")
    files = FeatureFiles(tmp_path / "features", limit=3 * size)
    written = [files.write("group", str(number), CONTENT, {}) for number in range(6)]
    assert written == [True] * 3 + [False] * 3
    assert files.is_full
    assert [files.read("group", str(number)) is not None for number in range(6)] == written
    assert len([record for record in caplog.records if "No more features are stored" in record.message]) == 1


def _written_size(folder: Path) -> int:
    FeatureFiles(folder).write("group", "0", CONTENT, {})
    return file_of(folder, "0").stat().st_size


def test_a_full_disk_ends_storing_but_not_the_run(small_disk, caplog, monkeypatch):
    monkeypatch.setattr(feature_files, "RESERVE", -(10**9))  # so that the disk itself ends the writing
    files = FeatureFiles(small_disk / "features")
    large = {"embedding": torch.zeros(200_000).half()}
    written = [files.write("group", str(number), large, {}) for number in range(5)]
    assert written == sorted(written, reverse=True)
    assert True in written
    assert False in written
    assert files.is_full
    assert "could not be written" in caplog.text
    assert all((files.read("group", str(number)) is not None) == done for number, done in enumerate(written))


def test_a_small_disk_ends_storing_before_it_is_full(small_disk):
    files = FeatureFiles(small_disk / "features")  # less than the reserve is free
    assert not files.write("group", "one", CONTENT, {})


WRITER = """
import sys, torch
from pathlib import Path
from anomalib_aprilgan.files.feature_files import FeatureFiles
files = FeatureFiles(Path(sys.argv[1]))
for turn in range(30):
    for number in range(5):
        content = {"embedding": torch.full((3000,), float(number)).half()}
        assert files.write("group", str(number), content, {})
        stored = files.read("group", str(number))
        assert stored is not None and bool((stored[0]["embedding"] == number).all())
"""


def test_several_processes_share_a_folder(tmp_path):
    script = tmp_path / "writer.py"
    script.write_text(WRITER, encoding="utf-8")
    features = tmp_path / "features"
    processes = [subprocess.Popen([sys.executable, script, features]) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert [path.name for path in features.iterdir()] == ["group"]  # nothing unfinished is left
    assert len(list((features / "group").iterdir())) == 5


@pytest.mark.parametrize("value", ["many", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number_is_refused(monkeypatch, tmp_path, value):
    monkeypatch.setenv("ANOMALIB_APRILGAN_FEATURES_GB", value)
    with pytest.raises(ValueError, match=rf"ANOMALIB_APRILGAN_FEATURES_GB.*got '{value}'"):
        FeatureFiles(tmp_path)


def test_clearing_deletes_features_and_nothing_else(tmp_path):
    files = FeatureFiles(tmp_path)
    files.write("group", "one", CONTENT, {})
    files.write("other", "one", CONTENT, {})
    (tmp_path / "other" / "notes.txt").write_text("mine", encoding="utf-8")
    assert files.clear() > 2 * SIZE
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["other", "other/notes.txt"]


# ---- Features -------------------------------------------------------------------------------------------------------


class PassedImages:
    """Counts the images that pass through a tower."""

    def __init__(self, clip: Clip) -> None:
        self.number = 0
        conv1 = clip.visual.conv1
        self._forward, conv1.forward = conv1.forward, self._add  # with hooks, nothing is stored

    def _add(self, images: Tensor) -> Tensor:
        self.number += len(images)
        return self._forward(images)

    def pop(self) -> int:
        number, self.number = self.number, 0
        return number


@pytest.fixture
def model(make_model: Callable[..., AprilGanModel]) -> AprilGanModel:
    model = make_model()
    model.setup("cable")
    return model


def images_of(number: int, seed: int = 0) -> Tensor:
    return torch.randn(number, 3, 96, 96, generator=torch.Generator().manual_seed(seed)).clamp(-2, 2)


def test_found_features_equal_computed_ones(model, tmp_path):
    images = images_of(4)
    exact = model.clip.encode_image(images, model.layers)
    counted = PassedImages(model.clip)
    model.clip.store = FeatureStore(FeatureFiles(tmp_path))
    first = model.clip.encode_image(images, model.layers)
    assert counted.pop() == 4
    again = model.clip.encode_image(images.flip(0), model.layers)
    assert counted.pop() == 0
    assert torch.equal(again.embedding.flip(0), first.embedding)
    for stage in model.layers:
        assert torch.equal(again.tokens[stage].flip(0), first.tokens[stage])
        assert torch.equal(first.tokens[stage], exact.tokens[stage].half().float())
    assert (model.clip.store.found, model.clip.store.computed) == (4, 4)


def test_only_new_images_of_a_batch_are_encoded_each_once(model, tmp_path):
    images, others = images_of(3), images_of(2, seed=1)
    model.clip.store = FeatureStore(FeatureFiles(tmp_path))
    model.clip.encode_image(images, model.layers)
    counted = PassedImages(model.clip)
    mixed = torch.cat([others[:1], images[:2], others[:1], others[1:]])
    found = model.clip.encode_image(mixed, model.layers)
    assert counted.pop() == 2
    model.clip.store = None
    expected = model.clip.encode_image(mixed, model.layers)
    torch.testing.assert_close(found.embedding, expected.embedding, rtol=2e-3, atol=2e-3)
    for stage in model.layers:
        torch.testing.assert_close(found.tokens[stage], expected.tokens[stage], rtol=2e-3, atol=2e-3)


def test_features_of_more_stages_are_added(model, tmp_path):
    images = images_of(2)
    model.clip.store = FeatureStore(FeatureFiles(tmp_path))
    counted = PassedImages(model.clip)
    for stages, passed in (((1, 2), 2), ((2, 3), 2), ((1, 2, 3), 0), ((4,), 2), ((1, 4), 0)):
        assert model.clip.encode_image(images, stages).tokens.keys() == set(stages)
        assert counted.pop() == passed, stages


def test_features_belong_to_weights_activation_size_and_precision(make_model, tmp_path):
    """What changes the tower's output must never find features of another tower."""
    images = images_of(2)

    def computed(change: Callable[[AprilGanModel], None] = lambda _: None, **overrides: Any) -> int:
        model = make_model(**overrides)
        change(model)
        counted = PassedImages(model.clip)
        model.clip.store = FeatureStore(FeatureFiles(tmp_path))
        size = model.image_size
        model.clip.encode_image(images[..., :size, :size].to(model.text_features), model.layers)
        return counted.pop()

    def change_last_weight(model: AprilGanModel) -> None:
        with torch.no_grad():
            model.clip.visual.proj.view(-1)[-1] += 1

    def in_bfloat16(model: AprilGanModel) -> None:
        encode = model.clip.encode_image

        def cast(*args: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return encode(*args)

        model.clip.encode_image = cast

    assert computed() == 2
    assert computed() == 0
    assert computed(quick_gelu=True, adapter=None) == 2
    assert computed(image_size=64, adapter=None) == 2
    assert computed(change_last_weight) == 2
    assert computed(in_bfloat16) == 2
    assert computed(lambda model: model.double()) == 2
    assert computed() == 0


def test_weights_that_change_during_a_run_are_noticed(model, tmp_path):
    images = images_of(1)
    model.clip.store = FeatureStore(FeatureFiles(tmp_path))
    before = model.clip.encode_image(images, model.layers)
    with torch.no_grad():
        model.clip.visual.ln_pre.weight *= 2
    after = model.clip.encode_image(images, model.layers)
    assert not torch.equal(before.embedding, after.embedding)


def test_one_pixel_makes_another_image(model, tmp_path):
    images = images_of(1)
    model.clip.store = FeatureStore(FeatureFiles(tmp_path))
    model.clip.encode_image(images, model.layers)
    counted = PassedImages(model.clip)
    changed = images.clone()
    changed[0, 2, -1, -1] += 1e-6
    model.clip.encode_image(changed, model.layers)
    assert counted.pop() == 1


def test_features_beyond_half_precision_are_not_stored(model, tmp_path):
    with torch.no_grad():
        model.clip.visual.proj *= 1e6
    images = images_of(2)
    exact = model.clip.encode_image(images, model.layers)
    model.clip.store = FeatureStore(FeatureFiles(tmp_path))
    for _ in range(2):
        found = model.clip.encode_image(images, model.layers)
        assert torch.equal(found.embedding, exact.embedding)
    assert model.clip.store.found == 0


@pytest.mark.posix
@pytest.mark.parametrize("kills", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_a_kill_leaves_whole_features_which_the_next_run_finds(
    kills: int, kill_repeatedly, model, tmp_path, capsys: pytest.CaptureFixture[str]
):
    images, folder = images_of(24), tmp_path / "killed"

    def encode(folder: Path) -> list[Tensor]:
        store = model.clip.store = FeatureStore(FeatureFiles(folder))
        parts = [model.clip.encode_image(part, model.layers).embedding for part in images.split(1)]
        return [torch.cat(parts), torch.tensor([store.found, store.computed])]

    expected, _ = encode(tmp_path / "first")  # takes longer than later ones
    start = time.monotonic()
    encode(tmp_path / "second")
    seconds = time.monotonic() - start
    ends, found = 0, []
    for was_killed in kill_repeatedly(lambda: encode(folder), kills, longest=seconds):
        files = FeatureFiles(folder)
        paths = [path for group in files.groups() for path in (folder / group.name).iterdir()]
        assert all(files.read(path.parent.name, path.stem) for path in paths), "part of a file"
        again, (stored, computed) = encode(folder)
        assert torch.equal(again, expected)
        assert (int(stored), int(computed)) == (len(paths), len(images) - len(paths))
        assert not list(folder.glob(f"{UNFINISHED}*")), "what a kill left is deleted"
        found.append(len(paths))
        ends += not was_killed
        shutil.rmtree(folder)
    if kills > 4:
        with capsys.disabled():
            print(f"\n{kills} kills while features were stored: {ends} ended, files left {sorted(set(found))}")
        assert len(set(found)) > 5


def test_images_that_do_not_recur_are_not_stored(model, tmp_path):
    images = images_of(3)
    model.clip.store = FeatureStore(FeatureFiles(tmp_path))
    model.clip.encode_image(images, model.layers, [True, False, True])
    assert sum(group.files for group in model.clip.store.files.groups()) == 2


def test_saved_seconds_are_those_of_the_tower(model, tmp_path):
    """They must be near what the found images cost, and near 0 if none was found."""
    images = images_of(8)
    model.clip.encode_image(images, model.layers)
    model.clip.store = FeatureStore(FeatureFiles(tmp_path))
    start = time.perf_counter()
    model.clip.encode_image(images, model.layers)
    first = time.perf_counter() - start
    assert -first < model.clip.store.seconds_saved <= 0
    before = model.clip.store.seconds_saved
    model.clip.encode_image(images, model.layers)
    assert model.clip.store.seconds_saved - before < first


# ---- Runs -----------------------------------------------------------------------------------------------------------


def engine(folder: Path, **arguments: Any) -> Any:
    return quiet_engine(folder, accelerator="cpu", **arguments)


def train(model: AprilGan, root: Path, folder: Path, mosaic_probability: float = 0.0, **options: Any) -> list[float]:
    """Train for three epochs; return the losses of the steps."""
    losses: list[float] = []
    step = model.training_step

    def training_step(*args: Any) -> Tensor:
        loss = step(*args)
        losses.append(loss.item())
        return loss

    model.training_step = training_step
    data = AuxiliaryDataModule(
        MVTecAD(root, category="brick"),
        categories=["brick"],
        mosaic_probability=mosaic_probability,
        train_batch_size=4,
        num_workers=0,
        seed=1,
        **options,
    )
    engine(folder, max_epochs=3).fit(model, datamodule=data)
    return losses


def test_training_passes_each_image_through_the_tower_once(make_lightning_model, sample_root, tmp_path, caplog):
    """Losses and adapters must equal those of a training without stored features, within half precision."""
    losses, weights, passed = [], [], []
    caplog.set_level(logging.INFO)
    for features in (None, tmp_path / "features", tmp_path / "features"):
        seed_everything(0)
        model = make_lightning_model(adapter=None, features=features)
        counted = PassedImages(model.model.clip)
        losses.append(train(model, sample_root, tmp_path / "run"))
        weights.append(torch.cat([value.flatten() for value in model.model.adapters.state_dict().values()]))
        passed.append(counted.pop())
        assert model.model.clip.store is None
    images = passed[0] // 3
    assert passed == [3 * images, images, 0]
    assert losses[1] == losses[2]
    assert torch.equal(weights[1], weights[2])
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=2e-3, atol=0)
    # Adam's steps have the size of the learning rate, whatever the size of a gradient
    assert (
        (weights[1] - weights[0]).abs().mean() < 1e-4 < (weights[0] - fresh_weights(make_lightning_model)).abs().mean()
    )
    assert re.search(r"Features of up to \d+ images are stored in .*features: 0\.\d MB", caplog.text)


def fresh_weights(make_lightning_model: Callable[..., AprilGan]) -> Tensor:
    seed_everything(0)
    model = make_lightning_model(adapter=None)
    return torch.cat([value.flatten() for value in model.model.adapters.state_dict().values()])


def test_trainings_use_the_cache_unless_told_not_to(make_lightning_model, sample_root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ANOMALIB_APRILGAN_FEATURES", raising=False)
    train(make_lightning_model(adapter=None, features=None), sample_root, tmp_path / "run")
    assert not feature_files.default_folder().exists()
    train(make_lightning_model(adapter=None), sample_root, tmp_path / "run")
    assert FeatureFiles(feature_files.default_folder()).groups()


def test_mosaics_pass_the_tower_in_each_epoch_and_are_not_stored(make_lightning_model, sample_root, tmp_path):
    model = make_lightning_model(adapter=None, features=tmp_path / "features")
    counted = PassedImages(model.model.clip)
    train(model, sample_root, tmp_path / "run", mosaic_probability=1.0)
    assert counted.pop() > 0
    assert FeatureFiles(tmp_path / "features").groups() == []


def test_random_augmentations_switch_storing_off(make_lightning_model, sample_root, tmp_path):
    model = make_lightning_model(adapter=None, features=tmp_path / "features")
    train(model, sample_root, tmp_path / "run", train_augmentations=RandomHorizontalFlip())
    assert not (tmp_path / "features").exists()


def test_stored_images_and_masks_equal_read_ones(sample_root, tmp_path):
    data = AuxiliaryDataModule(MVTecAD(sample_root, category="brick"), categories=["brick"], num_workers=0)
    data.setup()
    dataset = data.train_data
    dataset.augmentations = EightBitResize(48)
    expected = [dataset[number] for number in range(len(dataset))]
    dataset.files = FeatureFiles(tmp_path)
    for _ in range(2):
        for number, item in enumerate(expected):
            found = dataset[number]
            assert type(found.image) is type(item.image)
            assert type(found.gt_mask) is type(item.gt_mask)
            assert torch.equal(found.image, item.image)
            assert torch.equal(found.gt_mask, item.gt_mask)
            assert found.gt_mask.dtype == item.gt_mask.dtype
            assert torch.equal(found.gt_label, item.gt_label)
    assert len(list((tmp_path / "images-48").iterdir())) == len(dataset)
    path = tmp_path / "image.png"
    path.write_bytes(Path(dataset.samples.image_path[0]).read_bytes())
    dataset.samples.loc[0, "image_path"] = dataset.categories[0].dataset.samples.loc[0, "image_path"] = str(path)
    assert torch.equal(dataset[0].image, expected[0].image)
    path.write_bytes(Path(dataset.samples.image_path[1]).read_bytes())
    assert torch.equal(dataset[0].image, expected[1].image)


@pytest.mark.parametrize("k_shot", [0, 2])
def test_validation_and_test_of_the_same_images_pay_the_tower_once(make_lightning_model, sample_root, tmp_path, k_shot):
    scores = []
    for features in (None, tmp_path / "features"):
        model = make_lightning_model(k_shot=k_shot, features=features)
        counted = PassedImages(model.model.clip)
        data = MVTecAD(sample_root, category="coins", num_workers=0)
        scores.append(engine(tmp_path / "run").test(model, datamodule=data, verbose=False)[0])
        images = len(data.test_data)
        assert counted.pop() == k_shot + images
    assert scores[0].keys() == scores[1].keys()
    for name, value in scores[0].items():
        assert scores[1][name] == pytest.approx(value, abs=0.02), name


def test_predictions_use_the_folder_of_the_environment(make_lightning_model, sample_root, tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALIB_APRILGAN_FEATURES", str(tmp_path / "features"))
    images = sample_root / "coins" / "test" / "good"
    maps = []
    for passed in (3, 0):
        model = make_lightning_model(class_name="coins", predictions=False)
        counted = PassedImages(model.model.clip)
        resize = model.pre_processor.resize
        found = engine(tmp_path / "run").predict(model, dataset=PredictDataset(images, transform=resize))
        assert counted.pop() == passed
        maps.append(torch.cat([batch.anomaly_map for batch in found]))
    assert torch.equal(*maps)


def test_a_run_leaves_no_store_behind_when_it_fails(make_lightning_model, sample_root, tmp_path, monkeypatch):
    model = make_lightning_model(features=tmp_path / "features")

    def fail(*_: object) -> None:
        assert model.model.clip.store is not None
        message = "stopped"
        raise RuntimeError(message)

    monkeypatch.setattr(model, "test_step", fail)
    with pytest.raises(RuntimeError, match="stopped"):
        engine(tmp_path / "run").test(model, datamodule=MVTecAD(sample_root, category="coins", num_workers=0))
    assert model.model.clip.store is None


def test_a_folder_without_room_is_refused_before_the_run(make_lightning_model, sample_root, tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALIB_APRILGAN_FEATURES_GB", "0.0001")
    model = make_lightning_model(adapter=None, features=tmp_path / "features")
    with pytest.raises(ValueError, match=r"The features of \d+ images take .* MB, but .* has room for 0\.1 MB"):
        train(model, sample_root, tmp_path / "run")
    assert not (tmp_path / "features").exists()


def test_a_cache_without_room_is_not_used(make_lightning_model, sample_root, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ANOMALIB_APRILGAN_FEATURES_GB", "0.0001")
    losses = train(make_lightning_model(adapter=None), sample_root, tmp_path / "run")
    assert losses
    assert "They are not stored" in caplog.text
    assert not feature_files.default_folder().exists()


def test_another_value_than_a_path_is_refused(make_lightning_model):
    with pytest.raises(ValueError, match="Expected argument `features` to be a path, but got 5"):
        make_lightning_model(features=5)


# ---- The command ----------------------------------------------------------------------------------------------------


def test_the_command_shows_and_clears_what_is_kept(make_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ANOMALIB_APRILGAN_FEATURES", raising=False)
    main(["cache"])
    shown = capsys.readouterr().out
    assert re.search(r"Features of images: 0\.0 of at most 50,000 MB in .*cache.anomalib-aprilgan.features\n", shown)
    model = make_model()
    model.setup("cable")
    model.clip.store = FeatureStore(FeatureFiles(feature_files.default_folder()))
    model.clip.encode_image(images_of(3), model.layers)
    main(["cache"])
    shown = capsys.readouterr().out
    assert re.search(r"golden-vit-96-\w+: 3 files, 0\.\d MB, last used \d{4}-\d\d-\d\d", shown)
    assert re.search(r"Text features: 0\.0 of at most 100 MB in .*text\n  text: 1 files", shown)
    main(["cache", "--clear", "true"])
    assert "deleted" in capsys.readouterr().out
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    files = FeatureFiles(tmp_path / "other")
    files.write("group", "one", CONTENT, {})
    main(["cache", "--folder", str(tmp_path / "other"), "--clear", "true"])
    assert files.groups() == []
