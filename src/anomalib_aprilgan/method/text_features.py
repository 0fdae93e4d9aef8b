# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Text features: the averaged prompt embeddings of a class in both states (arXiv 2305.17382, section 3.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from anomalib_aprilgan.method.clip import Clip
from anomalib_aprilgan.method.options import Prompts
from anomalib_aprilgan.method.prompts import PROMPTS
from anomalib_aprilgan.method.scoring import average_states

__all__ = ["TextFeatures"]


class TextFeatures:
    """Computes the text features of classes and caches them by class name.

    Args:
        prompts: ``"ensemble"`` for the prompt ensemble, ``"single"`` for one sentence per state.
    """

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = PROMPTS[prompts]
        self._computed: dict[str, Tensor] = {}

    def of_class(self, class_name: str, clip: Clip) -> Tensor:
        """Return the text features of a class.

        Args:
            class_name: Name of the object or surface.
            clip: The CLIP whose text tower encodes the prompts.

        Returns:
            L2-normalised normal and abnormal text feature, shape ``(2, D)``, on the CPU.

        Raises:
            ValueError: If the class name is empty.
        """
        if class_name not in self._computed:
            states = [average_states(clip.encode_text(sentences)) for sentences in self._prompts(class_name)]
            with torch.inference_mode(mode=False):
                self._computed[class_name] = torch.stack(states).cpu()
        return self._computed[class_name]

    def of_classes(self, class_names: Sequence[str], clip: Clip) -> Tensor:
        """Return the text features of ``N`` class names, one per image of a batch, shape ``(N, 2, D)``."""
        return torch.stack([self.of_class(class_name, clip) for class_name in class_names])
