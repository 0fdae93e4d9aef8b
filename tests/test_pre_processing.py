# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Pre-processing: resizing like the authors' code, and the interface to anomalib."""

import pytest
import torch
from anomalib.data.transforms.utils import extract_transforms_by_type
from anomalib.pre_processing import PreProcessor
from torchvision import tv_tensors
from torchvision.transforms.v2 import Compose, InterpolationMode, Normalize, Resize

from anomalib_aprilgan.integration.pre_processing import CLIP_MEAN, CLIP_STD, AprilGanPreProcessor, EightBitResize


def random_bytes(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def channels_first(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 3, 1, 2).contiguous()


# ---- The authors' resize ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda image: image, tv_tensors.Image], ids=["tensor", "tv_tensor"])
def test_float_images_are_resized_like_the_authors(golden, wrap):
    found = EightBitResize(golden["size"])(wrap(channels_first(golden["images"]) / 255))
    assert found.dtype == torch.float32
    assert isinstance(found, type(wrap(torch.zeros(3, 1, 1))))
    expected = channels_first(golden["resized"])
    assert torch.equal((found * 255).round().to(torch.uint8), expected)
    torch.testing.assert_close(found.as_subclass(torch.Tensor), expected / 255, atol=1e-7, rtol=0)


def test_8_bit_images_stay_8_bit(golden):
    found = EightBitResize(golden["size"])(channels_first(golden["images"]))
    assert found.dtype == torch.uint8
    assert torch.equal(found, channels_first(golden["resized"]))


def test_masks_are_resized_like_the_authors(golden):
    found = EightBitResize(golden["size"])(tv_tensors.Mask(golden["masks"] > 0))
    assert isinstance(found, tv_tensors.Mask)
    assert found.dtype == torch.bool
    assert torch.equal(found.as_subclass(torch.Tensor), golden["gt"])


def test_the_pre_processor_gives_the_authors_input(golden):
    found = AprilGanPreProcessor(golden["size"]).transform(channels_first(golden["images"]) / 255)
    torch.testing.assert_close(found, golden["inputs"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_masks_keep_their_type(dtype):
    mask = torch.zeros(1, 20, 30, dtype=dtype)
    mask[:, 5:15, 5:15] = 1
    found = EightBitResize(8)(tv_tensors.Mask(mask))
    assert found.dtype == dtype
    assert set(found.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("leading", [(), (1,), (4,), (2, 3)], ids=str)
def test_images_may_have_any_leading_dimensions(leading):
    image = random_bytes(*leading, 3, 20, 30) / 255
    found = EightBitResize(12)(image)
    assert found.shape == (*leading, 3, 12, 12)
    singles = [EightBitResize(12)(one) for one in image.reshape(-1, 3, 20, 30)]
    assert torch.equal(found.reshape(-1, 3, 12, 12), torch.stack(singles))


@pytest.mark.parametrize("leading", [(), (1,), (4,), (4, 1)], ids=str)
def test_masks_may_have_any_leading_dimensions(leading):
    mask = random_bytes(*leading, 20, 30) > 127
    found = EightBitResize(12)(tv_tensors.Mask(mask))
    assert found.shape == (*leading, 12, 12)
    singles = [EightBitResize(12)(tv_tensors.Mask(one)) for one in mask.reshape(-1, 20, 30)]
    assert torch.equal(found.reshape(-1, 12, 12), torch.stack(singles))


@pytest.mark.parametrize("shape", [(3, 12, 12), (2, 3, 12, 12)], ids=str)
def test_images_of_the_right_size_are_not_changed(shape):
    """They are not rounded to 8 bits either, since the workers of the datamodule may have resized them already."""
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(EightBitResize(12)(image), image)


def test_masks_of_the_right_size_are_not_changed():
    mask = tv_tensors.Mask(random_bytes(2, 12, 12))
    assert torch.equal(EightBitResize(12)(mask), mask)


def test_a_second_resize_changes_nothing():
    once = EightBitResize(12)(random_bytes(3, 20, 30) / 255)
    assert torch.equal(EightBitResize(12)(once), once)


def test_an_image_and_its_mask_are_resized_together():
    image, mask = tv_tensors.Image(random_bytes(2, 3, 20, 30)), tv_tensors.Mask(random_bytes(2, 20, 30) > 127)
    found_image, found_mask = EightBitResize(12)(image, mask)
    assert torch.equal(found_image, EightBitResize(12)(image))
    assert torch.equal(found_mask, EightBitResize(12)(mask))
    assert EightBitResize(12)(image, None)[1] is None


def test_the_overshoot_of_a_bicubic_resize_is_clamped():
    image = torch.full((3, 20, 20), 1.2)
    image[:, :, 10:] = -0.2
    found = EightBitResize(10)(image)
    assert (found.min(), found.max()) == (0, 1)


def test_values_far_outside_of_the_unit_interval_are_refused():
    """They would be clamped to white; also where the image has the right size already."""
    image = random_bytes(3, 20, 20) / 255
    for wrong in (image * 255, image * 4 - 2, torch.where(image > 0.5, float("nan"), image), image / 0):
        for size in (10, 20):
            with pytest.raises(ValueError, match=r"`images` to have values in \[0, 1\], but got values from"):
                EightBitResize(size)(wrong)


def test_grey_images_are_resized_by_torchvision():
    grey = torch.rand(1, 20, 30, generator=torch.Generator().manual_seed(0))
    expected = Resize((12, 12), interpolation=InterpolationMode.BICUBIC, antialias=True)(grey)
    torch.testing.assert_close(EightBitResize(12)(grey), expected)


def test_inputs_are_not_modified():
    image, mask = random_bytes(3, 20, 30) / 255, tv_tensors.Mask(random_bytes(20, 30) > 127)
    copies = image.clone(), mask.clone()
    EightBitResize(12)(image, mask)
    AprilGanPreProcessor(12).transform(image, mask)
    assert torch.equal(image, copies[0])
    assert torch.equal(mask, copies[1])


# ---- Interface to anomalib ---------------------------------------------------------------------------------------


def test_anomalib_finds_the_resize_transform():
    """Workers of anomalib's datamodules use this transform."""
    (resize,) = extract_transforms_by_type(AprilGanPreProcessor(24).transform, Resize)
    assert isinstance(resize, EightBitResize)
    assert list(resize.size) == [24, 24]


def test_normalisation_uses_the_values_of_clip():
    assert CLIP_MEAN == (0.48145466, 0.4578275, 0.40821073)
    assert CLIP_STD == (0.26862954, 0.26130258, 0.27577711)
    (found,) = extract_transforms_by_type(AprilGanPreProcessor(24).transform, Normalize)
    assert (tuple(found.mean), tuple(found.std)) == (CLIP_MEAN, CLIP_STD)


def test_masks_are_not_normalised():
    mask = tv_tensors.Mask(random_bytes(2, 20, 30) > 127)
    _, found = AprilGanPreProcessor(12).transform(tv_tensors.Image(random_bytes(2, 3, 20, 30) / 255), mask)
    assert torch.equal(found, EightBitResize(12)(mask))


def test_forward_is_the_transform():
    pre_processor, images = AprilGanPreProcessor(12), random_bytes(2, 3, 20, 30) / 255
    assert torch.equal(pre_processor(images), pre_processor.transform(images))


def test_forward_takes_floats_of_any_precision_and_8_bit_integers():
    for size in (12, 20):  # resized, and of the right size already
        images = random_bytes(2, 3, 20, 20)
        expected = AprilGanPreProcessor(size)(images / 255)
        for given in (images, (images / 255).half(), (images / 255).double(), tv_tensors.Image(images)):
            found = AprilGanPreProcessor(size)(given)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found.as_subclass(torch.Tensor), expected, atol=2e-3, rtol=0)
        assert torch.equal(AprilGanPreProcessor(size)(images), expected)


def test_forward_refuses_what_is_no_batch_of_rgb_images():
    """It names the argument, what came instead, and what to do. Values are never clamped to white."""
    images = random_bytes(2, 3, 20, 30) / 255
    wrong = {
        r"shape \(2, 4, 20, 30\).*images\[:, :3\]": torch.cat([images, images[:, :1]], dim=1),
        r"shape \(2, 1, 20, 30\).*expand": images[:, :1],
        r"shape \(3, 20, 30\).*image\[None\]": images[0],
        r"shape \(2, 20, 30, 3\).*permute": images.permute(0, 2, 3, 1),
        r"shape \(0, 3, 20, 30\)": images[:0],
        r"torch\.int64\. Convert": (images * 255).long(),
        r"torch\.bool\. Convert": images > 0.5,
        r"ndarray": images.numpy(),
        r"values from 0 to 255\. Divide": images * 255,
        r"values from 0 to 1\.1\. ": images * 1.1,
        r"values from -1 to 1\. ": images * 2 - 1,
        r"values from nan to nan\..*replace NaN": torch.where(images > 0.99, float("nan"), images),
        r"values from 0 to inf\. ": torch.where(images > 0.99, float("inf"), images),
    }
    for size in (12, 20):
        for message, given in wrong.items():
            with pytest.raises(ValueError, match=rf"^Expected argument `batch` to .* but got .*{message}"):
                AprilGanPreProcessor(size)(given)


def test_a_transform_of_the_user_gets_the_images_unchanged():
    pre_processor = AprilGanPreProcessor(12)
    pre_processor.transform = pre_processor.export_transform = Compose(
        [Resize((12, 12)), Normalize([127.0] * 3, [50.0] * 3)]
    )
    images = random_bytes(2, 3, 20, 30).float()
    assert torch.equal(pre_processor(images), pre_processor.transform(images))


def is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(name, str) and is_plain(item) for name, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)


def test_the_configuration_is_plain_data_and_does_not_change_the_image_size(tmp_path):
    images = random_bytes(2, 3, 20, 30) / 255
    saved = AprilGanPreProcessor(12)
    config = saved.checkpoint_config()
    assert is_plain(config)
    torch.save(config, tmp_path / "config.pt")
    restored = AprilGanPreProcessor(40)
    restored.load_checkpoint_config(torch.load(tmp_path / "config.pt", weights_only=True))
    assert restored.image_size == 40  # image size of the model, not of the configuration
    assert restored.transform(images).shape[-2:] == restored(images).shape[-2:] == (40, 40)
    assert AprilGanPreProcessor(12).checkpoint_config() == config


def test_a_stock_pre_processor_restores_the_nearest_equivalent():
    config = AprilGanPreProcessor(12).checkpoint_config()
    stock = PreProcessor()
    stock.load_checkpoint_config(config)
    resize, normalize = stock.transform.transforms
    assert (type(resize), list(resize.size), resize.interpolation) == (Resize, [12, 12], InterpolationMode.BICUBIC)
    assert resize.antialias
    assert (tuple(normalize.mean), tuple(normalize.std)) == (CLIP_MEAN, CLIP_STD)
    images = random_bytes(2, 3, 20, 30) / 255
    difference = (stock.transform(images) - AprilGanPreProcessor(12).transform(images)).abs().max()
    assert 0 < difference < 0.5


def test_a_stock_pre_processor_s_transform_is_restored_too():
    stock = PreProcessor(Compose([Resize((10, 14)), Normalize(mean=[0.5] * 3, std=[0.25] * 3)]))
    restored = AprilGanPreProcessor(12)
    restored.load_checkpoint_config(stock.checkpoint_config())
    images = random_bytes(2, 3, 20, 30) / 255
    assert torch.equal(restored.transform(images), stock.transform(images))
    assert restored.checkpoint_config() == stock.checkpoint_config()
