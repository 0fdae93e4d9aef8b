# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Normalised scores: same order as raw scores, threshold at 0.5, and defined without validation data."""

import math

import pytest
import torch
from anomalib.data import InferenceBatch
from anomalib.post_processing import PostProcessor

from anomalib_aprilgan.integration.post_processing import MARGIN, AprilGanPostProcessor

NAN = math.nan


def normalize(values: torch.Tensor | None, *anchors: torch.Tensor, margin: float = 0.0) -> torch.Tensor:
    """Normalise by minimum, maximum and threshold; ``margin`` is 0 before calibration."""
    post_processor = AprilGanPostProcessor()
    post_processor.margin.fill_(margin)
    return post_processor._normalize(values, *anchors)


def scalars(*values: float) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(float(value)) for value in values)


@pytest.mark.parametrize(
    ("minimum", "maximum", "threshold"),
    [(0, 1, 0.5), (0, 1, 0.1), (0.2, 3, 2.5), (-4, -1, -2), (1e-12, 1e-4, 1e-6), (0, 1, 1e-6)],
)
def test_minimum_threshold_and_maximum_become_0_and_a_half_and_1(minimum, maximum, threshold):
    minimum, maximum, threshold = scalars(minimum, maximum, threshold)
    found = normalize(torch.stack([minimum, threshold, maximum]), minimum, maximum, threshold)
    torch.testing.assert_close(found, torch.tensor([0, 0.5, 1]), atol=1e-7, rtol=0)


def test_normalisation_is_piecewise_linear():
    found = normalize(torch.tensor([0.0, 0.05, 0.1, 0.55, 1.0]), *scalars(0, 1, 0.1))
    torch.testing.assert_close(found, torch.tensor([0, 0.25, 0.5, 0.75, 1]))


@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.5, 0.9, 0.95])
def test_the_order_is_kept_where_anomalib_clips(threshold):
    values, anchors = torch.linspace(0, 1, 101), scalars(0, 1, threshold)
    assert (normalize(values, *anchors).diff() > 0).all()
    ties = (PostProcessor._normalize(values, *anchors).diff() == 0).any()
    assert bool(ties) == (threshold != 0.5), "anomalib clips in all cases but 0.5"


@pytest.mark.parametrize("anchors", [(0, 1, 0.5), (1e-12, 1, 0.5), (0, 3, 0.2), (0, 1, 1e-3)], ids=str)
def test_very_small_values_stay_distinct(anchors):
    """Zero-shot probabilities of normal images have such values."""
    values = torch.tensor([1e-12, 2e-12, 1e-10, 1e-9, 1e-5, 1.00001e-5])
    assert (normalize(values, *scalars(*anchors)).diff() > 0).all()


def test_the_order_is_never_reversed():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        minimum, threshold, maximum = (4 * torch.rand(3, generator=generator) - 2).sort().values
        values = (6 * torch.rand(500, generator=generator) - 3).sort().values
        found = normalize(values, minimum, maximum, threshold)
        assert (found.diff() >= 0).all()
        inside = (values > minimum) & (values < maximum)
        assert (found[inside].diff() > 0).all() or values[inside].diff().min() < 1e-6 * (maximum - minimum)


def test_labels_of_raw_and_normalised_values_agree():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(1000, generator=generator)
    for threshold in values[:50]:
        found = normalize(values, values.min(), values.max(), threshold)
        assert torch.equal(found > 0.5, values > threshold)


@pytest.mark.parametrize(
    "anchors",
    [
        (0, 1, 0.5),
        (0, 1, -3),
        (0, 1, 4),
        (0, 1, 0),
        (0, 1, 1),
        (1, 1, 1),
        (1, 1, 2),
        (1, 1, 0),
        (1, 0, 0.5),
        (0, 1, NAN),
    ],
    ids=str,
)
def test_normalised_values_are_in_the_unit_interval(anchors):
    values = torch.tensor([-math.inf, -1e30, -1, 0, 1e-30, 0.3, 1, 1 + 1e-7, 7, 1e30, math.inf])
    found = normalize(values, *scalars(*anchors))
    assert not found.isnan().any()
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize(
    ("anchors", "expected"),
    [
        ((1, 1, 1), [0, 0.5, 0.75]),
        ((1, 1, NAN), [0, 0.5, 0.75]),
        ((0, 1, 0), [0.5, 1, 1]),
        ((1, 2, 2), [0, 0, 0.5]),
    ],
    ids=["all equal", "all equal, no threshold", "threshold at the minimum", "threshold at the maximum"],
)
def test_ranges_of_width_zero(anchors, expected):
    found = normalize(torch.tensor([0.0, 1.0, 2.0]), *scalars(*anchors))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9, 1.0], ids=str)
