# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""A test uses the scores of the validation before it: results are the same, also if model or images have changed."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from anomalib_aprilgan import AprilGan, AuxiliaryDataModule
from anomalib_aprilgan.comparison.callbacks import Stopwatch
from anomalib_aprilgan.integration.quiet_engine import quiet_engine
from anomalib_aprilgan.method import recent_scores
from anomalib_aprilgan.method.recent_scores import PatchScores, RecentScores

MakeModel = Callable[..., AprilGan]

IMAGES, TEXT = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.eye(2)
SCORES = PatchScores(torch.tensor([0.1, 0.2]), torch.ones(2, 4, 9), None)
BYTES = 4 * (2 + 2 * 4 * 9)


class Computed:
    """Counts how often scores are computed, and returns other ones each time."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> PatchScores:
        self.times += 1
        return SCORES._replace(probability=SCORES.probability + self.times)


class Passes:
    """Counts the images that go through the tower of a model."""

    def __init__(self, model: AprilGan) -> None:
        self.number = 0
        conv1 = model.model.clip.visual.conv1
        self._forward, conv1.forward = conv1.forward, self._count  # hooks would have the scores computed again

    def _count(self, images: Tensor) -> Tensor:
        self.number += len(images)
        return self._forward(images)

    def pop(self) -> int:
        number, self.number = self.number, 0
        return number


def data(root: Path, **arguments: Any) -> MVTecAD:
    return MVTecAD(root, category="coins", num_workers=0, **{"eval_batch_size": 4} | arguments)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return quiet_engine(tmp_path / "run", accelerator="cpu")


# ---- What is found --------------------------------------------------------------------------------------------------


def test_the_same_batch_is_computed_once() -> None:
    recent, compute = RecentScores(iter(range(99)).__next__), Computed()
    first = recent.of("", IMAGES, TEXT, compute)
    again = recent.of("", IMAGES.clone(), TEXT.clone(), compute)
    assert compute.times == 1
    assert torch.equal(first.probability, again.probability)
    assert again.logits is not None
    assert again.distances is None


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (IMAGES + 1e-7, TEXT),
        (IMAGES.flip(0), TEXT),
        (IMAGES[:1], TEXT),
        (IMAGES.double(), TEXT),
        (IMAGES.reshape(2, 3, 4, 16), TEXT),
        (IMAGES, TEXT.flip(0)),
        (IMAGES, TEXT.expand(2, 2, 2)),
    ],
    ids=["other pixels", "other order", "fewer", "other type", "other shape", "other class", "class of each image"],
)
def test_another_batch_is_computed(images: Tensor, text: Tensor) -> None:
    recent, compute = RecentScores(iter(range(99)).__next__), Computed()
    recent.of("", IMAGES, TEXT, compute)
    recent.of("", images, text, compute)
    assert compute.times == 2


def test_another_precision_is_computed() -> None:
    recent, compute = RecentScores(iter(range(99)).__next__), Computed()
    recent.of("", IMAGES, TEXT, compute)
    with torch.autocast("cpu", torch.bfloat16):
        recent.of("", IMAGES, TEXT, compute)
    assert compute.times == 2


def test_a_caller_that_changes_its_scores_changes_nothing_else() -> None:
    recent, compute = RecentScores(iter(range(99)).__next__), Computed()
    for _ in range(3):
        found = recent.of("", IMAGES, TEXT, compute).probability
        assert found.tolist() == pytest.approx([1.1, 1.2])
        found.zero_()


def test_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_scores, "LARGEST_MEMORY", 2 * BYTES)
    recent, compute = RecentScores(iter(range(99)).__next__), Computed()
    for _ in range(2):
        for number in range(4):
            recent.of("", IMAGES + number, TEXT, compute)
    assert compute.times == 4 + 2, "the first two are found"


def test_saved_seconds_are_those_of_the_computation() -> None:
    times = iter([0, 1, 11, 20, 22])  # before the first: 0; computed from 1 to 11; looked up from 20 to 22
    recent, compute = RecentScores(lambda: float(next(times))), Computed()
    recent.of("", IMAGES, TEXT, compute)
    assert recent.seconds_saved == 0
    recent.of("", IMAGES, TEXT, compute)
    assert recent.seconds_saved == 10 - 2


# ---- Runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"k_shot": 2}, {"k_shot": 1, "window": 32}], ids=["zero", "few", "windows"])
def test_a_test_gives_the_same_with_and_without_scores_of_the_validation(
    make_lightning_model: MakeModel,
    sample_root: Path,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, int],
) -> None:
    metrics, passes = [], []
    for largest in (recent_scores.LARGEST_MEMORY, 0):
        monkeypatch.setattr(recent_scores, "LARGEST_MEMORY", largest)
        model = make_lightning_model(**options)
        counted = Passes(model)
        metrics += engine.test(model, datamodule=data(sample_root), verbose=False)
        passes.append(counted.pop())
        assert model.recent_scores is None
    assert metrics[0] == metrics[1]
    images, views = len(data_of(sample_root)), len(model.model.windows)
    assert passes[1] - passes[0] == images * views
    assert passes[0] == (images + options.get("k_shot", 0)) * views


def data_of(root: Path) -> list[Path]:
    return list((root / "coins" / "test").glob("*/*.png"))


def add_noise(weights: Iterable[Tensor]) -> None:
    for weight in weights:
        weight.data.add_(0.01)  # past the version counter


CHANGES: dict[str, Callable[[AprilGan], object]] = {
    "adapters": lambda model: model.model.reset_adapters(seed=1),
    "adapters, past their versions": lambda model: add_noise(model.model.adapters.parameters()),
    "references": lambda model: model.model.setup(reference_images=IMAGES.new_zeros(1, 3, 64, 64)),
    "more references": lambda model: model.model.add_references(IMAGES.new_zeros(1, 3, 64, 64)),
    "class": lambda model: model.model.setup("metal nut"),
    "CLIP, past its versions": lambda model: add_noise(model.model.clip.visual.parameters()),
    "a layer": lambda model: setattr(model.model.clip.visual.transformer.resblocks[0].mlp, "gelu", nn.ReLU()),
    "stages": lambda model: setattr(model.model, "map_stages", model.model.map_stages[:1]),
    "a hook": lambda model: model.model.adapters.register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_was_changed_after_the_validation_scores_all_images(
    make_lightning_model: MakeModel, sample_root: Path, engine: Engine, change: str
) -> None:
    model = make_lightning_model(k_shot=1)
    engine.validate(model, datamodule=data(sample_root), verbose=False)
    assert model.recent_scores is not None
    counted = Passes(model)
    CHANGES[change](model)
    counted.pop()
    engine.trainer.test(model, datamodule=data(sample_root), verbose=False)
    assert counted.pop() == len(data_of(sample_root))


class SwapsAdapters(Callback):
    """Tests other weights than it validates, as callbacks that average weights do."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        del trainer
        self.before = {name: value.clone() for name, value in pl_module.model.adapters.state_dict().items()}
        pl_module.model.reset_adapters(seed=1)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        del trainer
        pl_module.model.adapters.load_state_dict(self.before)


