# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The origin of adapters: the CLIP, activation, stages and data that they were trained with."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["AdapterOrigin"]


@dataclass(frozen=True)
class AdapterOrigin:
    """Describes the model and the data that adapters were trained with. Unknown fields are ``None``.

    Attributes:
        backbone: Name of an open_clip architecture.
        pretrained: Tag or path of the CLIP weights.
        fingerprint: Digest of the CLIP weights.
        quick_gelu: Whether CLIP used QuickGELU.
        image_size: Height and width of the training images in pixels.
        layers: Stages, counted from 1.
        window: Height and width of the windows that the training images were cut into, in pixels; 0 for whole images.
        trained_on: Data sets, or data sets and categories, that the adapters were trained on.
    """

    backbone: str | None = None
    pretrained: str | None = None
    fingerprint: str | None = None
    quick_gelu: bool | None = None
    image_size: int | None = None
    layers: tuple[int, ...] | None = None
    window: int | None = None
    trained_on: tuple[str, ...] = field(default=())

    def conflicts_with(self, model: "AdapterOrigin") -> list[str]:
        """List the reasons why the adapters do not fit a model.

        Image size and window may differ, because an adapter maps each token separately.

        Args:
            model: Description of the model: backbone, weights, activation, stages.

        Returns:
            One phrase per conflict, with the values of both sides; empty if the adapters fit.
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
        """Make an origin from the return value of :meth:`to_dict`; unknown fields are ignored.

        Raises:
            TypeError: If a field has a value of another type.
        """
        known: dict[str, Any] = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        known |= {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        for name, value in known.items():
            if not _is_of_type(name, value):
                msg = f"expected other values than {name}={str(value)[:80]!r}"
                raise TypeError(msg)
        return cls(**known)


def _is_of_type(name: str, value: object) -> bool:
    if name == "trained_on":
        return isinstance(value, tuple) and all(isinstance(one, str) for one in value)
    if name == "layers" and isinstance(value, tuple):
        return all(type(one) is int for one in value)
    expected = {"quick_gelu": bool, "image_size": int, "window": int}.get(name, str)
    return value is None or (type(value) is expected and name != "layers")


def _is_same_tag(theirs: str, ours: str | None) -> bool:
    """Whether two tags may name the same weights; a path may name any."""
    return ours is not None and (theirs == ours or Path(ours).suffix != "" or Path(theirs).suffix != "")