def test_the_order_is_kept_above_the_validation_range(threshold):
    """With normal images only, the threshold equals the maximum."""
    values = torch.tensor([0.0, 0.05, 0.1, 0.95, 1.0, 1.001, 1.1, 2.0, 5.0])
    found = normalize(values, *scalars(0, 1, threshold), margin=MARGIN)
    assert (found.diff() > 0).all()
    assert found[0] == 0
    assert found[-1] < 1
    at_maximum = 1 - MARGIN if threshold < 1 else 0.5
    torch.testing.assert_close(found[4], torch.tensor(at_maximum))


def test_a_missing_threshold_is_the_middle_of_the_range():
    values = torch.linspace(0, 3, 7)
    assert torch.equal(normalize(values, *scalars(0, 3, NAN)), normalize(values, *scalars(0, 3, 1.5)))


def test_missing_predictions_stay_missing():
    assert normalize(None, *scalars(0, 1, 0.5)) is None


@pytest.mark.parametrize("shape", [(), (4,), (2, 5, 5)], ids=str)
def test_values_of_any_shape(shape):
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    copy = values.clone()
    assert normalize(values, *scalars(0, 1, 0.3)).shape == shape
    assert torch.equal(values, copy)


# ---- Without validation data --------------------------------------------------------------------------------------


def prediction() -> InferenceBatch:
    generator = torch.Generator().manual_seed(0)
    return InferenceBatch(
        pred_score=torch.tensor([0.0, 0.2, 0.5, 0.51, 1.0]),
        anomaly_map=torch.rand(5, 6, 6, generator=generator),
    )


def test_without_validation_data_probabilities_are_not_changed():
    found = AprilGanPostProcessor()(prediction())
    torch.testing.assert_close(found.pred_score, prediction().pred_score)
    torch.testing.assert_close(found.anomaly_map, prediction().anomaly_map)
    assert found.pred_label.tolist() == [False, False, False, True, True]
    assert torch.equal(found.pred_mask, prediction().anomaly_map > 0.5)


def test_without_validation_data_no_statistic_is_nan():
    state = AprilGanPostProcessor().state_dict()
    assert len(state) >= 6
    assert not any(value.isnan().any() for value in state.values() if isinstance(value, torch.Tensor))


def test_few_shot_maps_are_normalised_by_their_largest_possible_value():
    post_processor = AprilGanPostProcessor()
    post_processor.reset_calibration(largest_map_value=3.0)
    batch = InferenceBatch(pred_score=torch.tensor([0.2]), anomaly_map=torch.tensor([[[0.0, 0.5, 1.75, 3.0]]]))
    found = post_processor(batch)
    torch.testing.assert_close(found.pred_score, torch.tensor([0.2]))
    torch.testing.assert_close(found.anomaly_map, torch.tensor([[[0, 0.5, 0.75, 1]]]))
    post_processor.reset_calibration()
    torch.testing.assert_close(post_processor(prediction()).anomaly_map, prediction().anomaly_map)


def test_resetting_restores_all_default_values():
    post_processor = AprilGanPostProcessor()
    expected = {name: value.clone() for name, value in post_processor.state_dict().items()}
    names = ("margin", "image_min", "image_max", "pixel_min", "pixel_max", "_image_threshold", "_pixel_threshold")
    for name in names:
        getattr(post_processor, name).fill_(0.123)
    assert any(not torch.equal(value, expected[name]) for name, value in post_processor.state_dict().items())
    post_processor.reset_calibration()
    assert all(torch.equal(value, expected[name]) for name, value in post_processor.state_dict().items())


@pytest.mark.parametrize("sensitivity", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_sensitivity_moves_the_label(sensitivity):
    post_processor = AprilGanPostProcessor(image_sensitivity=sensitivity, pixel_sensitivity=sensitivity)
    found = post_processor(prediction())
    assert torch.equal(found.pred_label, prediction().pred_score > 1 - sensitivity)
    assert torch.equal(found.pred_mask, prediction().anomaly_map > 1 - sensitivity)
