# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The setup record of a model: class name, adapters and reference images, each with its origin.

A record is immutable plain data and is compared by value. A model has one record at a time. Checkpoints, product files,
pickles and exported models contain it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

__all__ = ["Origin", "References", "Setup"]

Origin = Literal["default", "datamodule", "argument", "call", "checkpoint"]
"""Origin of a part of a setup.

``"default"``: the default value. ``"datamodule"``: the datamodule of a run; another datamodule replaces the value.
``"argument"``: an argument of ``AprilGan``, which holds as long as it is given. ``"call"``: a method call such as
``model.setup`` or ``switch_to``, or training. ``"checkpoint"``: a checkpoint. A datamodule does not replace values of
the last three origins.
"""


@dataclass(frozen=True)
class References:
    """Describes the normal reference images in the memory banks.

    Attributes:
        files: Paths of the images; empty if there are no images or if they were given as tensors.
        k_shot: Number of requested images. Images that are added later do not change it.
        drawn_from: Folder, image or list that the images were drawn from, or name and category of the datamodule.
        seed: Seed of the draw; ``None`` if nothing was drawn.
        origin: Origin of the images.
    """

    files: tuple[str, ...] = ()
    k_shot: int = 0
    drawn_from: str = ""
    seed: int | None = None
    origin: Origin = "default"


@dataclass(frozen=True)
class Setup:
    """Describes the setup of a model.

    Attributes:
        class_name: Name of the object or surface; ``None`` before one is set.
        class_origin: Origin of the class name.
        adapter: Tag or path that the adapters were loaded from; ``None`` for fresh or trained adapters.
        adapter_origin: Origin of the adapters.
        trained_on: Data sets, or data sets and categories, that the adapters were trained on.
        references: The reference images.
        post_processor: Options of the post-processor by name, for instance its sensitivities.
    """

    class_name: str | None = None
    class_origin: Origin = "default"
    adapter: str | None = None
    adapter_origin: Origin = "default"
    trained_on: tuple[str, ...] = ()
    references: References = References()
    post_processor: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data: strings, numbers, lists and dicts."""
        fields = asdict(self)
        fields["trained_on"] = list(self.trained_on)
        fields["references"]["files"] = list(self.references.files)
        fields["post_processor"] = dict(self.post_processor)
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Setup":
        """Make a record from plain data.

        Args:
            fields: Return value of :meth:`to_dict`. Unknown names are ignored, missing ones get their defaults.

        Raises:
            TypeError: If a value has the wrong type.
            ValueError: If an origin is unknown.
        """
        known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        references = dict(known.get("references", {}))
        references = {name: references[name] for name in References.__dataclass_fields__ if name in references}
        references["files"] = _strings(references.get("files", ()))
        known |= {"references": References(**references), "trained_on": _strings(known.get("trained_on", ()))}
        known["post_processor"] = dict(known.get("post_processor", {}))
        setup = cls(**known)
        for name, found, types in (
            ("k_shot", setup.references.k_shot, int),
            ("drawn_from", setup.references.drawn_from, str),
            ("seed", setup.references.seed, int | None),
            *((str(name), value, bool | int | float | None) for name, value in setup.post_processor.items()),
        ):
            if not isinstance(found, types):
                msg = f"expected a plain value of `{name}`, but got {str(found)[:80]!r}"
                raise TypeError(msg)
        for name, value in (("class_name", setup.class_name), ("adapter", setup.adapter)):
            if value is not None and not isinstance(value, str):
                msg = f"expected `{name}` to be a string, but got {value!r}"
                raise TypeError(msg)
        for origin in (setup.class_origin, setup.adapter_origin, setup.references.origin):
            if origin not in get_args(Origin):
                msg = f"expected an origin to be one of {', '.join(get_args(Origin))}, but got {origin!r}"
                raise ValueError(msg)
        return setup

    def restored(self) -> "Setup":
        """Return the record for a model that is restored from a file.

        Values that were set get the origin ``"checkpoint"``, so that a datamodule does not replace them. Default values
        may still be replaced.
        """
        return replace(
            self,
            class_origin=_from_checkpoint(self.class_origin),
            adapter_origin=_from_checkpoint("call" if self.adapter or self.trained_on else self.adapter_origin),
            references=replace(self.references, origin=_from_checkpoint(self.references.origin)),
        )


def _from_checkpoint(origin: Origin) -> Origin:
    return "default" if origin == "default" else "checkpoint"


def _strings(values: Any) -> tuple[str, ...]:  # noqa: ANN401
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        msg = f"expected a list of strings, but got {values!r}"
        raise TypeError(msg)
    return tuple(values)
