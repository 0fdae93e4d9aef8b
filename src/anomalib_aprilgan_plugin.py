# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Makes anomalib know the classes of this package, without an import by the user.

anomalib 2.7 finds only classes that were imported before. Therefore ``anomalib_aprilgan.pth`` calls :func:`install`
when Python starts. It puts a finder on ``sys.meta_path`` that waits for the import of ``anomalib.models``. Then the
finder removes itself, lets the import run, and calls :func:`register`.

This module serves the package anomalib-aprilgan alone. Remove it, with its ``.pth`` file, once anomalib itself loads
the entry-point groups ``anomalib.models`` and ``anomalib.data``: ``pyproject.toml`` announces the classes there.

Until ``anomalib.models`` is imported, this module imports nothing that Python has not loaded anyway. It never raises an
error: if a class cannot be imported, a warning names it. It lies outside the package, so that a damaged or partly
removed package breaks neither Python nor torch nor anomalib.

The environment variable ``ANOMALIB_APRILGAN_AUTOLOAD=0`` switches it off. ``ANOMALIB_APRILGAN_VERBOSE=1`` shows all
messages of anomalib's command, some of which are otherwise dropped if it runs ``AprilGan``.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as in typing, whose import would slow down every start of Python
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

__all__ = ["WithoutTelemetry", "install", "is_quiet_command", "register"]

SWITCH = "ANOMALIB_APRILGAN_AUTOLOAD"
VERBOSE = "ANOMALIB_APRILGAN_VERBOSE"
PACKAGE = "anomalib_aprilgan"
AWAITED = "anomalib.models"
CLASSES = (
    ("anomalib.models", "AprilGan", f"{PACKAGE}.lightning_model"),
    ("anomalib.data", "AuxiliaryDataModule", f"{PACKAGE}.datamodule"),
)
"""Module of anomalib, name of the class, our module that defines it: the entry points in ``pyproject.toml``."""

TELEMETRY_SWITCHES = {"CI": "true", "NNCF_CI": "1"}
"""Environment variables that switch off the telemetry of OpenVINO and nncf, and their values."""

LARGEST_CONFIG = 1 << 20
"""Bytes of the largest configuration file that is searched for the name of the model."""

_warned_of: set[str] = set()
"""Classes whose failure has been reported. `register` may run within itself, at the end of ``lightning_model``."""


def install() -> None:
    """Wait for the import of ``anomalib.models``, unless switched off. A second call does nothing."""
    if os.environ.get(SWITCH, "1").lower() in {"0", "false", "off", "no"}:
        return
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def register() -> None:
    """Import our classes and make them known to those modules of anomalib that have been imported.

    The import alone suffices for ``list_models()``, ``get_model("april_gan")`` and anomalib's command line. Two changes
    to anomalib's modules are necessary, because ``get_model`` and ``get_datamodule`` look up class paths there:

    - The classes become attributes of ``anomalib.models`` and ``anomalib.data``, for class paths without a module.
    - ``anomalib.models.ALLOWED_MODULES`` gets ``anomalib_aprilgan``, for the class path ``anomalib_aprilgan.AprilGan``.

    A class is skipped if anomalib has an attribute of its name already, and while its own module is being imported;
    ``lightning_model`` therefore calls this function at its end.
    """
    from importlib import import_module  # noqa: PLC0415

    for host_name, class_name, module_name in CLASSES:
        host = sys.modules.get(host_name)
        if host is None or hasattr(host, class_name) or _is_being_imported(module_name, class_name):
            continue
        try:
            setattr(host, class_name, getattr(import_module(module_name), class_name))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever is wrong with this package, anomalib must still work
            if class_name not in _warned_of:
                _warned_of.add(class_name)
                _warn(
                    f"anomalib works without {class_name!r}: {module_name} cannot be imported "
                    f"({type(error).__name__}: {error}). Reinstall anomalib-aprilgan, or set {SWITCH}=0."
                )
            continue
        allowed_modules = getattr(host, "ALLOWED_MODULES", None)
        if isinstance(allowed_modules, set):
            allowed_modules.add(PACKAGE)


