# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""8-bit resizing: the same result with any release of PIL, and in an exported graph."""

import pytest
import torch

from anomalib_aprilgan.integration.pre_processing import AprilGanPreProcessor
from anomalib_aprilgan.integration.resizing import resize_by_matrices, resize_by_pil

# First channel of a tall image, resized by PIL 10.1 and 12.0, which agree. PIL 13 resizes the height of it first.
TALL = [
    [77, 81, 95, 132, 161, 176, 177, 175],
    [85, 123, 168, 133, 118, 133, 155, 169],
    [132, 128, 120, 110, 116, 136, 150, 157],
    [131, 121, 110, 115, 109, 94, 110, 124],
    [164, 137, 104, 110, 125, 141, 161, 172],
    [107, 109, 116, 144, 142, 110, 130, 146],
    [74, 82, 102, 129, 131, 109, 117, 126],
    [132, 142, 156, 158, 140, 112, 159, 197],
]


def tall_image() -> torch.Tensor:
    channel, y, x = torch.meshgrid(torch.arange(3), torch.arange(40), torch.arange(5), indexing="ij")
    return ((y * y * 37 + x * x * x * 11 + channel * 101 + y * x * 53) % 256).to(torch.uint8)


def images(height: int, width: int) -> torch.Tensor:
    """Make two images that are sensitive to rounding: noise, and black or white pixels."""
    generator = torch.Generator().manual_seed(height * 10_000 + width)
    noise = torch.randint(0, 256, (3, height, width), generator=generator)
    return torch.stack([noise, noise // 128 * 255]).to(torch.uint8)


@pytest.mark.parametrize("resize", [resize_by_pil, lambda image, size: resize_by_matrices(image.float(), size)])
def test_width_is_resized_first_like_in_the_authors_pil(resize):
    found = resize(tall_image(), 8)
    assert found[0].int().tolist() == TALL
    assert int(found.int().sum()) == 24862


@pytest.mark.parametrize("size", [24, 61])
@pytest.mark.parametrize(
    ("height", "width"), [(24, 61), (61, 24), (300, 20), (20, 300), (7, 5), (640, 480), (122, 48), (1, 1), (25, 24)]
)
def test_matrices_give_exactly_the_same_values_as_pil(height, width, size):
    expected = resize_by_pil(images(height, width), size)
    assert torch.equal(resize_by_matrices(images(height, width).float(), size), expected.float())


def test_leading_dimensions_are_kept():
    assert resize_by_pil(images(9, 9).expand(4, 2, 3, 9, 9), 5).shape == (4, 2, 3, 5, 5)
    assert torch.equal(resize_by_pil(images(9, 9).expand(4, 2, 3, 9, 9), 5)[3], resize_by_pil(images(9, 9), 5))


@pytest.mark.parametrize("sides", ["any", "fixed"])
def test_the_exported_pre_processor_gives_the_same_images(sides):
    pre_processor = AprilGanPreProcessor(24)
    dimension = torch.export.Dim
    dynamic = {0: dimension("batch"), 2: dimension("height"), 3: dimension("width")}
    shapes = [(5, 40, 30), (1, 24, 24), (2, 24, 31)] if sides == "any" else [(2, 40, 30)]
    graph = torch.export.export(
        pre_processor, (torch.zeros(2, 3, 40, 30),), dynamic_shapes=(dynamic,) if sides == "any" else None, strict=False
    ).module()
    for number, height, width in shapes:
        batch = images(height, width)[:1].expand(number, 3, height, width) / 255
        assert torch.equal(graph(batch), pre_processor(batch))


def test_the_exported_pre_processor_does_not_change_images_of_the_right_size():
    batch = torch.rand(2, 3, 24, 24)  # values between the 8-bit levels
    graph = torch.export.export(AprilGanPreProcessor(24), (batch,), strict=False).module()
    assert torch.equal(graph(batch), AprilGanPreProcessor(24)(batch))
