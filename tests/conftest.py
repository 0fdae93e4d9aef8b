"""Fixtures: recorded outputs of the authors' code, a small CLIP, and the sample data set. They need no network."""

import multiprocessing
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the tests must not use the network
os.environ["XDG_CACHE_HOME"] = mkdtemp(prefix="cache-of-tests-")  # nor the cache of whoever runs them
if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core, so one thread per process
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import open_clip
import pytest
import torch
from numpy.random import default_rng
from torch import Tensor
from torchvision.transforms.v2.functional import normalize

from anomalib_aprilgan import AprilGan, AprilGanModel
from anomalib_aprilgan.demo.sample_data import write_sample_data
from anomalib_aprilgan.integration.pre_processing import CLIP_MEAN, CLIP_STD

GOLDEN = Path(__file__).parent / "golden"
BACKBONE = "golden-vit"
"""Architecture of the recorded CLIP: four blocks of width 64, patches of 8 px, images of 64 px."""

open_clip.add_model_config(GOLDEN / f"{BACKBONE}.json")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the device of `pytest -m gpu`."""
    parser.addoption("--device", default="cuda", help="device of the tests in test_gpu.py: cuda, mps or cpu")


def pytest_unconfigure() -> None:
    """Delete the cache of the tests."""
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need what Windows lacks."""
    if item.get_closest_marker("posix") and not hasattr(os, "fork"):
        pytest.skip("Windows lacks fork, SIGKILL, locks, named pipes, links without a privilege, and many file names")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the figures that tests have measured."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    figures = [value for report in reports for name, value in report.user_properties if name == "figure"]
    if figures:
        terminalreporter.section("figures")
        for line in dict.fromkeys(figures):
            terminalreporter.line(str(line))


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """Load the recorded outputs. ``inputs`` are the authors' input tensors, computed from their resized images."""
    recorded = torch.load(GOLDEN / "golden.pt", weights_only=True)
    recorded["inputs"] = normalize(recorded["resized"].permute(0, 3, 1, 2) / 255, CLIP_MEAN, CLIP_STD)
    return recorded


@pytest.fixture(scope="session")
def official_adapter() -> Path:
    """Return the file of the recorded adapters in the authors' format."""
    return GOLDEN / "golden_adapter_official.pth"


@pytest.fixture(scope="session")
def clip_weights(golden: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the state dict of the recorded CLIP. Token embeddings that the prompts do not use are zero."""
    weights: dict[str, Tensor] = {name: value.float() for name, value in golden["clip"].items()}
    embedding = torch.zeros(golden["config"]["text_cfg"]["vocab_size"], golden["token_rows"].shape[1])
    embedding[golden["token_ids"]] = golden["token_rows"].float()
    weights["token_embedding.weight"] = embedding
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="session")
def make_model(golden: dict[str, Any], clip_weights: Path, official_adapter: Path) -> Callable[..., AprilGanModel]:
    """Make the plain model of the recorded outputs; arguments may be overridden."""

    def make(**overrides: Any) -> AprilGanModel:
        arguments: dict[str, Any] = {
            "backbone": BACKBONE,
            "pretrained": clip_weights,
            "image_size": golden["size"],
            "layers": golden["layers"],
            "reference_layers": golden["reference_layers"],
            "adapter": official_adapter,
        }
        return AprilGanModel(**arguments | overrides)

    return make


@pytest.fixture(scope="session")
def make_lightning_model(clip_weights: Path, official_adapter: Path) -> Callable[..., AprilGan]:
    """Make an ``AprilGan`` with the recorded CLIP, 64 px and stages 2 and 4; arguments may be overridden."""

    def make(**overrides: Any) -> AprilGan:
        arguments: dict[str, Any] = {
            "backbone": BACKBONE,
            "pretrained": clip_weights,
            "image_size": 64,
            "layers": (2, 4),
            "adapter": official_adapter,
        }
        return AprilGan(**arguments | overrides)

    return make


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a sample data set in the layout of MVTec AD: three categories, 64 px."""
    root = tmp_path_factory.mktemp("sample")
    return write_sample_data(root, ("brick", "coins", "gravel"), size=64, train=6, test=3)


def killed(work: Callable[[], object], seconds: float) -> bool:
    """Run a function in a process that is forked, and kill it after some time. Return whether that came before its end.

    The time counts from the start of the function, however long the fork takes. What the function needs has been
    imported.
    """
    fork = multiprocessing.get_context("fork")
    started = fork.Event()

    def work_alone() -> None:
        torch.set_num_threads(1)  # the threads of this process are not forked
        started.set()
        work()

    process = fork.Process(target=work_alone)
    process.start()
    assert started.wait(60), "the process has not started"
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in {0, -signal.SIGKILL}, "the function has failed, see its traceback"
    return process.exitcode != 0


@pytest.fixture(scope="session")
def kill_repeatedly() -> Callable[..., Iterator[bool]]:
    """Make a function that starts work and kills it at random moments, as often as asked for."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("processes cannot be forked here")

    def start_and_kill(work: Callable[[], object], kills: int, longest: float, shortest: float = 0.0) -> Iterator[bool]:
        """Yield after each process whether it was killed; otherwise it came to its end.

        Args:
            work: What each process does.
            kills: Number of kills.
            longest: Most seconds before a kill.
            shortest: Fewest seconds before a kill.
        """
        moments = default_rng(0)
        while kills:
            was_killed = killed(work, moments.uniform(shortest, longest))
            kills -= was_killed
            yield was_killed

    return start_and_kill


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 1 MiB, where that is possible."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
