# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The training loss, compared with slow and simple implementations."""

import math

import pytest
import torch

from anomalib_aprilgan.method.losses import adapter_loss, dice_loss, focal_loss


def random_maps(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Make maps and ground truth of three images of 4 x 5 pixels with different numbers of abnormal pixels."""
    generator = torch.Generator().manual_seed(seed)
    abnormal = torch.rand(3, 4, 5, generator=generator, dtype=torch.float64)
    target = torch.zeros(3, 4, 5, dtype=torch.float64)
    target[0, :3, 1:] = 1
    target[1, 2, 2] = 1
    return torch.stack([1 - abnormal, abnormal], dim=1), target


def slow_focal(probabilities: torch.Tensor, target: torch.Tensor) -> float:
    losses = []
    for maps, truth in zip(probabilities, target, strict=True):
        for row in range(truth.shape[0]):
            for column in range(truth.shape[1]):
                wanted = [1 - truth[row, column].item(), truth[row, column].item()]
                wanted = [min(max(value, 1e-5), 1 - 1e-5) for value in wanted]
                p_true = sum(want * maps[state, row, column].item() for state, want in enumerate(wanted)) + 1e-5
                losses.append(-((1 - p_true) ** 2) * math.log(p_true))
    return math.fsum(losses) / len(losses)


def slow_dice(anomaly_map: torch.Tensor, target: torch.Tensor) -> float:
    losses = []
    for prediction, truth in zip(anomaly_map, target, strict=True):
        pairs = list(zip(prediction.flatten().tolist(), truth.flatten().tolist(), strict=True))
        overlap = sum(p * t for p, t in pairs)
        losses.append(1 - (2 * overlap + 1) / (sum(p for p, _ in pairs) + sum(t for _, t in pairs) + 1))
    return sum(losses) / len(losses)


def test_focal_loss():
    probabilities, target = random_maps()
    assert focal_loss(probabilities, target).item() == pytest.approx(slow_focal(probabilities, target), rel=1e-9)


def test_focal_loss_of_certain_maps_is_finite():
    """Without smoothing, the loss of a wrong state with probability 1 would be infinite."""
    target = torch.ones(1, 2, 2)
    certain = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)], dim=1)
    assert focal_loss(certain, target).item() == pytest.approx(0, abs=1e-6)
    expected = -((1 - 2e-5) ** 2) * math.log(2e-5)
    assert focal_loss(certain.flip(1), target).item() == pytest.approx(expected, rel=1e-4)


def test_focal_loss_has_finite_gradients_for_certain_maps():
    certain = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)], dim=1).requires_grad_()
    focal_loss(certain, torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])).backward()
    assert certain.grad.isfinite().all()


def test_dice_loss():
    probabilities, target = random_maps()
    assert dice_loss(probabilities[:, 1], target).item() == pytest.approx(
        slow_dice(probabilities[:, 1], target),
        rel=1e-9,
    )


def test_dice_loss_is_averaged_over_images():
    """Computed over the whole batch, the image with the small defect would have little weight."""
    prediction, target = torch.zeros(2, 10, 10), torch.zeros(2, 10, 10)
    prediction[0] = target[0] = 1
    target[1, 0, 0] = 1
    assert dice_loss(prediction, target).item() == pytest.approx(0.5 * (1 - 1 / 2), abs=1e-6)


def test_dice_loss_of_normal_images():
    assert dice_loss(torch.zeros(2, 3, 3), torch.zeros(2, 3, 3)).item() == 0
    assert dice_loss(torch.ones(2, 3, 3), torch.zeros(2, 3, 3)).item() == pytest.approx(0.9)


def test_adapter_loss_sums_both_losses_over_the_stages():
    first, target = random_maps()
    second, _ = random_maps(seed=1)
    expected = sum(slow_focal(stage, target) + slow_dice(stage[:, 1], target) for stage in (first, second))
    assert adapter_loss([first, second], target.float()).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_adapter_loss_takes_masks_of_any_type(dtype):
    maps, target = random_maps()
    expected = adapter_loss(iter([maps]), target.float())
    assert torch.equal(adapter_loss(iter([maps]), target.to(dtype)), expected)


def test_inputs_are_not_modified():
    maps, target = random_maps()
    copies = maps.clone(), target.clone()
    adapter_loss([maps], target)
    assert torch.equal(maps, copies[0])
    assert torch.equal(target, copies[1])
