"""Quality of the embedded CLIP on kinds that it was not trained on. Errors in the method lower it.

Random weights give meaningless maps, so they cannot show such errors.
"""

import hashlib
from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from anomalib_aprilgan import AprilGanModel
from anomalib_aprilgan.demo.drawing.defects import DEFECTS
from anomalib_aprilgan.demo.drawing.scenes import HELD_OUT_KINDS, Pixels, render, render_pair
from anomalib_aprilgan.files.embedded import ADAPTED, BACKBONE, LAYERS
from anomalib_aprilgan.integration.pre_processing import AprilGanPreProcessor
from anomalib_aprilgan.method.encoders import ImageFeatures

LOOK = 2026
SIZE = 128
SHOTS = (1, 2, 4, 8)
NOISE = 0.01
"""Variation of the mean AUROC of eight kinds with the choice of references."""


class Category(NamedTuple):
    """Pre-processed images of one kind: references, and test images with labels and masks."""

    references: Tensor
    images: Tensor
    labels: Tensor
    masks: Tensor


class Quality(NamedTuple):
    """AUROC of images and pixels, each the mean over all kinds."""

    image: float
    pixel: float


def make(kind: str) -> Category:
    """Draw 8 references, 16 normal and 22 abnormal images."""
    transform = AprilGanPreProcessor(SIZE).transform
    normal = [render(kind, LOOK, number, SIZE) for number in range(24)]
    pairs = [render_pair(kind, defect, LOOK, 24 + number, SIZE) for defect in DEFECTS for number in range(2)]

    def prepared(pictures: list[Pixels]) -> Tensor:
        return transform(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255)

    masks = torch.from_numpy(np.stack([pair.mask for pair in pairs])) / 255
    masks = torch.nn.functional.interpolate(masks[:, None], SIZE, mode="area")[:, 0] > 0.5
    return Category(
        prepared(normal[:8]),
        prepared([*normal[8:], *(pair.abnormal for pair in pairs)]),
        torch.cat([torch.zeros(16), torch.ones(len(pairs))]).int(),
        torch.cat([torch.zeros(16, SIZE, SIZE), masks]).int(),
    )


@pytest.fixture(scope="module")
def categories() -> dict[str, Category]:
    return {kind: make(kind) for kind in HELD_OUT_KINDS}


@pytest.fixture(scope="module")
def make_model() -> Callable[..., AprilGanModel]:
    """Make models that share one CLIP, which encodes each set of images once."""
    clip = AprilGanModel(BACKBONE, image_size=SIZE).clip
    encode_image, encoded = clip.encode_image, {}

    def encode_once(images: Tensor, stages: Collection[int], recurs: object = None) -> ImageFeatures:
        key = (hashlib.sha256(images.numpy().tobytes()).digest(), frozenset(stages))
        if key not in encoded:
            encoded[key] = encode_image(images, stages)
        return encoded[key]

    clip.encode_image = encode_once

    def make(**arguments: Any) -> AprilGanModel:
        model = AprilGanModel(BACKBONE, image_size=SIZE, **arguments)
        model.clip = clip
        return model

    return make


Measure = Callable[..., Quality]


@pytest.fixture(scope="module")
def measure(categories: dict[str, Category]) -> Measure:
    """Measure a model on all kinds."""

    def measured(model: AprilGanModel, k_shot: int = 0) -> Quality:
        qualities = []
        for kind, (references, images, labels, masks) in categories.items():
            model.setup(kind, references[:k_shot] if k_shot else None)
            with torch.inference_mode():
                raw = model.predict_raw(images, model.state.tensors())
                model.calibrate(raw.map_max.min(), raw.map_max.max())
                scores, maps = model.image_score(raw, model.state.tensors()), raw.anomaly_map
            qualities.append([binary_auroc(scores, labels), binary_auroc(maps.flatten(), masks.flatten())])
        return Quality(*torch.tensor(qualities).mean(dim=0).tolist())

    return measured


@pytest.fixture(scope="module")
def zero_shot(measure: Measure, make_model: Callable[..., AprilGanModel]) -> Quality:
    return measure(make_model(adapter="builtin"))


@pytest.fixture(scope="module")
def few_shot(measure: Measure, make_model: Callable[..., AprilGanModel]) -> dict[int, Quality]:
    model = make_model(adapter="builtin")
    return {k_shot: measure(model, k_shot) for k_shot in SHOTS}


