# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``doctor``: a report about an installation, to be pasted into a bug report.

Nothing is imported before it is examined, so that the report also describes an installation that is broken.
"""

import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

__all__ = ["examine"]

OURS = "anomalib-aprilgan"
OPTIONAL = ("onnx", "onnxruntime", "openvino", "nncf", "gradio", "distributed")
VARIABLES = ("ANOMALIB_APRILGAN_", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "PL_", "PYTORCH_")
"""Beginnings of the names of environment variables that change what this package does."""

OK, NOTE, BROKEN = "ok", "--", "BROKEN"


class Finding(NamedTuple):
    """A line of the report.

    Attributes:
        status: ``"ok"``, ``"--"`` for plain information, or ``"BROKEN"``.
        text: What was found.
    """

    status: str
    text: str


def examine() -> bool:
    """Print the report. It is plain text; paths in the home folder begin with ``~``. It takes less than 20 seconds.

    Returns:
        Whether everything works.
    """
    start, broken = time.perf_counter(), 0
    for title, section in SECTIONS.items():
        print(title)  # noqa: T201
        for finding in _findings(section):
            broken += finding.status == BROKEN
            print(f"  {finding.status:<6}  {_without_home(finding.text)}", flush=True)  # noqa: T201
    verdict = f"{broken} broken" if broken else "everything works"
    print(f"Result: {verdict} ({time.perf_counter() - start:.0f} s)")  # noqa: T201
    return not broken


def _findings(section: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Return the findings of a section, and an error as the last of them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from section()
    except Exception as error:  # whatever is wrong with the installation is the result of the examination
        yield Finding(BROKEN, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")


def _without_home(text: str) -> str:
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


# ---- Sections -------------------------------------------------------------------------------------------------------


def _versions() -> Iterator[Finding]:
    """Compare the installed versions with the required ones."""
    yield Finding(NOTE, f"Python {platform.python_version()}, {platform.platform()}")
    try:
        yield Finding(OK, f"{OURS} {version(OURS)}")
    except PackageNotFoundError:
        yield Finding(BROKEN, f"{OURS} is imported, but not installed. Install it with pip.")
        return
    for requirement in map(Requirement, requires(OURS) or ()):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Finding(BROKEN, f"{requirement} is not installed. Run: pip install '{requirement}'")
            continue
        if requirement.specifier.contains(found, prereleases=True):
            yield Finding(OK, f"{requirement.name} {found}")
        else:
            advice = f"pip install '{requirement}'"
            yield Finding(BROKEN, f"{requirement.name} {found}, but {requirement.specifier} is needed. Run: {advice}")
    installed = []
    for name in OPTIONAL:
        try:
            installed.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            installed.append(f"{name} (not installed)")
    yield Finding(NOTE, f"optional: {', '.join(installed)}")
    for name in sorted(os.environ):
        if name.startswith(VARIABLES):  # a mirror's address may be private
            yield Finding(NOTE, f"{name}={'...' if 'MIRROR' in name else os.environ[name]}")


def _discovery() -> Iterator[Finding]:
    """Import anomalib's models as a user does, and look for ours. It comes before any other import of anomalib."""
    import anomalib_aprilgan_plugin as plugin  # noqa: PLC0415

    is_off = os.environ.get(plugin.SWITCH, "1").lower() in {"0", "false", "off", "no"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from anomalib.models import list_models  # noqa: PLC0415
    failures = [str(warning.message) for warning in caught if "anomalib works without" in str(warning.message)]
    for failure in failures:
        yield Finding(BROKEN, failure)
    if "april_gan" in list_models():
        yield Finding(OK, "anomalib knows AprilGan")
    elif is_off:
        yield Finding(NOTE, f"anomalib does not know AprilGan, since {plugin.SWITCH} is {os.environ[plugin.SWITCH]}")
    elif not failures:
        advice = "Reinstall it, or import anomalib_aprilgan first: Python reads no .pth file here."
        yield Finding(BROKEN, f"anomalib does not know AprilGan. {advice}")


def _devices() -> Iterator[Finding]:
    """List the devices of torch, and what they compute with."""
    import torch  # noqa: PLC0415

    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding(OK, f"cpu: {os.cpu_count()} cores, {torch.get_num_threads()} threads, {capability}")
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        yield Finding(OK, f"cuda:{number}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB, {bf16}")
    if torch.version.cuda and not torch.cuda.is_available():
        yield Finding(NOTE, f"torch is built for CUDA {torch.version.cuda}, but there is no usable GPU")
    if torch.backends.mps.is_available():
        yield Finding(OK, "mps")
    tf32 = torch.backends.cuda.matmul.allow_tf32
    precision = torch.get_float32_matmul_precision()
    yield Finding(NOTE, f"float32 products: {precision}{', TF32' if tf32 else ''}; default {torch.get_default_dtype()}")


def _weights() -> Iterator[Finding]:
    """Check the weights in the package and in the caches."""
    from anomalib_aprilgan.files import embedded, published  # noqa: PLC0415
    from anomalib_aprilgan.files.digests import digest_of  # noqa: PLC0415
    from anomalib_aprilgan.method.architecture import DEFAULT_BACKBONE  # noqa: PLC0415
    from anomalib_aprilgan.method.pretrained import cached_weights  # noqa: PLC0415

    for path in (embedded.WEIGHTS, embedded.ADAPTERS):
        yield from _findings(partial(_embedded, path))
    for name, adapters in published.PUBLISHED.items():
        path = published.cached_file(name)
        if not path.is_file():
            yield Finding(NOTE, f"adapters {name!r}: not in the cache; `anomalib-aprilgan fetch {name}` gets them")
        elif (found := published.git_object_id(path)) == adapters.git_object_id:
            yield Finding(OK, f"adapters {name!r}: {path}, git object id {found[:16]}...")
        else:
            yield Finding(BROKEN, f"adapters {name!r}: {path} has the wrong git object id {found}. Delete it.")
    files = cached_weights(DEFAULT_BACKBONE, "openai")
    if not files:
        yield Finding(NOTE, f"CLIP {DEFAULT_BACKBONE} (openai): not in the cache; the first use downloads it")
    for path, stated in files:
        found = digest_of(path)
        if not found.startswith(stated):
            yield Finding(BROKEN, f"CLIP: {path} has the SHA-256 {found} instead of {stated}. Delete it.")
        else:
            yield Finding(OK, f"CLIP: {path}, SHA-256 {found[:16]}...{'' if stated else ' (none is stated)'}")


def _embedded(path: Path) -> Iterator[Finding]:
    """Check a weight file of the package."""
    from anomalib_aprilgan.files.digests import digest_of  # noqa: PLC0415
    from anomalib_aprilgan.files.weight_files import read_weight_file  # noqa: PLC0415

    read_weight_file(path, "weights")  # compares the content with the digest in the file
    yield Finding(OK, f"{path.name} (in the package): SHA-256 {digest_of(path)[:16]}...")


def _self_test() -> Iterator[Finding]:
    """Compute the recorded numbers on each device."""
    import torch  # noqa: PLC0415

    devices = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    for device in [*devices, *(["mps"] if torch.backends.mps.is_available() else [])]:
        yield from _findings(partial(_self_test_on, device))


def _self_test_on(device: str) -> Iterator[Finding]:
    """Compute the recorded numbers on a device."""
    from anomalib_aprilgan.diagnosis.self_test import TOLERANCE, largest_difference, measure  # noqa: PLC0415

    start = time.perf_counter()
    name, difference = largest_difference(measure(device))
    seconds = time.perf_counter() - start
    text = f"ViT-builtin on {device}: differs by {difference:.1e} at most ({name}; tolerance {TOLERANCE:.0e})"
    yield Finding(OK if difference <= TOLERANCE else BROKEN, f"{text}, {seconds:.1f} s")


SECTIONS = {
    "Versions": _versions,
    "Discovery by anomalib": _discovery,
    "Devices and precision": _devices,
    "Weights": _weights,
    "Self-test": _self_test,
}
