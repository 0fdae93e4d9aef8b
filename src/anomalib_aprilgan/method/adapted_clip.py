# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""A frozen CLIP with adapters: how they are loaded, saved, trained and compared with others."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from anomalib_aprilgan.files.adapter_files import find_adapters, refuse_foreign_state, write_adapters
from anomalib_aprilgan.files.adapter_origin import AdapterOrigin
from anomalib_aprilgan.method.adapters import ClipProjection, StageAdapters
from anomalib_aprilgan.method.architecture import Architecture
from anomalib_aprilgan.method.few_shot_clip import FewShotClip
from anomalib_aprilgan.method.options import MethodOptions
from anomalib_aprilgan.method.setup import Setup

__all__ = ["AdaptedClip", "misfits"]

BANKS = ".memory_banks."
"""Part of the names of the memory banks' tokens in a state dict."""


class AdaptedClip(FewShotClip):
    """A frozen CLIP that is set up for a class, with one adapter per stage.

    Args:
        architecture: The CLIP and the stages that are used.
        method: Options that change the method.

    Attributes:
        adapters: The adapters, or CLIP's own projection in their place.
    """

    def __init__(self, architecture: Architecture, method: MethodOptions) -> None:
        super().__init__(architecture, method.prompts)
        self.method = method
        self.adapters: StageAdapters | ClipProjection = (
            StageAdapters(len(self.layers), self.clip.width, self.clip.embed_dim)
            if method.projection == "adapters"
            else ClipProjection(self.clip.project)
        )

    @property
    def origin(self) -> AdapterOrigin:
        """Origin of adapters that are trained in this model."""
        return AdapterOrigin(
            backbone=self.backbone,
            pretrained=self.architecture.pretrained,
            fingerprint=self.clip.fingerprint,
            quick_gelu=self.clip.quick_gelu,
            image_size=self.image_size,
            layers=self.layers,
            window=self.architecture.window,
            trained_on=self.trained_on,
        )

    def load_adapters(self, adapter: str | Path) -> None:
        """Load trained adapters.

        Args:
            adapter: ``"visa"``, ``"mvtec"``, ``"builtin"``, or a path: a file of :meth:`save_adapters`, a checkpoint of
                ``AprilGan``, or one of the authors' ``.pth`` files.

        Raises:
            ValueError: If the file cannot be used or does not fit the model; the message names both sides.
            RuntimeError: If published adapters cannot be downloaded, or the model has no adapters.
        """
        adapters = self._require_adapters()
        weights, origin = find_adapters(adapter, self.origin, adapters.shapes)
        with self.state.locked():
            adapters.load_state_dict(weights)
            self.state.record = replace(
                self.state.record, adapter=str(adapter), adapter_origin="call", trained_on=origin.trained_on
            )

    def save_adapters(self, path: str | Path) -> Path:
        """Write the adapters and their origin to a safetensors file, and return its path.

        Raises:
            ValueError: If the suffix of the path is not ``.safetensors``.
            RuntimeError: If the model has no adapters.
        """
        return write_adapters(path, self._require_adapters().state_dict(), self.origin)

    def reset_adapters(self, seed: int) -> None:
        """Initialise the adapters anew, at random but determined by the seed.

        Raises:
            RuntimeError: If the model has no adapters.
        """
        self._require_adapters().reset_parameters(seed)

    def mark_trained(self, trained_on: Sequence[str]) -> bool:
        """Record that the adapters are trained, also after training on other data. Class and references are removed.

        Args:
            trained_on: Data sets and categories of the present training.

        Returns:
            Whether that changes the record.
        """
        every = tuple(dict.fromkeys((*self.trained_on, *trained_on)))
        wanted = Setup(adapter_origin="call", trained_on=every)
        has_changed = wanted != self.state.record
        if has_changed:
            self.state.replace(wanted, tokens=[])
            self.reset_calibration()
        return has_changed

    def _require_adapters(self) -> StageAdapters:
        if isinstance(self.adapters, StageAdapters):
            return self.adapters
        msg = "A model with projection='clip' has no adapters. Omit `adapter`, or use projection='adapters'."
        raise RuntimeError(msg)

    # ---- Saved state ------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """Return the plain data of the state dict: setup record, stages, method options, and the adapters' origin."""
        return {
            "setup": self.state.record.to_dict(),
            "k_shot": self.k_shot,
            "has_reduced_banks": self.has_reduced_banks,
            "reference_layers": list(self.reference_layers),
            "method": self.method.to_dict(),
            "origin": self.origin.to_dict(),
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the setup record and the number of reference images."""
        self.state.number_of_references = state["k_shot"]
        saved = Setup.from_dict(state["setup"])
        if saved != self.state.record:
            self.state.record = saved.restored()

    def check_state(self, state_dict: Mapping[str, Any], prefix: str = "", *, strict: bool = True) -> None:
        """Check that a state belongs to this model, before anything is changed.

        Args:
            state_dict: The state.
            prefix: Beginning of the names of this model's part of it.
            strict: Refuse a state that is not complete.

        Raises:
            ValueError: If it belongs to another model, or is damaged.
        """
        extra_state = state_dict.get(f"{prefix}_extra_state")
        own = {prefix + name: value for name, value in self.state_dict().items() if isinstance(value, Tensor)}
        banks = {len(value) for name, value in state_dict.items() if name in own and BANKS in name}
        if extra_state is not None:
            refuse_foreign_state(extra_state, self.origin, self.reference_layers, "The checkpoint's weights do")
        try:
            if extra_state is not None:
                Setup.from_dict(extra_state["setup"])
            fit = self.has_banks_of(banks, extra_state)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            msg = f"The state is damaged: {type(error).__name__}: {error}. Use an undamaged file."
            raise ValueError(msg) from error
        wrong = misfits(state_dict, own)
        wrong += [name for name in own if strict and name not in state_dict]
        if wrong or not fit:
            msg = (
                f"The state does not fit the model: values are missing or have other shapes or types "
                f"({', '.join(wrong[:4]) or 'memory banks'}). Use an undamaged file."
            )
            raise ValueError(msg)

    def has_banks_of(self, sizes: Collection[int], facts: Mapping[str, Any] | None) -> bool:
        """Whether memory banks have all tokens of their reference images, or fewer if they are reduced.

        Args:
            sizes: The different numbers of tokens of the memory banks.
            facts: Return value of :meth:`get_extra_state`, which says so; ``None`` if unknown.
        """
        if facts is None:
            return len(sizes) <= 1 and not any(size % self.tokens_per_reference for size in sizes)
        complete = facts["k_shot"] * self.tokens_per_reference
        if facts["has_reduced_banks"]:
            return len(sizes) <= 1 and all(0 < size < complete for size in sizes)
        return set(sizes) <= {complete}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:  # noqa: ANN401
        """Load a state, after :meth:`check_state`."""
        self.check_state(state_dict, strict=strict)
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        """Check a state also if it is loaded as a part of another module's, which looks for missing values itself."""
        self.check_state(state_dict, prefix, strict=False)
        bank = state_dict.get(f"{prefix}state{BANKS}0.tokens")
        if bank is not None:  # the plain data say how many, where there are any
            self.state.number_of_references = len(bank) // self.tokens_per_reference
        super()._load_from_state_dict(state_dict, prefix, *args)


def misfits(state: Mapping[str, Any], own: Mapping[str, Tensor]) -> list[str]:
    """List the tensors of a state that cannot replace a model's own; memory banks may have any number of tokens.

    Args:
        state: The state.
        own: The model's tensors by the same names.
    """

    def fits(theirs: object, ours: Tensor, first: int) -> bool:
        if not isinstance(theirs, Tensor) or theirs.is_floating_point() != ours.is_floating_point():
            return False
        return theirs.ndim == ours.ndim and theirs.shape[first:] == ours.shape[first:]

    return [
        name for name, value in own.items() if name in state and not fits(state[name], value, 1 if BANKS in name else 0)
    ]