def test_zero_shot(zero_shot: Quality) -> None:
    assert zero_shot.image > 0.94
    assert zero_shot.pixel > 0.95


def test_few_shot(zero_shot: Quality, few_shot: dict[int, Quality]) -> None:
    assert few_shot[4].image > max(0.955, zero_shot.image)
    assert few_shot[4].pixel > max(0.96, zero_shot.pixel)


def test_more_shots_do_not_hurt(few_shot: dict[int, Quality]) -> None:
    for fewer, more in pairwise(SHOTS):
        assert few_shot[more].image > few_shot[fewer].image - NOISE
        assert few_shot[more].pixel > few_shot[fewer].pixel - NOISE


def test_trained_adapters_beat_fresh_ones(
    measure: Measure, make_model: Callable[..., AprilGanModel], zero_shot: Quality
) -> None:
    """Fresh adapters are random and may be good by chance, so several are measured."""
    fresh = []
    for seed in range(4):
        torch.manual_seed(seed)
        fresh.append(measure(make_model()))
    assert np.mean([quality.pixel for quality in fresh]) < zero_shot.pixel - 0.2
    assert max(quality.pixel for quality in fresh) < zero_shot.pixel
    assert fresh[0].image == pytest.approx(zero_shot.image), "no adapter takes part in the image score"


@pytest.fixture(scope="module")
def all_stages(measure: Measure, make_model: Callable[..., AprilGanModel]) -> dict[int, Quality]:
    """Measure a model whose maps are sums over all stages with an adapter, zero-shot and with 4 references."""
    model = make_model(adapter="builtin", layers=ADAPTED)
    return {k_shot: measure(model, k_shot) for k_shot in (0, 4)}


def test_the_last_stage_alone_is_as_good_as_all(
    all_stages: dict[int, Quality], zero_shot: Quality, few_shot: dict[int, Quality]
) -> None:
    """So it is the default. The paper claims that stages together are better (section 3.2)."""
    assert ADAPTED[-1:] == LAYERS
    for k_shot, default in ((0, zero_shot), (4, few_shot[4])):
        assert default.image > all_stages[k_shot].image - NOISE
        assert default.pixel > all_stages[k_shot].pixel - 0.002


@pytest.fixture(scope="module")
def alone(make_model: Callable[..., AprilGanModel], categories: dict[str, Category]) -> list[float]:
    """Compute the pixel AUROC of each stage alone, the mean over all kinds."""
    model, qualities = make_model(adapter="builtin", layers=ADAPTED), []
    for kind, (_, images, _, masks) in categories.items():
        model.setup(kind)
        with torch.inference_mode():
            maps = model.stage_maps(images, model.text_features)
        qualities.append([binary_auroc(stage[:, 1].flatten(), masks.flatten()) for stage in maps])
    return torch.tensor(qualities).mean(dim=0).tolist()


def test_all_stages_together_are_better_than_a_stage_on_average(
    alone: list[float], all_stages: dict[int, Quality]
) -> None:
    assert np.mean(alone) < all_stages[0].pixel


BETTER = pytest.mark.xfail(strict=True, reason="7 and 8 alone: pixel AUROC 0.9713, 0.9725; all together 0.9702")


@pytest.mark.parametrize("stage", [pytest.param(stage, marks=BETTER if stage > 6 else ()) for stage in ADAPTED])
def test_each_stage_alone_is_worse_than_all(alone: list[float], all_stages: dict[int, Quality], stage: int) -> None:
    """The paper claims it (section 3.2). With this CLIP it is true for two of the stages."""
    assert alone[ADAPTED.index(stage)] < all_stages[0].pixel


@pytest.mark.slow
@pytest.mark.xfail(
    strict=True,
    reason="hardly a difference for so small a CLIP: image AUROC 0.9695 and 0.9663, pixel 0.9723 and 0.9725",
)
def test_quick_gelu_is_worse(measure: Measure, zero_shot: Quality) -> None:
    """The weights were trained with GELU."""
    model = AprilGanModel(BACKBONE, image_size=SIZE, quick_gelu=True)
    model.adapters.load_state_dict(AprilGanModel(BACKBONE, adapter="builtin").adapters.state_dict())
    worse = measure(model)
    assert worse.image < zero_shot.image
    assert worse.pixel < zero_shot.pixel
