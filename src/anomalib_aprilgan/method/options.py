# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Options that change or omit parts of the method, for ablation studies and for large memory banks."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

__all__ = ["MethodOptions"]

Prompts = Literal["ensemble", "single"]
Projection = Literal["adapters", "clip"]


@dataclass(frozen=True)
class MethodOptions:
    """Options that change the method. The defaults are the method of the paper (arXiv 2305.17382).

    Args:
        map_stages: Stages whose zero-shot maps are summed, a subset of ``layers``. ``None`` means all of them. With
            ``()`` the anomaly map is computed from the memory banks only.
        prompts: ``"ensemble"`` for the prompt ensemble (section 3.1), ``"single"`` for one sentence per state.
        projection: Mapping of patch tokens into the joint space: ``"adapters"`` for the linear adapters (section 3.2),
            ``"clip"`` for CLIP's final norm and projection.
        largest_bank: Largest number of tokens in each memory bank. A larger bank is reduced to a coreset: the tokens
            that represent the others best. ``None`` keeps all tokens.

    Raises:
        ValueError: If an option has another value.
    """

    map_stages: tuple[int, ...] | None = None
    prompts: Prompts = "ensemble"
    projection: Projection = "adapters"
    largest_bank: int | None = None

    def __post_init__(self) -> None:
        for name, values in (("prompts", get_args(Prompts)), ("projection", get_args(Projection))):
            if getattr(self, name) not in values:
                msg = f"Expected argument `{name}` to be one of {', '.join(values)}, but got {getattr(self, name)!r}."
                raise ValueError(msg)
        size: object = self.largest_bank
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            msg = (
                f"Expected argument `largest_bank` to be a positive number of tokens such as 10000, or None for all "
                f"tokens, but got {size!r}."
            )
            raise ValueError(msg)
        if self.map_stages is not None:
            if isinstance(self.map_stages, str):
                msg = f"Expected argument `map_stages` to be a sequence of stages, but got {self.map_stages!r}."
                raise ValueError(msg)
            object.__setattr__(self, "map_stages", tuple(self.map_stages))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        stages = None if self.map_stages is None else list(self.map_stages)
        return {
            "map_stages": stages,
            "prompts": self.prompts,
            "projection": self.projection,
            "largest_bank": self.largest_bank,
        }

    def chosen_stages(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        """Return the stages whose zero-shot maps are summed.

        Args:
            layers: The stages that have an adapter.

        Raises:
            ValueError: If ``map_stages`` is not a subset of ``layers`` or contains a stage twice.
        """
        if self.map_stages is None:
            return layers
        if not set(self.map_stages) <= set(layers) or len(set(self.map_stages)) != len(self.map_stages):
            msg = (
                f"Expected argument `map_stages` to be distinct stages of layers={layers}, but got {self.map_stages!r}."
            )
            raise ValueError(msg)
        return self.map_stages
