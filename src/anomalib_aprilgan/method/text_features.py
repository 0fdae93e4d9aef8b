# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Text features: the averaged prompt embeddings of a class in both states (arXiv 2305.17382, section 3.1)."""

import hashlib
import json
from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from anomalib_aprilgan.files.feature_files import text_files
from anomalib_aprilgan.method.clip import Clip
from anomalib_aprilgan.method.options import Prompts
from anomalib_aprilgan.method.prompts import PROMPTS
from anomalib_aprilgan.method.scoring import average_states

__all__ = ["TextFeatures"]

LARGEST_CACHE = 256
"""Number of classes whose text features are kept in memory; a service may be asked for any number of names."""

FORMAT = 1
"""Number that changes with whatever else changes the text features."""

GROUP = "text"
"""Name of the stored tensor, and of the group of all stored text features."""


class TextFeatures:
    """Computes the text features of classes. They are kept in memory by class name, and on disk by their sentences.

    Args:
        prompts: ``"ensemble"`` for the prompt ensemble, ``"single"`` for one sentence per state.
    """

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = PROMPTS[prompts]
        self._computed: dict[str, Tensor] = {}
        self._lock = Lock()

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
        with self._lock:
            found = self._computed.get(class_name)
        if found is None:
            found = _stored_or_encoded(self._prompts(class_name), clip)
        with self._lock:
            self._computed.pop(class_name, None)
            self._computed[class_name] = found  # the last one in the order of the dict
            for oldest in list(self._computed)[:-LARGEST_CACHE]:
                del self._computed[oldest]
        return found

    def of_classes(self, class_names: Sequence[str], clip: Clip) -> Tensor:
        """Return the text features of ``N`` class names, one per image of a batch, shape ``(N, 2, D)``."""
        return torch.stack([self.of_class(class_name, clip) for class_name in class_names])

    def keep_only(self, class_name: str | None) -> None:
        """Forget all other classes, so that a copy for somebody else does not name them."""
        with self._lock:
            self._computed = {name: value for name, value in self._computed.items() if name == class_name}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the lock, which cannot be pickled."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = Lock()


def _stored_or_encoded(states: Sequence[Sequence[str]], clip: Clip) -> Tensor:
    """Return the text features of sentences from the cache on disk, or encode them and store the result.

    Args:
        states: Sentences of the normal and the abnormal state.
        clip: The CLIP.

    Returns:
        Text features of shape ``(2, D)``, on the CPU.
    """
    files, how = text_files(), [FORMAT, *clip.identity_of_text, [list(sentences) for sentences in states]]
    name = hashlib.sha256(json.dumps(how).encode()).hexdigest()[:40]
    stored = files.read(GROUP, name)
    if stored is not None and stored[0].get(GROUP, torch.empty(0)).shape == (len(states), clip.embed_dim):
        with torch.inference_mode(mode=False):
            return stored[0][GROUP].clone()
    features = [average_states(clip.encode_text(sentences)) for sentences in states]
    with torch.inference_mode(mode=False):
        found = torch.stack(features).cpu()
    files.write(GROUP, name, {GROUP: found}, {})
    return found
