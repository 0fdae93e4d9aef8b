# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The text tower of a CLIP, which is loaded when a sentence is encoded for the first time."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from anomalib_aprilgan.method.clip_weights import digest_of_weights
from anomalib_aprilgan.method.encoders import encode_text, pools_end_token
from anomalib_aprilgan.method.towers import Towers, build_text_tower, tokenizer_of

__all__ = ["TextTower"]


class TextTower:
    """Encodes sentences. It is no module: a model's parameters, its precision and its state dict leave it out.

    Args:
        backbone: Name of an open_clip architecture.
        file: File of CLIP weights; ``None`` for random weights, which are the same each time.
        quick_gelu: Use QuickGELU instead of GELU.
        digest: SHA-256 of its weights.

    Attributes:
        identity: What determines the embeddings of sentences.
    """

    def __init__(self, backbone: str, file: Path | None, *, quick_gelu: bool, digest: str) -> None:
        self.identity = (backbone, quick_gelu, digest)
        self._file = file
        self._tower: Towers | None = None
        self._lock = Lock()

    @property
    def is_loaded(self) -> bool:
        """Whether the tower is in memory."""
        return self._tower is not None

    def encode(self, sentences: Sequence[str], device: torch.device) -> Tensor:
        """Encode sentences in single precision.

        Args:
            sentences: ``S`` sentences; the tokenizer truncates them to the context length.
            device: Where to compute.

        Returns:
            Sentence embeddings, not normalised, shape ``(S, D)``. They are no inference tensors, so that adapters can
            be trained with them.

        Raises:
            RuntimeError: If the weights have changed since the image tower was loaded.
        """
        with torch.inference_mode(mode=False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            towers = self._loaded().to(device)
            token_ids = tokenizer_of(self.identity[0])(list(sentences)).to(device)
            tower = getattr(towers, "text", towers)
            return encode_text(tower, token_ids) if pools_end_token(tower) else towers.encode_text(token_ids)

    def _loaded(self) -> Towers:
        with self._lock:
            if self._tower is None:
                backbone, quick_gelu, digest = self.identity
                tower = build_text_tower(backbone, self._file, quick_gelu=quick_gelu)
                if digest_of_weights(tower.state_dict()) != digest:
                    msg = (
                        f"The CLIP weights ({self._file}) have changed since the image tower was loaded from "
                        "them. Make the model again."
                    )
                    raise RuntimeError(msg)
                self._tower = tower.requires_grad_(requires_grad=False).eval()
            return self._tower

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the tower, which can be loaded again, and the lock."""
        return {name: value for name, value in self.__dict__.items() if name not in {"_tower", "_lock"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _tower=None, _lock=Lock())
