# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Maps and scores, compared with slow and simple implementations."""

import math

import pytest
import torch

from anomalib_aprilgan.method.scoring import (
    LOGIT_SCALE,
    abnormal_probability,
    average_states,
    image_score,
    stage_logits,
    upsample,
)


def random_units(*shape: int, seed: int = 0) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values / values.norm(dim=-1, keepdim=True)


def dot(left: torch.Tensor, right: torch.Tensor) -> float:
    return math.fsum(a * b for a, b in zip(left.tolist(), right.tolist(), strict=True))


def bilinear(grid: list[list[float]], size: int, row: int, column: int) -> float:
    """Interpolate the value of one pixel, with aligned corners of grid and image."""
    side = len(grid)
    y, x = (position * (side - 1) / (size - 1) for position in (row, column))
    top, left = min(int(y), side - 2), min(int(x), side - 2)
    dy, dx = y - top, x - left
    upper = grid[top][left] * (1 - dx) + grid[top][left + 1] * dx
    lower = grid[top + 1][left] * (1 - dx) + grid[top + 1][left + 1] * dx
    return upper * (1 - dy) + lower * dy


def abnormal_share(normal: float, abnormal: float) -> float:
    return 1 / (1 + math.exp(normal - abnormal))


def test_logit_scale_equals_the_authors():
    assert LOGIT_SCALE == 100


def test_upsample_is_bilinear_with_aligned_corners():
    grid = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = upsample(grid, 7)
    assert found.shape == (2, 3, 7, 7)
    for image in range(2):
        for channel in range(3):
            rows = grid[image, channel].reshape(3, 3).tolist()
            expected = [[bilinear(rows, 7, row, column) for column in range(7)] for row in range(7)]
            torch.testing.assert_close(found[image, channel], torch.tensor(expected, dtype=torch.float64))


def test_upsample_puts_the_corner_patches_into_the_corners():
    found = upsample(torch.arange(16.0).reshape(1, 1, 16), 11)[0, 0]
    assert [found[0, 0], found[0, -1], found[-1, 0], found[-1, -1]] == [0, 3, 12, 15]


@pytest.mark.parametrize("own_class", [False, True], ids=["one class", "a class per image"])
def test_stage_logits(own_class):
    tokens = random_units(2, 9, 5)
    text_features = random_units(2, 2, 5, seed=1) if own_class else random_units(2, 5, seed=1)
    logits = stage_logits(tokens, text_features)
    assert logits.shape == (2, 9)
    found = upsample(logits[:, None], 7)[:, 0].sigmoid()
    for image in range(2):
        features = text_features[image] if own_class else text_features
        logits = [[100 * dot(token, state) for token in tokens[image]] for state in features]
        normal, abnormal = ([state[start : start + 3] for start in (0, 3, 6)] for state in logits)
        for row in range(7):
            for column in range(7):
                share = abnormal_share(bilinear(normal, 7, row, column), bilinear(abnormal, 7, row, column))
                assert found[image, row, column].item() == pytest.approx(share, abs=1e-9)


def test_softmax_is_taken_after_upsampling():
    """Halfway between logits (0, 20) and (0, -2), the softmax must be computed from the mean logits (0, 9)."""
    text_features = torch.eye(2)
    abnormal, normal = (0.0, 0.2), (0.0, -0.02)
    tokens = torch.tensor([[abnormal, normal, abnormal, normal]])
    middle = upsample(stage_logits(tokens, text_features)[None], 3)[0, 0, 1, 1].sigmoid().item()
    swapped = 0.5 * (abnormal_share(0, 20) + abnormal_share(0, -2))
    assert middle == pytest.approx(abnormal_share(0, 9), abs=1e-6)
    assert abs(middle - swapped) > 0.4


@pytest.mark.parametrize("own_class", [False, True], ids=["one class", "a class per image"])
def test_abnormal_probability(own_class):
    embedding = random_units(3, 5)
    text_features = random_units(3, 2, 5, seed=1) if own_class else random_units(2, 5, seed=1)
    found = abnormal_probability(embedding, text_features)
    assert found.shape == (3,)
    for image in range(3):
        normal, abnormal = text_features[image] if own_class else text_features
        share = abnormal_share(100 * dot(embedding[image], normal), 100 * dot(embedding[image], abnormal))
        assert found[image].item() == pytest.approx(share, abs=1e-9)


def test_abnormal_probability_does_not_depend_on_the_norm_of_the_embedding():
    embedding, text_features = random_units(3, 5), random_units(2, 5, seed=1)
    lengths = torch.tensor([[0.01], [1.0], [50.0]])
    torch.testing.assert_close(
        abnormal_probability(lengths * embedding, text_features),
        abnormal_probability(embedding, text_features),
    )


def test_average_states_gives_each_sentence_the_same_weight():
    """The norm of an embedding must have no influence, and the result has norm 1."""
    found = average_states(torch.tensor([[30.0, 0.0, 0.0], [0.0, 0.1, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([0.5**0.5, 0.5**0.5, 0.0]))


def test_image_score():
    found = image_score(torch.tensor([0.2, 0.4, 1.0]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(found, torch.tensor([0.5 * 0.2, 0.5 * (0.4 + 0.5), 1.0]))


def test_image_score_with_an_empty_range():
    """With one image, minimum and maximum are equal. The score must be half the probability, not NaN."""
    found = image_score(torch.tensor([0.3]), torch.tensor([1.7]), torch.tensor([1.7, 1.7]))
    torch.testing.assert_close(found, torch.tensor([0.15]))


def test_inputs_are_not_modified():
    tokens, text_features, ranges = random_units(1, 4, 3), random_units(2, 3, seed=1), torch.tensor([0.0, 2.0])
    copies = tokens.clone(), text_features.clone(), ranges.clone()
    stage_logits(tokens, text_features)
    abnormal_probability(tokens[:, 0], text_features)
    average_states(tokens[0])
    image_score(tokens[0, :, 0], tokens[0, :, 1], ranges)
    assert all(torch.equal(value, copy) for value, copy in zip((tokens, text_features, ranges), copies, strict=True))
