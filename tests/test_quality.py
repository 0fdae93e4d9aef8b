"""Quality of the embedded CLIP on kinds that it has never seen: what a broken change would lower.

Random weights cannot tell a right map from a wrong one; these can.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from anomalib_aprilgan import AprilGanModel
from anomalib_aprilgan.demo.drawing.defects import DEFECTS
from anomalib_aprilgan.demo.drawing.scenes import HELD_OUT_KINDS, Pixels, render, render_pair
from anomalib_aprilgan.embedded import BACKBONE, IMAGE_SIZE, LAYERS
from anomalib_aprilgan.pre_processing import AprilGanPreProcessor

LOOK = 2026
SIZE = 128
SHOTS = (1, 2, 4, 8)
NOISE = 0.01
"""What another choice of references may make of a mean AUROC over eight kinds."""


class Category(NamedTuple):
    """Pre-processed images of one kind: references, and test images with labels and masks."""

    references: Tensor
    images: Tensor
    labels: Tensor
    masks: Tensor


class Quality(NamedTuple):
    """AUROC of images and of pixels, means over all kinds."""

    image: float
    pixel: float


def make(kind: str) -> Category:
    """Draw 8 references, 16 normal and 22 abnormal images."""
    transform = AprilGanPreProcessor(IMAGE_SIZE).transform
    normal = [render(kind, LOOK, number, SIZE) for number in range(24)]
    pairs = [render_pair(kind, defect, LOOK, 24 + number, SIZE) for defect in DEFECTS for number in range(2)]

    def prepared(pictures: list[Pixels]) -> Tensor:
        return transform(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255)

    masks = torch.from_numpy(np.stack([pair.mask for pair in pairs])) / 255
    masks = torch.nn.functional.interpolate(masks[:, None], IMAGE_SIZE, mode="area")[:, 0] > 0.5
    return Category(
        prepared(normal[:8]),
        prepared([*normal[8:], *(pair.abnormal for pair in pairs)]),
        torch.cat([torch.zeros(16), torch.ones(len(pairs))]).int(),
        torch.cat([torch.zeros(16, IMAGE_SIZE, IMAGE_SIZE), masks]).int(),
    )


@pytest.fixture(scope="module")
def categories() -> dict[str, Category]:
    return {kind: make(kind) for kind in HELD_OUT_KINDS}


Measure = Callable[..., Quality]


@pytest.fixture(scope="module")
def measure(categories: dict[str, Category]) -> Measure:
    """Measure a model; each combination once."""

    def measured(model: AprilGanModel, k_shot: int = 0, stage: int | None = None) -> Quality:
        qualities = []
        for kind, (references, images, labels, masks) in categories.items():
            model.setup(kind, references[:k_shot] if k_shot else None)
            with torch.inference_mode():
                evidence = model.weigh(images)
                model.calibrate(evidence.map_max.min(), evidence.map_max.max())
                scores, maps = model.image_score(evidence), evidence.anomaly_map
                if stage is not None:
                    maps = model.stage_maps(images, model.text_features)[LAYERS.index(stage)][:, 1]
            qualities.append([binary_auroc(scores, labels), binary_auroc(maps.flatten(), masks.flatten())])
        return Quality(*torch.tensor(qualities).mean(dim=0).tolist())

    return measured


@pytest.fixture(scope="module")
def zero_shot(measure: Measure) -> Quality:
    return measure(AprilGanModel(BACKBONE, adapter="demo"))


@pytest.fixture(scope="module")
def few_shot(measure: Measure) -> dict[int, Quality]:
    model = AprilGanModel(BACKBONE, adapter="demo")
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


def test_trained_adapters_beat_fresh_ones(measure: Measure, zero_shot: Quality) -> None:
    """Fresh ones look in a random direction, which by chance may be a good one, or the opposite of one."""
    fresh = []
    for seed in range(4):
        torch.manual_seed(seed)
        fresh.append(measure(AprilGanModel(BACKBONE)))
    assert np.mean([quality.pixel for quality in fresh]) < zero_shot.pixel - 0.2
    assert max(quality.pixel for quality in fresh) < zero_shot.pixel
    assert fresh[0].image == pytest.approx(zero_shot.image), "no adapter takes part in the image score"


@pytest.fixture(scope="module")
def alone(measure: Measure) -> list[float]:
    """Pixel AUROC of each stage alone."""
    model = AprilGanModel(BACKBONE, adapter="demo")
    return [measure(model, stage=stage).pixel for stage in LAYERS]


def test_all_stages_together_are_better_than_a_stage_on_average(alone: list[float], zero_shot: Quality) -> None:
    """And no stage alone is better than all of them but by chance."""
    assert np.mean(alone) < zero_shot.pixel
    assert max(alone) < zero_shot.pixel + 0.002


TIE = pytest.mark.xfail(strict=True, reason="5, 7, 8 alone: pixel AUROC 0.9688, 0.9680, 0.9683; all together 0.9680")


@pytest.mark.parametrize("stage", [pytest.param(stage, marks=TIE if stage != 6 else ()) for stage in LAYERS])
def test_each_stage_alone_is_worse_than_all(alone: list[float], zero_shot: Quality, stage: int) -> None:
    """The paper's claim (section 3.2), which this CLIP bears out for one of its stages."""
    assert alone[LAYERS.index(stage)] < zero_shot.pixel


@pytest.mark.xfail(
    strict=True, reason="so small a CLIP does not mind: image AUROC 0.9595 both, pixel 0.9678 and 0.9680"
)
def test_quick_gelu_is_worse(measure: Measure, zero_shot: Quality) -> None:
    """The weights were trained with GELU."""
    model = AprilGanModel(BACKBONE, quick_gelu=True)
    model.adapters.load_state_dict(AprilGanModel(BACKBONE, adapter="demo").adapters.state_dict())
    worse = measure(model)
    assert worse.image < zero_shot.image
    assert worse.pixel < zero_shot.pixel
