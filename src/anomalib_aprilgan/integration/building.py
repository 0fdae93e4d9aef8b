# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Makes the plain model of what arguments and checkpoint say about its architecture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomalib_aprilgan.files.downloads import MissingFileError
from anomalib_aprilgan.files.published import missing_adapters
from anomalib_aprilgan.integration.setup import Arguments, Data, with_adapter
from anomalib_aprilgan.method.architecture import AUTO, DEFAULT_BACKBONE, Architecture
from anomalib_aprilgan.method.options import MethodOptions
from anomalib_aprilgan.method.setup import Setup
from anomalib_aprilgan.torch_model import AprilGanModel

__all__ = ["Blueprint"]


class Blueprint:
    """What a user said about the architecture of a model; a checkpoint completes it.

    Args:
        backbone: Name of an open_clip architecture; ``None`` if not given.
        pretrained: Weights; ``"auto"`` if not given, ``None`` for random ones.
        method: Options that change the method, also as a mapping; ``None`` if not given.
        **others: Further arguments of ``AprilGanModel``; ``None`` if not given.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        backbone: str | None,
        pretrained: str | Path | None,
        method: MethodOptions | Mapping[str, Any] | None,
        **others: Any,  # noqa: ANN401
    ) -> None:
        given = {"backbone": backbone, **others}
        self._given = {name: value for name, value in given.items() if value is not None}
        if pretrained != AUTO:
            self._given["pretrained"] = pretrained
        self._method = MethodOptions(**method) if isinstance(method, Mapping) else method
        self.default_image_size = Architecture.of(**self._given).image_size

    @property
    def has_backbone(self) -> bool:
        """Whether the user named a backbone; if not, a checkpoint may bring another one than the default."""
        return "backbone" in self._given

    def make(self, saved: Mapping[str, Any] | None, made: AprilGanModel | None, adapter: str | None) -> AprilGanModel:
        """Make a model, unless there is one with the wanted architecture.

        Args:
            saved: Arguments of ``AprilGanModel`` from a checkpoint. Given arguments come first.
            made: The model that there is.
            adapter: Adapters for a new model; ``None`` for fresh ones.

        Returns:
            The model, new or not.
        """
        backbone = self._given.get("backbone", DEFAULT_BACKBONE if saved is None else saved["backbone"])
        base = dict(saved) if saved is not None and saved["backbone"] == backbone else {}
        method = self._method or base.pop("method", None) or MethodOptions()
        wanted = {**base, **self._given, "backbone": backbone}
        wanted.pop("method", None)
        if made is not None and (made.architecture, made.method) == (Architecture.of(**wanted), method):
            return made
        return AprilGanModel(**wanted, method=method, adapter=adapter)

    def with_adapters(self, error: MissingFileError, arguments: Arguments, data: Data | None) -> MissingFileError:
        """Add adapters that will be loaded later to a message about missing files, if they are missing as well.

        Args:
            error: The message.
            arguments: What the user asked for.
            data: Describes the run's datamodule; ``None`` if it has none.
        """
        adapter = with_adapter(arguments, Setup(), data, self._given.get("backbone", DEFAULT_BACKBONE)).adapter
        return MissingFileError(error.reason, *dict.fromkeys((*error.files, *missing_adapters(adapter))))
