# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The linear adapters, one per stage, and the files they are kept in (arXiv 2305.17382, section 3.2)."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.functional import normalize

from anomalib_aprilgan.weight_files import read_weight_file, write_weight_file

__all__ = ["AdapterOrigin", "ClipProjection", "StageAdapters", "read_adapters", "write_adapters"]

OFFICIAL_KEY = "trainable_linearlayer"
"""Where the authors' checkpoints keep their weights."""
METADATA_KEY = "anomalib_aprilgan"


@dataclass(frozen=True)
class AdapterOrigin:
    """What adapters belong to. Fields that a file does not tell are ``None``.

    Attributes:
        backbone: open_clip architecture.
        pretrained: Tag or path of the CLIP weights.
        fingerprint: Digest of the CLIP weights.
        quick_gelu: Whether CLIP ran with QuickGELU.
        image_size: Height and width in pixels of the training images.
        layers: Stages, counted from 1.
        trained_on: Data sets and categories that the adapters have seen.
    """

    backbone: str | None = None
    pretrained: str | None = None
    fingerprint: str | None = None
    quick_gelu: bool | None = None
    image_size: int | None = None
    layers: tuple[int, ...] | None = None
    trained_on: tuple[str, ...] = field(default=())

    def conflicts_with(self, model: "AdapterOrigin") -> list[str]:
        """Name what keeps the adapters from fitting a model.

        The image size may differ: an adapter works on each token by itself.

        Args:
            model: What the model is, every field told.

        Returns:
            One phrase per conflict, with both sides; empty if the adapters fit.
        """
        conflicts = [
            f"{name} {theirs!r} against the model's {ours!r}"
            for name in ("backbone", "quick_gelu", "layers")
            if (theirs := getattr(self, name)) is not None and theirs != (ours := getattr(model, name))
        ]
        if self.fingerprint is not None and model.fingerprint is not None:
            if self.fingerprint != model.fingerprint and not conflicts:
                conflicts.append(
                    f"other CLIP weights (pretrained={self.pretrained!r}, digest {self.fingerprint}) than the model's "
                    f"(pretrained={model.pretrained!r}, digest {model.fingerprint})",
                )
        elif self.pretrained is not None and not _is_same_tag(self.pretrained, model.pretrained):
            conflicts.append(f"pretrained {self.pretrained!r} against the model's {model.pretrained!r}")
        return conflicts

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "AdapterOrigin":
        """Restore what :meth:`to_dict` returned; unknown fields are passed over."""
        known: dict[str, Any] = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        known |= {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        return cls(**known)


def _is_same_tag(theirs: str, ours: str | None) -> bool:
    """Compare tags; a path says nothing about which weights it holds."""
    return ours is not None and (theirs == ours or Path(ours).suffix != "" or Path(theirs).suffix != "")


class StageAdapters(nn.Module):
    """Linear layers that map patch tokens into CLIP's joint space, one per stage.

    Args:
        num_stages: Number of stages.
        width: Dimensions of a patch token.
        embed_dim: Dimensions ``D`` of the joint space.
    """

    def __init__(self, num_stages: int, width: int, embed_dim: int) -> None:
        super().__init__()
        self.fc = nn.ModuleList(
            nn.Linear(width, embed_dim) for _ in range(num_stages)
        )  # named as in the authors' files

    def reset_parameters(self) -> None:
        """Draw fresh weights."""
        for adapter in self.fc:
            cast("nn.Linear", adapter).reset_parameters()

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Adapt each stage's tokens.

        Args:
            tokens: Per stage, raw patch tokens of shape ``(N, P, width)``.

        Returns:
            Per stage, tokens of length 1, shape ``(N, P, D)``.
        """
        return [
            normalize(adapter(stage.to(next(adapter.parameters()).dtype)), dim=-1)
            for adapter, stage in zip(self.fc, tokens, strict=True)
        ]


class ClipProjection(nn.Module):
    """Stands in for the adapters, to find out what they are worth: CLIP's own way into the joint space.

    It has no weights of its own.

    Args:
        project: CLIP's final norm and projection.
    """

    def __init__(self, project: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._project = project

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Project each stage's tokens.

        Args:
            tokens: Per stage, raw patch tokens of shape ``(N, P, width)``.

        Returns:
            Per stage, tokens of length 1, shape ``(N, P, D)``.
        """
        return [normalize(self._project(stage), dim=-1) for stage in tokens]


def read_adapters(path: str | Path) -> tuple[dict[str, Tensor], AdapterOrigin]:
    """Read adapters from a file: ours, a Lightning checkpoint of ``AprilGan``, or one of the authors' ``.pth``.

    No code that a file may hold is run.

    Args:
        path: The file.

    Returns:
        A state dict for :class:`StageAdapters`, and what the adapters belong to.

    Raises:
        ValueError: If the file is missing, damaged, wants to run code, or holds no adapters.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        msg = (
            f"Expected argument `adapter` to be 'visa', 'mvtec', None or the path of an adapter file, but got "
            f"{str(path)!r}, which is no existing file."
        )
        raise ValueError(msg)
    content, metadata = read_weight_file(path, "adapters")
    try:
        weights, origin = _adapters_in(content, metadata)
    except (TypeError, ValueError) as error:
        msg = f"The file {path} holds no adapters: {error}."
        raise ValueError(msg) from error
    return weights, origin


def write_adapters(path: str | Path, weights: Mapping[str, Tensor], origin: AdapterOrigin) -> Path:
    """Write adapters to a safetensors file. An existing file is replaced once the new one is complete.

    Args:
        path: The file; its suffix must be ``.safetensors``.
        weights: State dict of :class:`StageAdapters`.
        origin: What the adapters belong to.

    Returns:
        The path.

    Raises:
        ValueError: If the suffix is another one.
    """
    return write_weight_file(path, weights, {METADATA_KEY: json.dumps(origin.to_dict())})


def _adapters_in(content: Any, metadata: Mapping[str, str]) -> tuple[dict[str, Tensor], AdapterOrigin]:  # noqa: ANN401
    """Find the adapters, and what they belong to, in what a file holds."""
    content = _mapping(content)
    if OFFICIAL_KEY in content:
        # The authors' code runs GELU, whatever CLIP was trained with.
        return _only_adapters(_mapping(content[OFFICIAL_KEY])), AdapterOrigin(quick_gelu=False)
    state = _mapping(content.get("state_dict", content))
    fields = _mapping(json.loads(metadata.get(METADATA_KEY, "{}")))
    for name, value in state.items():
        if str(name).endswith("_extra_state"):
            fields = _mapping(_mapping(value).get("origin", {}))
    prefixes = ("model.adapters.", "adapters.", "")
    prefix = next(prefix for prefix in prefixes if prefix == "" or f"{prefix}fc.0.weight" in state)
    stripped = {str(name).removeprefix(prefix): value for name, value in state.items() if str(name).startswith(prefix)}
    weights, origin = _only_adapters(stripped), AdapterOrigin.from_dict(fields)
    if origin.layers is not None and len(origin.layers) != len(weights) // 2:
        msg = f"it announces stages {origin.layers} but holds {len(weights) // 2} adapters"
        raise ValueError(msg)
    return weights, origin


def _mapping(value: Any) -> Mapping[str, Any]:  # noqa: ANN401
    if not isinstance(value, Mapping):
        msg = f"expected names and values, but found {type(value).__name__}"
        raise TypeError(msg)
    return value


def _is_linear(weight: Tensor, bias: Tensor) -> bool:
    return weight.ndim == 2 and bias.shape == weight.shape[:1]  # noqa: PLR2004


def _only_adapters(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Make sure of names (``fc.K.weight``, ``fc.K.bias``) and shapes; pass over whatever else there is."""
    adapters: dict[str, Tensor] = {}
    while (weight := weights.get(f"fc.{len(adapters) // 2}.weight")) is not None:
        number = len(adapters) // 2
        bias = weights.get(f"fc.{number}.bias")
        if not isinstance(weight, Tensor) or not isinstance(bias, Tensor) or not _is_linear(weight, bias):
            msg = f"adapter {number} has no weight of shape (D, width) with a bias of shape (D,)"
            raise ValueError(msg)
        adapters |= {f"fc.{number}.weight": weight.float(), f"fc.{number}.bias": bias.float()}
    if not adapters:
        names = ", ".join(map(str, list(weights)[:4])) or "nothing"
        msg = f"expected weights named fc.0.weight, fc.0.bias, ..., but it holds {names}"
        raise ValueError(msg)
    return adapters
