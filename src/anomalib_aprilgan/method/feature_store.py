# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""A store of the image tower's outputs: an image that the frozen tower has seen before is not encoded again."""

import hashlib
import json
import re
import time
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from anomalib_aprilgan.files.feature_files import FeatureFiles
from anomalib_aprilgan.method.encoders import ImageFeatures, encode_image

__all__ = ["FeatureStore", "now", "precision_of"]

FORMAT = 1
"""Number that changes with whatever else changes the stored features."""

EMBEDDING = "embedding"
SECONDS = "seconds"


class FeatureStore:
    """Encodes images, and stores stage tokens and embeddings in half precision.

    Features are found by what determines them: the image as the tower gets it, after pre-processing; the weights,
    activation and input size of the tower; and the precision and kind of device of the computation.

    Features are rounded to half precision whether they were stored before or not, so that a second run gives the same
    results as the first. If a part of a batch is stored, the rest is encoded in a smaller batch. Matrix products of
    another size may round differently, which can change the last bit of a feature.

    Args:
        files: Where the features are stored.

    Attributes:
        found: Number of images whose features were stored before.
        computed: Number of images that were encoded.
        seconds_saved: Seconds that encoding the found images took when they were stored, minus the time for storing and
            finding features.
    """

    def __init__(self, files: FeatureFiles) -> None:
        self.files = files
        self.found = 0
        self.computed = 0
        self.seconds_saved = 0.0

    def encode_image(
        self,
        visual: nn.Module,
        images: Tensor,
        stages: Collection[int],
        identity: Sequence[str | bool],
        recurs: Sequence[bool] | None = None,
    ) -> ImageFeatures:
        """Encode images as :func:`anomalib_aprilgan.method.encoders.encode_image` does, without gradients.

        Args:
            visual: Image tower, a standard ViT.
            images: Pre-processed images of shape ``(N, 3, n, n)``.
            stages: Blocks whose patch tokens are returned, counted from 1.
            identity: What else determines the features: name of the backbone, activation, digest of the weights.
            recurs: Whether each image will be seen again. Features of others are not stored. ``None``: all are.

        Returns:
            The image embeddings and the patch tokens of each stage, rounded to half precision.
        """
        images = images.as_subclass(Tensor)
        start = now(images.device)
        group = _group(images, identity)
        names = [_digest(image) for image in images]
        rows: dict[str, dict[str, Tensor]] = {}
        saved = 0.0
        for name in dict.fromkeys(names):
            if (stored := self._read(group, name, stages)) is not None:
                rows[name], seconds = stored
                saved += seconds
        missing = {name: index for index, name in enumerate(names) if name not in rows}
        if missing:
            before = now(images.device)
            features = encode_image(visual, images[list(missing.values())], stages)
            seconds = now(images.device) - before
            start += seconds
            for number, (name, index) in enumerate(missing.items()):
                rows[name] = _row(features, number)
                if recurs is None or recurs[index]:
                    self._write(group, name, rows[name], seconds / len(missing))
        self.found += len(names) - len(missing)
        self.computed += len(missing)
        embedding, *tokens = (
            _stacked([rows[name][key] for name in names], images) for key in (EMBEDDING, *map(_key, stages))
        )
        self.seconds_saved += saved - (now(images.device) - start)
        return ImageFeatures(embedding, dict(zip(stages, tokens, strict=True)))

    def _read(self, group: str, name: str, stages: Collection[int]) -> tuple[dict[str, Tensor], float] | None:
        """Read the features of an image, and the seconds that computing them took, if all stages are stored."""
        stored = self.files.read(group, name)
        if stored is None or not {EMBEDDING, *map(_key, stages)} <= stored[0].keys():
            return None
        tensors, metadata = stored
        return tensors, float(metadata.get(SECONDS, 0))

    def _write(self, group: str, name: str, row: dict[str, Tensor], seconds: float) -> None:
        """Store the features of an image. Stages that were stored before are kept."""
        if all(tensor.dtype == torch.half for tensor in row.values()):
            stored = self.files.read(group, name)
            others = {} if stored is None else {key: value.clone() for key, value in stored[0].items()}
            self.files.write(group, name, {**others, **row}, {SECONDS: f"{seconds:.6f}"})


def _group(images: Tensor, identity: Sequence[str | bool]) -> str:
    """Return the name of the group of features that the same tower computes in the same way."""
    size = images.shape[-1]
    how = (FORMAT, *identity, size, *precision_of(images))
    backbone = re.sub(r"[^A-Za-z0-9-]", "_", str(identity[0]))[:60]
    return f"{backbone}-{size}-{hashlib.sha256(json.dumps(how).encode()).hexdigest()[:20]}"


def precision_of(images: Tensor) -> tuple[str, str, str]:
    """Return kind of device and precision of computations with images, with which results differ."""
    device = images.device.type
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else images.dtype
    return device, str(precision), torch.get_float32_matmul_precision()


def _key(stage: int) -> str:
    return f"stage_{stage}"


def _row(features: ImageFeatures, number: int) -> dict[str, Tensor]:
    """Return the features of one image in half precision, or unchanged if a value is too large for it."""
    row = {
        EMBEDDING: features.embedding[number],
        **{_key(stage): one[number] for stage, one in features.tokens.items()},
    }
    halves = {key: value.detach().half().cpu().contiguous() for key, value in row.items()}
    return halves if all(bool(value.isfinite().all()) for value in halves.values()) else row


def _stacked(rows: Sequence[Tensor], images: Tensor) -> Tensor:
    """Stack tensors, with the type and on the device of the images."""
    stacked = images.new_empty((len(rows), *rows[0].shape))
    for target, row in zip(stacked, rows, strict=True):
        target.copy_(row)
    return stacked


def _digest(image: Tensor) -> str:
    return hashlib.sha256(image.cpu().contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()[:40]


def now(device: torch.device) -> float:
    """Return the time in seconds, after the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
