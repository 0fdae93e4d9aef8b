# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Current setup of a model as a module: text features, memory banks, calibration, and the setup record."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from threading import RLock
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from anomalib_aprilgan.method.memory_bank import MemoryBank
from anomalib_aprilgan.method.setup import Setup

__all__ = ["SetupState", "SetupTensors"]


class SetupTensors(NamedTuple):
    """Tensors of a setup that a prediction uses. They are never modified in place.

    Attributes:
        text_features: Normal and abnormal text feature, shape ``(2, D)``.
        reference_tokens: Per reference stage, the tokens of its memory bank, shape ``(M, width)``; ``M`` is 0 without
            reference images.
        map_range: Minimum and maximum for the min-max scaling of the few-shot map's maximum, shape ``(2,)``.
    """

    text_features: Tensor
    reference_tokens: tuple[Tensor, ...]
    map_range: Tensor

    @property
    def is_few_shot(self) -> bool:
        """Whether there are reference tokens."""
        return len(self.reference_tokens[0]) > 0


class SetupState(nn.Module):
    """Stores the current setup of a model: the record and its tensors.

    Several threads may use one model. Tensors are replaced under a lock and never modified in place, so that
    :meth:`tensors` always returns tensors of one setup.

    Args:
        embed_dim: Dimensions ``D`` of CLIP's joint space.
        width: Dimensions of a patch token.
        number_of_banks: Number of reference stages.

    Attributes:
        record: Immutable record of the setup.
        number_of_references: Number of reference images whose tokens were put into the memory banks.
        text_features: L2-normalised normal and abnormal text feature, shape ``(2, D)``.
        map_range: Minimum and maximum for the min-max scaling of the few-shot map's maximum, shape ``(2,)``.
        memory_banks: One memory bank per reference stage.
    """

    def __init__(self, embed_dim: int, width: int, number_of_banks: int) -> None:
        super().__init__()
        self.record = Setup()
        self.number_of_references = 0
        self.memory_banks = nn.ModuleList(MemoryBank(width) for _ in range(number_of_banks))
        self.register_buffer("text_features", torch.zeros(2, embed_dim))
        self.register_buffer("map_range", torch.tensor([0.0, 1.0]))
        self.text_features: Tensor
        self.map_range: Tensor
        self._lock = RLock()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock, so that no other thread reads or replaces the setup. Graphs are exported without lock."""
        with nullcontext() if torch.compiler.is_compiling() else self._lock:
            yield

    def tensors(self) -> SetupTensors:
        """Return the tensors of the current setup."""
        with self.locked():
            return SetupTensors(self.text_features, tuple(bank.tokens for bank in self.banks), self.map_range)

    def replace(
        self, record: Setup, text_features: Tensor | None = None, tokens: Sequence[Tensor] | None = None
    ) -> None:
        """Replace the record together with its tensors.

        Args:
            record: The new record.
            text_features: New text features, shape ``(2, D)``. ``None`` keeps the present ones.
            tokens: New reference tokens per reference stage, shape ``(K, P, width)``; an empty sequence empties the
                memory banks. ``None`` keeps the present ones.
        """
        with self.locked(), torch.inference_mode(mode=False), torch.no_grad():
            self.record = record
            if text_features is not None:
                self.text_features = text_features.to(self.text_features, copy=True)
            if tokens is not None:
                self.number_of_references = 0
                for bank in self.banks:
                    bank.clear()
                self._add(tokens)

    def add(self, tokens: Sequence[Tensor], files: Sequence[str]) -> None:
        """Add the tokens of reference images to the memory banks, and their paths to the record.

        Args:
            tokens: Per reference stage, patch tokens of shape ``(K, P, width)``.
            files: Paths of the images; empty if unknown.
        """
        with self.locked(), torch.inference_mode(mode=False), torch.no_grad():
            references = self.record.references
            references = replace(references, files=(*references.files, *files), origin="call")
            self.record = replace(self.record, references=references)
            self._add(tokens)

    def calibrate(self, minimum: float | Tensor, maximum: float | Tensor) -> None:
        """Set the range for the min-max scaling of the few-shot map's maximum (section 3.3).

        Args:
            minimum: Smallest map maximum of a set of images.
            maximum: Largest map maximum of the same images.
        """
        bounds = torch.stack([torch.as_tensor(minimum), torch.as_tensor(maximum)])
        with self.locked(), torch.inference_mode(mode=False):
            self.map_range = bounds.detach().to(self.map_range, copy=True)

    @property
    def banks(self) -> list[MemoryBank]:
        """The memory banks, one per reference stage."""
        return cast("list[MemoryBank]", list(self.memory_banks))

    def _add(self, tokens: Sequence[Tensor]) -> None:
        if tokens:
            self.number_of_references += len(tokens[0])
            for bank, stage in zip(self.banks, tokens, strict=True):
                bank.add(stage)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        for name in ("text_features", "map_range"):
            if prefix + name in state_dict:  # values are copied into a tensor that no other thread reads yet
                setattr(self, name, torch.empty_like(getattr(self, name)))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the lock, which cannot be pickled."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lock = RLock()
