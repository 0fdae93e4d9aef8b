# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Decides what a model is set up for: explicit argument, then checkpoint, then datamodule, then default.

:func:`resolve` is a pure function of plain data. It depends on no random state, on no object's identity, and on nothing
that an earlier run left behind except the model's own record.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from anomalib_aprilgan.files import embedded
from anomalib_aprilgan.integration.references import draw
from anomalib_aprilgan.method.setup import References, Setup

__all__ = ["ANY_CLASS", "AUTO_ADAPTER", "Arguments", "Data", "overlap", "resolve", "with_adapter"]

ANY_CLASS = "object"
"""Class name used when none is given."""

AUTO_ADAPTER = "auto"
"""Value of `adapter` that asks for adapters that were not trained on the tested data."""

STAYS = ("call", "checkpoint")
"""Origins whose values only an explicit argument replaces."""


@dataclass(frozen=True)
class Arguments:
    """What the user asked for explicitly.

    Attributes:
        class_name: Name of the object or surface; ``None`` if not given.
        adapter: Tag or path; ``"auto"`` if not given; ``None`` for adapters that are trained.
        k_shot: Number of reference images; ``None`` if not given.
        few_shot_source: Folder, image or list to draw them from; ``None`` if not given.

    Raises:
        ValueError: If a value is out of its range.
    """

    class_name: str | None = None
    adapter: str | None = AUTO_ADAPTER
    k_shot: int | None = None
    few_shot_source: str | None = None

    def __post_init__(self) -> None:
        if self.class_name is not None and (not isinstance(self.class_name, str) or not self.class_name.strip()):
            msg = (
                f"Expected argument `class_name` to be a non-empty name such as 'bottle', or None for the datamodule's "
                f"category, but got {self.class_name!r}."
            )
            raise ValueError(msg)
        k_shot: object = self.k_shot
        if k_shot is not None and (not isinstance(k_shot, int) or isinstance(k_shot, bool) or k_shot < 0):
            msg = (
                f"Expected argument `k_shot` to be 0 (zero-shot) or a number of reference images such as 4, but "
                f"got {k_shot!r}."
            )
            raise ValueError(msg)
        if self.few_shot_source is not None and not self.k_shot:
            msg = (
                f"Expected argument `k_shot` to say how many reference images to draw from few_shot_source="
                f"{self.few_shot_source!r}, but got {self.k_shot}. Pass k_shot, or leave few_shot_source out for "
                "zero-shot."
            )
            raise ValueError(msg)


@dataclass(frozen=True)
class Data:
    """Describes the datamodule of a run.

    Attributes:
        name: Name of the datamodule, for instance ``"MVTecAD"``.
        category: Its category; empty if it has none.
        list_normal_images: Lists the normal images of its training split, in the order of its samples. It is called
            only if a draw is necessary.
    """

    name: str
    category: str = ""
    list_normal_images: Callable[[], Sequence[str]] = tuple

    def __str__(self) -> str:
        return f"{self.name}/{self.category}".rstrip("/")


ListImages = Callable[[str], Sequence[str]]
"""Lists the image files of a ``few_shot_source``."""


def resolve(
    arguments: Arguments, current: Setup, data: Data | None, seed: int, backbone: str, list_images: ListImages
) -> Setup:
    """Decide what a model should be set up for.

    Args:
        arguments: What the user asked for.
        current: What the model is set up for now, by a checkpoint, a call or an earlier run.
        data: The run's datamodule; ``None`` if it has none. Then parts that came from an earlier datamodule stay.
        seed: Seed of the draw of reference images.
        backbone: Name of the open_clip architecture.
        list_images: Lists the images of ``few_shot_source``. It is called only if a draw is necessary.

    Returns:
        The setup, equal to ``current`` if nothing has to change.

    Raises:
        ValueError: If there are too few reference images.
        RuntimeError: If reference images are asked for and there is nothing to draw them from.
    """
    setup = _with_class(arguments, current, data)
    setup = with_adapter(arguments, setup, data, backbone)
    return replace(setup, references=_references(arguments, current.references, data, seed, list_images))


def _with_class(arguments: Arguments, current: Setup, data: Data | None) -> Setup:
    if arguments.class_name is not None:
        return replace(current, class_name=arguments.class_name, class_origin="argument")
    if current.class_name is not None and (current.class_origin in STAYS or data is None):
        return current
    if data is not None and data.category:
        return replace(current, class_name=data.category, class_origin="datamodule")
    return replace(current, class_name=ANY_CLASS, class_origin="default")


def with_adapter(arguments: Arguments, current: Setup, data: Data | None, backbone: str) -> Setup:
    """Decide about the adapters alone; arguments as for :func:`resolve`."""
    if arguments.adapter is None:  # trained, or about to be
        return current
    if arguments.adapter != AUTO_ADAPTER:
        return replace(current, adapter=arguments.adapter, adapter_origin="argument")
    is_chosen = current.adapter is not None and current.adapter_origin in {"default", "datamodule"}
    if current.adapter_origin in STAYS or (is_chosen and data is None):
        return current
    published = "mvtec" if data is not None and data.name == "Visa" else "visa"
    adapter = embedded.TAG if backbone == embedded.BACKBONE else published
    return replace(current, adapter=adapter, adapter_origin="default" if data is None else "datamodule")


def _references(
    arguments: Arguments, current: References, data: Data | None, seed: int, list_images: ListImages
) -> References:
    source, k_shot = arguments.few_shot_source, arguments.k_shot
    stays = current.origin in STAYS or (current.origin == "argument" and source == current.drawn_from)
    is_as_asked = k_shot in {None, current.k_shot, len(current.files)} and source in {None, current.drawn_from}
    if stays and is_as_asked:
        return current
    if not k_shot:
        return References()
    if source is not None:
        return References(tuple(draw(list_images(source), k_shot, seed)), k_shot, source, seed, "argument")
    if data is not None:
        return References(tuple(draw(data.list_normal_images(), k_shot, seed)), k_shot, str(data), seed, "datamodule")
    if k_shot == current.k_shot:
        return current
    holds = max(current.k_shot, len(current.files))
    msg = (
        f"k_shot={k_shot} asks for {k_shot} reference images, but the model holds {holds}, and there is "
        "neither a datamodule with a training split nor `few_shot_source` to draw them from. Pass one of the two, or "
        "a checkpoint with that many. (anomalib hands a datamodule to an OpenVINO export alone, not to exports to "
        "torch and ONNX.)"
    )
    raise RuntimeError(msg)


def overlap(trained_on: Sequence[str], data: Data) -> tuple[str, ...]:
    """Find the training data of adapters that the tested data are part of.

    Args:
        trained_on: Data sets (``"Visa"``), or data sets and categories (``"MVTecAD/screw"``).
        data: Describes the tested data.

    Returns:
        The entries of ``trained_on`` with the same data set, and with the same category where both have one.
    """
    return tuple(entry for entry in trained_on if _is_same_data(entry, data))


def _is_same_data(entry: str, data: Data) -> bool:
    name, _, category = entry.partition("/")
    return name == data.name and (not category or not data.category or category == data.category)
