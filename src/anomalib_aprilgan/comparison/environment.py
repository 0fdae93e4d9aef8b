# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Versions, device and memory of a run, and the check that the installed versions give right numbers."""

import math
import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import torch

from anomalib_aprilgan.method.towers import runs_batch_first

__all__ = ["DISTRIBUTIONS", "PeakMemory", "check_environment", "describe_environment", "device_of_run"]

DISTRIBUTIONS = {
    "anomalib_aprilgan": "anomalib-aprilgan",
    "anomalib": "anomalib",
    "torch": "torch",
    "open_clip": "open_clip_torch",
}

RESET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
"""Linux: the file that resets the peak of the process's memory, and the file that holds it."""


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
            "warning. Install a version that it works with: run pip install '.[compare]' in a checkout of "
            "anomalib-aprilgan. Or take WinClip out of `models`; AprilGan gives the same numbers with both."
        )
        raise RuntimeError(msg)


def device_of_run(accelerator: str, process: int) -> torch.device:
    """Find the device that Lightning chooses for a run.

    Args:
        accelerator: The trainer's argument.
        process: Number of the process that does the run; each has its own GPU.
    """
    if accelerator in {"auto", "gpu", "cuda"} and torch.cuda.is_available():
        return torch.device("cuda", process)
    if accelerator in {"auto", "gpu", "mps"} and torch.backends.mps.is_available():
        return torch.device("mps", 0)
    return torch.device("cpu")


def describe_environment(device: torch.device) -> dict[str, str]:
    """Describe versions and device.

    Args:
        device: Device of the run.

    Returns:
        Values by column of the table of results.
    """
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    versions = {column: version(distribution) for column, distribution in DISTRIBUTIONS.items()}
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return {**versions, "device": f"{device} ({name}{threads})"}


class PeakMemory:
    """Measures the largest memory use since it was made. Only one at a time can do so.

    On an NVIDIA GPU, it is the memory that torch allocated on this GPU. On a CPU with Linux, it is the resident memory
    of the process, libraries included. Elsewhere it is not measured.

    Args:
        device: Device of the run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif self._is_measured_by_linux:
            RESET.write_text("5", encoding="ascii")

    @property
    def _is_measured_by_linux(self) -> bool:
        return self._device.type == "cpu" and os.access(RESET, os.W_OK)

    @property
    def megabytes(self) -> float:
        """The largest use in MB; NaN if it is not measured."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 1e6
        if not self._is_measured_by_linux:
            return math.nan
        fields = dict(line.split(":", 1) for line in STATUS.read_text(encoding="utf-8").splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024 / 1e6