def _warn(message: str) -> None:
    """Warn, even where warnings are errors: they would end the import of anomalib."""
    import warnings  # noqa: PLC0415

    try:
        warnings.warn(message, stacklevel=3)
    except UserWarning:
        print(message, file=sys.stderr)  # noqa: T201


def is_quiet_command() -> bool:
    """Whether this process is anomalib's command, and the user has not asked for all messages."""
    return _is_command() and os.environ.get(VERBOSE, "0") in {"", "0"}


class WithoutTelemetry:
    """Switches off the telemetry of OpenVINO and nncf within a ``with`` block, unless the user has decided about it.

    Both send usage data to Google's servers, as soon as they are imported. The user decides by OpenVINO's command
    ``opt_in_out``, or by setting the variables of ``TELEMETRY_SWITCHES`` to any value.
    """

    def __enter__(self) -> None:
        from pathlib import Path  # noqa: PLC0415

        home = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("HOME")
        folder = "Intel Corporation" if os.name == "nt" else "intel"
        has_decided = home is not None and Path(home, folder, "openvino_telemetry").exists()
        self._names = [] if has_decided else [name for name in TELEMETRY_SWITCHES if name not in os.environ]
        for name in self._names:
            os.environ[name] = TELEMETRY_SWITCHES[name]

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            os.environ.pop(name, None)


def _prepare_command() -> None:
    """Prepare anomalib's command for AprilGan before it imports other packages.

    Warnings about old modules that anomalib's models raise on import are dropped. OpenVINO, which the command imports
    whatever it does, is imported without its telemetry.
    """
    if not _is_command() or not _names_aprilgan(sys.argv):
        return
    if is_quiet_command():
        import warnings  # noqa: PLC0415

        warnings.filterwarnings("ignore", category=FutureWarning, module=r"timm\.|anomalib\.")
    from contextlib import suppress  # noqa: PLC0415
    from importlib import import_module  # noqa: PLC0415

    with WithoutTelemetry(), suppress(Exception):  # the command imports it again, and raises the error
        import_module("openvino.tools.ovc")


def _is_command() -> bool:
    """Whether this process is anomalib's command."""
    program = getattr(sys, "argv", [""])[0].replace("\\", "/").rpartition("/")[2]
    return program.partition(".")[0] == "anomalib"


def _names_aprilgan(arguments: Sequence[str]) -> bool:
    """Whether arguments of a command, or their configuration files, name the model."""
    return any("AprilGan" in argument or _file_names_aprilgan(argument) for argument in arguments[1:])


def _file_names_aprilgan(argument: str) -> bool:
    from pathlib import Path  # noqa: PLC0415

    path = Path(argument.rpartition("=")[2])
    try:
        is_config = path.suffix in {".yaml", ".yml", ".json"} and path.is_file()
        return is_config and path.stat().st_size < LARGEST_CONFIG and b"AprilGan" in path.read_bytes()
    except (OSError, ValueError):
        return False


def _is_being_imported(module_name: str, class_name: str) -> bool:
    """Whether the import of a module has begun but has not defined the class yet."""
    module = sys.modules.get(module_name)
    is_initializing = bool(getattr(getattr(module, "__spec__", None), "_initializing", False))
    return is_initializing and not hasattr(module, class_name)


class _Finder:
    """Wraps the loader of ``anomalib.models``, once; finds no other module."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != AWAITED:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find_spec(fullname, path, target) if find_spec else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """Runs the original loader of ``anomalib.models``, then registers our classes."""

    def __init__(self, loader: Any) -> None:  # noqa: ANN401
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader  # nobody else needs to see the wrapper
        module.__loader__ = self._loader
        try:
            _prepare_command()
        except Exception as error:  # anomalib's command works without the preparation
            _warn(f"The command could not be prepared for AprilGan ({type(error).__name__}: {error}).")
        self._loader.exec_module(module)
        register()
