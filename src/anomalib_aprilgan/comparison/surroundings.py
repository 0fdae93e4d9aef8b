# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""What a result depends on beside its settings: versions, the device, the revision; and what they make impossible."""

import math
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import torch

from anomalib_aprilgan.method.towers import runs_batch_first

__all__ = ["describe_surroundings", "peak_memory_mb", "refuse_unfit_surroundings", "reset_peak_memory"]

DISTRIBUTIONS = {
    "anomalib_aprilgan": "anomalib-aprilgan",
    "anomalib": "anomalib",
    "torch": "torch",
    "open_clip": "open_clip_torch",
}


def refuse_unfit_surroundings(class_paths: Iterable[str]) -> None:
    """Refuse models whose numbers would be wrong here.

    anomalib 2.7's WinClip runs the image tower sequence-first. From open_clip 2.26 on the tower is batch-first: nothing
    is raised, the image scores are right, and the maps are wrong.

    Args:
        class_paths: The models' classes.

    Raises:
        RuntimeError: If there is such a model; the message has the command that mends it.
    """
    if runs_batch_first() and any(path.rpartition(".")[2] == "WinClip" for path in class_paths):
        msg = (
            f"anomalib's WinClip computes wrong maps with open_clip_torch {version('open_clip_torch')}, and does not "
            "say so. Install the version that it was made for: pip install 'anomalib-aprilgan[compare]'. Or take "
            "WinClip out of `models`; AprilGan gives the same numbers with both."
        )
        raise RuntimeError(msg)


def describe_surroundings(device: str) -> dict[str, str]:
    """Describe versions, device and revision.

    Args:
        device: What the run is computed on: ``"cpu"``, or for instance ``"cuda:0"``.

    Returns:
        By column of the table of results.
    """
    name = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    versions = {column: version(distribution) for column, distribution in DISTRIBUTIONS.items()}
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    return {**versions, "device": f"{device} ({name}{threads})", "git_revision": _git_revision()}


def _git_revision() -> str:
    """The revision of the working directory, with a mark if files have changed since; empty if there is none."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--match="],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):  # no git, or a checkout on a disk that does not answer
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def reset_peak_memory() -> None:
    """Start measuring anew, as far as the system lets us."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mb() -> float:
    """Most memory in use since the last reset, in MB: of the GPU if there is one, else of the process.

    Outside Linux, a process's peak is that since its start; NaN on Windows.
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
