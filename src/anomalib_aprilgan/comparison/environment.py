# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Versions, device and memory of a run, and the check that the installed versions give right numbers."""

import math
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import torch

from anomalib_aprilgan.method.towers import runs_batch_first

__all__ = ["check_environment", "describe_environment", "peak_memory_mb", "reset_peak_memory"]

DISTRIBUTIONS = {
    "anomalib_aprilgan": "anomalib-aprilgan",
    "anomalib": "anomalib",
    "torch": "torch",
    "open_clip": "open_clip_torch",
}


def check_environment(class_paths: Iterable[str]) -> None:
    """Refuse models that compute wrong numbers with the installed versions.

    anomalib 2.7's WinClip runs the image tower sequence-first. From open_clip 2.26 on the tower is batch-first: no
    error is raised, the image scores are right, and the maps are wrong.

    Args:
        class_paths: The models' classes.

    Raises:
        RuntimeError: If there is such a model; the message has the command that installs the right version.
    """
    if runs_batch_first() and any(path.rpartition(".")[2] == "WinClip" for path in class_paths):
        msg = (
            f"anomalib's WinClip computes wrong maps with open_clip_torch {version('open_clip_torch')}, without any "
            "warning. Install a version that it works with: pip install 'anomalib-aprilgan[compare]'. Or take "
            "WinClip out of `models`; AprilGan gives the same numbers with both."
        )
        raise RuntimeError(msg)


def describe_environment(device: str) -> dict[str, str]:
    """Describe versions and device.

    Args:
        device: Device that the run is computed on: ``"cpu"``, or for instance ``"cuda:0"``.

    Returns:
        Values by column of the table of results.
    """
    name = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    versions = {column: version(distribution) for column, distribution in DISTRIBUTIONS.items()}
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    return {**versions, "device": f"{device} ({name}{threads})"}


def reset_peak_memory() -> None:
    """Reset the peak that :func:`peak_memory_mb` reports, where the system can do so (GPUs, Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mb() -> float:
    """Return the peak memory use since the last reset, in MB: of the GPU if there is one, else of the process.

    Outside Linux, it is the peak since the process started; on Windows, it is NaN.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024 / 1e6
    try:
        import resource  # noqa: PLC0415
    except ImportError:  # Windows
        return math.nan
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / 1e6 if sys.platform == "darwin" else largest * 1024 / 1e6
