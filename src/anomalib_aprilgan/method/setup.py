# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The record of what a model is set up for: its class, its adapters, its reference images, and where each came from.

A record is immutable plain data and is compared by value. A model has one record at a time; checkpoints, product files,
pickles and exported models carry it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

__all__ = ["Origin", "References", "Setup"]

Origin = Literal["default", "datamodule", "argument", "call", "checkpoint"]
"""Where a part of a setup came from.

``"default"``: nothing said anything. ``"datamodule"``: the datamodule of a run; another datamodule replaces it.
``"argument"``: an argument of ``AprilGan``. ``"call"``: a call such as ``model.setup`` or ``switch_to``, or training.
``"checkpoint"``: a checkpoint. The last three stay, whatever datamodule comes later.
"""


@dataclass(frozen=True)
class References:
    """The normal reference images in the memory banks.

    Attributes:
        files: Paths of the images; empty if there are none or if they were given as tensors.
        k_shot: Number of images that were asked for. Images added later are in ``files`` alone.
        drawn_from: Folder, image or list that they were drawn from, or the datamodule's name and category.
        seed: Seed of the draw; ``None`` if nothing was drawn.
        origin: Where they came from.
    """

    files: tuple[str, ...] = ()
    k_shot: int = 0
    drawn_from: str = ""
    seed: int | None = None
    origin: Origin = "default"


@dataclass(frozen=True)
class Setup:
    """What a model is set up for.

    Attributes:
        class_name: Name of the object or surface; ``None`` before one is set.
        class_origin: Where the class name came from.
        adapter: Tag or path that the adapters were loaded from; ``None`` for fresh or trained ones.
        adapter_origin: Where the adapters came from.
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
        """Restore what :meth:`to_dict` returned.

        Args:
            fields: The record as plain data. Unknown names are ignored, missing ones get their defaults.

        Raises:
            TypeError: If a value has the wrong type.
            ValueError: If an origin is unknown.
        """
        known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        references = dict(known.get("references", {}))
        references = {name: references[name] for name in References.__dataclass_fields__ if name in references}
        references["files"] = _texts(references.get("files", ()))
        known |= {"references": References(**references), "trained_on": _texts(known.get("trained_on", ()))}
        known["post_processor"] = dict(known.get("post_processor", {}))
        setup = cls(**known)
        for name, value in (("class_name", setup.class_name), ("adapter", setup.adapter)):
            if value is not None and not isinstance(value, str):
                msg = f"expected `{name}` to be text, but got {value!r}"
                raise TypeError(msg)
        for origin in (setup.class_origin, setup.adapter_origin, setup.references.origin):
            if origin not in get_args(Origin):
                msg = f"expected one of {', '.join(get_args(Origin))}, but got {origin!r}"
                raise ValueError(msg)
        return setup

    def restored(self) -> "Setup":
        """Return the record as it applies to a model that was restored from a file.

        What was set then stays, whatever datamodule comes later. What was only a default may still be replaced.
        """
        return replace(
            self,
            class_origin=_from_checkpoint(self.class_origin),
            adapter_origin="checkpoint",  # a file always holds adapters
            references=replace(self.references, origin=_from_checkpoint(self.references.origin)),
        )


def _from_checkpoint(origin: Origin) -> Origin:
    return "default" if origin == "default" else "checkpoint"


def _texts(values: Any) -> tuple[str, ...]:  # noqa: ANN401
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        msg = f"expected a list of texts, but got {values!r}"
        raise TypeError(msg)
    return tuple(values)
