# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Discovery by anomalib, without any import by the user.

anomalib has no plugin discovery of its own, so this module gives it one. When Python starts, ``anomalib_aprilgan.pth``
calls :func:`install`, which puts a finder on ``sys.meta_path``. If ``anomalib.models`` is imported later, the finder
removes itself, lets the import run, and then loads what installed packages announce in the entry-point groups
``anomalib.models`` and ``anomalib.data``.

Until then nothing is imported but what Python has loaded anyway, and nothing is ever raised: a package that cannot be
loaded is named in a warning. The module lives beside the package, not in it, so that a damaged or half-removed package
can break neither Python nor torch nor anomalib; where this module is gone too, the ``.pth`` file keeps quiet.

Set the environment variable ``ANOMALIB_APRILGAN_AUTOLOAD=0`` to switch it off.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as in typing, which is not worth its import at every start of Python
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

__all__ = ["install", "load_plugins"]

SWITCH = "ANOMALIB_APRILGAN_AUTOLOAD"
HOST = "anomalib.models"
GROUPS = ("anomalib.models", "anomalib.data")


def install() -> None:
    """Wait for the import of ``anomalib.models``; do nothing if it is switched off or already waiting."""
    if os.environ.get(SWITCH, "1").lower() in {"0", "false", "off", "no"}:
        return
    if not any(isinstance(finder, _HostFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _HostFinder())


def load_plugins() -> None:
    """Load every class announced to anomalib and make it known under its name.

    A class of group ``anomalib.models`` becomes an attribute of ``anomalib.models``, and its package one that
    ``get_model`` may import from; a class of group ``anomalib.data`` becomes an attribute of ``anomalib.data``.
    """
    import warnings  # noqa: PLC0415
    from importlib.metadata import entry_points  # noqa: PLC0415

    for group in GROUPS:
        host = sys.modules.get(group)
        if host is None:
            continue
        for entry_point in entry_points(group=group):
            if hasattr(host, entry_point.name) or _is_being_imported(entry_point.module, entry_point.attr):
                continue
            try:
                plugin = entry_point.load()
            except Exception as error:  # whatever is wrong with a plugin, anomalib must still import
                warnings.warn(
                    f"anomalib plugin {entry_point.name!r} ({entry_point.value}) could not be loaded: "
                    f"{type(error).__name__}: {error}. Reinstall its package, or set {SWITCH}=0 to skip plugins.",
                    stacklevel=2,
                )
                continue
            setattr(host, entry_point.name, plugin)
            allowed_modules = getattr(host, "ALLOWED_MODULES", None)
            if isinstance(allowed_modules, set):
                allowed_modules.update({entry_point.module, entry_point.module.partition(".")[0]})


def _is_being_imported(module_name: str, attribute: str) -> bool:
    """Whether a plugin is itself the one that is importing anomalib right now; it then calls `load_plugins` later."""
    module = sys.modules.get(module_name)
    is_initializing = getattr(getattr(module, "__spec__", None), "_initializing", False)
    return is_initializing and not hasattr(module, attribute)


class _HostFinder:
    """Finds nothing by itself; wraps the loader of `anomalib.models`, once."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != HOST:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find_spec(fullname, path, target) if find_spec else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _HostLoader(spec.loader)  # type: ignore[assignment]
                return spec
        return None


class _HostLoader:
    """The host's own loader, followed by the plugins."""

    def __init__(self, loader: Any) -> None:  # noqa: ANN401
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader  # nothing but this call ever sees the wrapper
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        load_plugins()