def test_a_callback_may_change_the_model_within_the_validation(
    make_lightning_model: MakeModel, sample_root: Path, tmp_path: Path
) -> None:
    model = make_lightning_model()
    counted = Passes(model)
    engine = quiet_engine(tmp_path / "run", accelerator="cpu", callbacks=[SwapsAdapters()])
    (metrics,) = engine.test(model, datamodule=data(sample_root), verbose=False)
    assert counted.pop() == 2 * len(data_of(sample_root))
    expected = expected_pixel_auroc(make_lightning_model(), sample_root, tmp_path)
    assert metrics["pixel_AUROC"] == pytest.approx(expected, abs=1e-6)


def expected_pixel_auroc(model: AprilGan, root: Path, folder: Path) -> float:
    (metrics,) = quiet_engine(folder / "alone", accelerator="cpu").test(model, datamodule=data(root), verbose=False)
    return float(metrics["pixel_AUROC"])


def test_a_validation_of_other_images_is_no_help(
    make_lightning_model: MakeModel, sample_root: Path, engine: Engine
) -> None:
    model = make_lightning_model(class_name="coins")
    engine.validate(model, datamodule=MVTecAD(sample_root, category="gravel", num_workers=0), verbose=False)
    counted = Passes(model)
    engine.trainer.test(model, datamodule=data(sample_root), verbose=False)
    assert counted.pop() == len(data_of(sample_root))


def test_validations_of_a_training_keep_nothing(
    make_lightning_model: MakeModel, sample_root: Path, tmp_path: Path
) -> None:
    model = make_lightning_model(adapter=None, features=None)
    training = AuxiliaryDataModule(data(sample_root), categories=["coins"], validation=data(sample_root), num_workers=0)
    quiet_engine(tmp_path / "run", accelerator="cpu", max_epochs=1).fit(model, datamodule=training)
    assert model.recent_scores is None


def test_seconds_of_a_comparison_include_those_of_the_validation(
    make_lightning_model: MakeModel, sample_root: Path, tmp_path: Path
) -> None:
    """Otherwise scoring an image would seem to take hardly any time."""
    model, stopwatch = make_lightning_model(), Stopwatch()
    spent: list[float] = []
    encode = model.model.clip.encode_image

    def timed(*arguments: Any) -> Any:
        start = model.model.clip.clock()
        features = encode(*arguments)
        spent.append(model.model.clip.clock() - start)
        return features

    model.model.clip.encode_image = timed
    engine = quiet_engine(tmp_path / "run", accelerator="cpu", callbacks=[stopwatch])
    engine.test(model, datamodule=data(sample_root), verbose=False)
    assert stopwatch.images == len(data_of(sample_root))
    assert stopwatch.image_seconds > sum(spent)
