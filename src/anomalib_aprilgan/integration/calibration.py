# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Calibration of few-shot scores: the range of map maxima (arXiv 2305.17382, section 3.3), and normal images alone."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from anomalib_aprilgan.method.scoring import RawPrediction, image_score
from anomalib_aprilgan.torch_model import AprilGanModel

__all__ = ["MapRange", "NormalScores", "score_normal_images"]

DELAY = 5
"""Seconds after which scoring normal images shows its progress."""


class MapRange:
    """Collects raw predictions during validation, and calibrates a model with them at the end.

    Few-shot image scores are final only after that, since the map's maximum is min-max scaled over the whole set.
    """

    def __init__(self) -> None:
        self._collected: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def clear(self) -> None:
        """Delete all predictions."""
        self._collected = []

    def add(self, raw: RawPrediction, labels: Tensor | None) -> None:
        """Add the predictions of a batch.

        Args:
            raw: The predictions.
            labels: Labels of shape ``(N,)``, if known.
        """
        self._collected.append((raw.probability, raw.map_max, labels))

    def calibrate(
        self, model: AprilGanModel, all_gather: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor | None] | None:
        """Calibrate a model with the collected predictions, and delete them.

        Without any anomalous image the range starts at 0: the smallest maximum of normal images says little then.

        Args:
            model: The model.
            all_gather: Function that gathers a tensor from all processes.

        Returns:
            Final image scores and labels of the images of this process, shape ``(N,)`` each; ``None`` if there are no
            predictions.
        """
        if not self._collected:
            return None
        probability = torch.cat([probability for probability, _, _ in self._collected])
        map_max = torch.cat([map_max for _, map_max, _ in self._collected])
        labels = [label for _, _, label in self._collected if label is not None]
        self.clear()
        is_normal = map_max.new_tensor(float(bool(labels) and not torch.cat(labels).any()))
        bounds = all_gather(torch.stack([map_max.min(), map_max.max(), is_normal])).reshape(-1, 3)
        minimum = torch.where(bounds[:, 2].all(), 0.0, bounds[:, 0].min())
        model.calibrate(minimum, bounds[:, 1].max())
        return image_score(probability, map_max, model.map_range), torch.cat(labels) if labels else None


class NormalScores(NamedTuple):
    """Scores of normal images.

    Attributes:
        scores: Raw image scores, shape ``(N,)``.
        map_maxima: Maxima of the anomaly maps, shape ``(N,)``.
    """

    scores: Tensor
    map_maxima: Tensor


def score_normal_images(
    model: AprilGanModel, held_out: Sequence[str], references: Sequence[str], read: Callable[[Sequence[str]], Tensor]
) -> NormalScores:
    """Score normal images with a few-shot model, and set its range of map maxima.

    The range is from 0 to the largest maximum of these images.

    A reference image is scored against the other references (leave one out), since it has no distance to itself. In
    reduced memory banks a token stands for tokens of several images, so that no image can be left out. There,
    references are encoded again and scored against all tokens of the others, as before the reduction.

    Args:
        model: A few-shot model.
        held_out: Normal images that are no references.
        references: The reference images to score, in the order of the memory banks; empty for none.
        read: Reads image files and pre-processes them, shape ``(N, 3, image_size, image_size)``.

    Returns:
        The scores.
    """
    tensors, raw = model.state.tensors(), []
    banks = _tokens_by_reference(model, tensors.reference_tokens, references, read) if references else []
    files = [*((None, file) for file in held_out), *enumerate(references)]
    for left_out, file in tqdm(files, "Scoring normal images", delay=DELAY, leave=False, disable=None):
        seen = tensors.reference_tokens
        if left_out is not None:
            others = [number for number in range(model.k_shot) if number != left_out]
            seen = tuple(bank[others].flatten(0, 1) for bank in banks)
        image = read([file]).to(seen[0].device)
        with torch.no_grad():
            raw.append(model.predict_raw(image, tensors._replace(reference_tokens=seen)))
    probability = torch.cat([one.probability for one in raw])
    map_maxima = torch.cat([one.map_max for one in raw])
    model.calibrate(0.0, map_maxima.max())
    return NormalScores(image_score(probability, map_maxima, model.map_range), map_maxima)


def _tokens_by_reference(
    model: AprilGanModel,
    reference_tokens: Sequence[Tensor],
    references: Sequence[str],
    read: Callable[[Sequence[str]], Tensor],
) -> list[Tensor]:
    """Return all tokens of the reference images, per reference stage, shape ``(K, P, width)``."""
    if model.has_reduced_banks:
        return [normalize(stage, dim=-1) for stage in model.encode_references(read(references))]
    return [bank.reshape(model.k_shot, -1, bank.shape[-1]) for bank in reference_tokens]
