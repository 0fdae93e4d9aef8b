# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""What surrounds the package: the state of the process, read-only folders, no network, and other processes."""

import faulthandler
import locale
import logging
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from PIL import Image

from anomalib_aprilgan import AprilGan, AprilGanModel, AuxiliaryDataModule, Product
from anomalib_aprilgan.comparison.compare import compare
from anomalib_aprilgan.comparison.report import write_report
from anomalib_aprilgan.comparison.results import read_runs
from anomalib_aprilgan.demo.sample_data import write_sample_data
from anomalib_aprilgan.files import published
from anomalib_aprilgan.files.published import MIRROR_VARIABLE, PUBLISHED, fetch
from anomalib_aprilgan.integration.quiet_engine import QUIET

MakeModel = Callable[..., AprilGan]


# ---- State of the process -------------------------------------------------------------------------------------------


def state() -> dict[str, Any]:
    """Describe what other parts of a program share with this package."""
    loggers = [logging.getLogger(name) for name in ("", "anomalib", "lightning.pytorch", "torch", "PIL")]
    return {
        "random": random.getstate(),
        "numpy": (pickle.dumps(np.random.get_state()), np.geterr()),  # noqa: NPY002  # the state that all share
        "torch": torch.get_rng_state().tolist(),
        "default dtype": torch.get_default_dtype(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), cv2.getNumThreads()),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic),
        "benchmark": torch.backends.cudnn.benchmark,
        "precision": torch.get_float32_matmul_precision(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "warnings": list(warnings.filters),
        "logging": [(one.level, list(one.handlers), list(one.filters), one.propagate, one.disabled) for one in loggers],
        "environment": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "path": list(sys.path),
        "hooks": (sys.excepthook, sys.stdout, sys.stderr, sys.gettrace(), faulthandler.is_enabled()),
        "locale": locale.setlocale(locale.LC_ALL),
        "recursion": sys.getrecursionlimit(),
        "images": (Image.MAX_IMAGE_PIXELS, getattr(Image, "WARN_POSSIBLE_FORMATS", None)),
        "plots": dict(mpl.rcParams),
        "umask": umask(),
    }


def umask() -> int:
    os.umask(value := os.umask(0))
    return value


def changes(do: Callable[[], object]) -> dict[str, tuple[Any, Any]]:
    """Do something, and return what it has changed, before and after."""
    before = state()
    do()
    after = state()
    return {name: (value, after[name]) for name, value in before.items() if after[name] != value}


def test_models_and_files_change_nothing(
    make_model: Callable[..., AprilGanModel], make_lightning_model: MakeModel, sample_root: Path, tmp_path: Path
) -> None:
    """torch's modules draw their first weights from the random state when they are made, hence models do so too."""
    source = sample_root / "coins/train/good"
    made: list[Any] = []

    def make() -> None:
        made[:] = make_model(), make_lightning_model(class_name="coin", k_shot=1, few_shot_source=source)

    def use() -> None:
        model, other = made
        model.setup("coin", torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)))
        model(torch.zeros(1, 3, 96, 96))
        model.load_adapters(model.save_adapters(tmp_path / "adapters.safetensors"))
        other.prepare()
        other.add_references(source / "000.png")
        other(torch.zeros(1, 3, 70, 80))
        other.switch_to(Product.load(other.product.save(tmp_path / "product.safetensors")))
        other.to_torch(tmp_path)
        write_sample_data(tmp_path / "data", ("brick",), ("scratch",), size=32, train=1, test=1)

    for _ in range(2):  # what is imported for the first time may change the state
        making, using = changes(make), changes(use)
    assert set(making) <= {"torch"}
    assert not using


@pytest.mark.parametrize("run", ["predict", "fit", pytest.param("test", marks=pytest.mark.slow)])
def test_runs_of_an_engine_change_nothing_but_random_states(
    run: str, make_lightning_model: MakeModel, sample_root: Path, tmp_path: Path
) -> None:
    """A training draws from the random state, and so do Lightning's dataloaders."""

    def use() -> None:
        model = make_lightning_model(**({"adapter": None} if run == "fit" else {}))
        engine = Engine(default_root_dir=tmp_path, max_epochs=1, **QUIET)
        data = MVTecAD(sample_root, category="coins", num_workers=0)
        if run == "predict":
            engine.predict(model, data_path=sample_root / "coins/test/good")
        elif run == "test":
            engine.test(model, datamodule=data, verbose=False)
        else:
            engine.fit(model, datamodule=AuxiliaryDataModule(data, ["coins"], num_workers=0))

    use()
    assert set(changes(use)) <= {"torch", "random", "numpy"}


@pytest.mark.slow
def test_comparisons_change_nothing(sample_root: Path, tmp_path: Path) -> None:
    def use() -> None:
        compare(**comparison(sample_root, tmp_path / "comparison", retry_failed=True))
        shutil.rmtree(tmp_path / "comparison/runs")

    use()
    assert not changes(use)


def comparison(sample_root: Path, output: Path, **others: Any) -> dict[str, Any]:
    """Return arguments of a small comparison."""
    options = {"backbone": "ViT-builtin", "image_size": 96}
    return {
        "models": {"ours": {"class_path": "AprilGan", "init_args": options}},
        "data": {"class_path": "MVTecAD", "init_args": {"root": str(sample_root), "num_workers": 0}},
        "categories": ["coins"],
        "shots": [0],
        "output": output,
        "trainer": {"accelerator": "cpu"},
        **others,
    }


# ---- Read-only folders ----------------------------------------------------------------------------------------------


@pytest.fixture
def read_only(small_disk: Path) -> Iterator[Callable[[], Path]]:
    """Make a disk, and a function that makes it read-only."""

    def protect() -> Path:
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        return small_disk

    yield protect
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)


def test_files_in_a_read_only_cache_are_used_and_missing_ones_named(
    read_only: Callable[[], Path],
    small_disk: Path,
    official_adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(published, "user_cache_path", lambda name: small_disk)
    monkeypatch.setenv(MIRROR_VARIABLE, tmp_path.as_uri())
    monkeypatch.setattr(published, "git_object_id", lambda path: PUBLISHED["visa"].git_object_id)
    shutil.copy(official_adapter, small_disk / PUBLISHED["visa"].file_name)
    shutil.copy(official_adapter, tmp_path / PUBLISHED["mvtec"].file_name)
    read_only()
    assert fetch("visa").read_bytes() == official_adapter.read_bytes()
    with pytest.raises(RuntimeError, match="Read-only file system") as error:
        fetch("mvtec")
    assert str(small_disk / PUBLISHED["mvtec"].file_name) in str(error.value)


def test_folders_that_cannot_be_written_to_are_named(
    read_only: Callable[[], Path], make_lightning_model: MakeModel, sample_root: Path
) -> None:
    disk = read_only()
    model = make_lightning_model(class_name="coin")
    writers: list[Callable[[], object]] = [
        lambda: compare(**comparison(sample_root, disk / "comparison")),
        lambda: model.product.save(disk / "product.safetensors"),
        lambda: model.model.save_adapters(disk / "adapters.safetensors"),
        lambda: model.to_torch(disk),
        lambda: write_sample_data(disk / "data", ("brick",), ("scratch",), size=32, train=1, test=1),
        lambda: Engine(default_root_dir=disk, **QUIET).predict(model, data_path=sample_root / "coins/test/good"),
    ]
    for write in writers:
        with pytest.raises(OSError, match=rf"Read-only file system.*{disk}"):
            write()


# ---- Other processes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="processes cannot be forked here")
@pytest.mark.parametrize("shards", [("1/3", "2/3", "3/3"), (None, None, None)])
def test_several_processes_share_a_comparison(
    shards: tuple[str | None, ...], sample_root: Path, tmp_path: Path
) -> None:
    """With shards each does its part; without, all do all runs, and none disturbs another."""

    def work(shard: str | None) -> None:
        torch.set_num_threads(1)
        compare(**comparison(sample_root, tmp_path / "comparison", shots=[1], seeds=[0, 1, 2, 3, 4, 5], shard=shard))

    workers = [multiprocessing.get_context("fork").Process(target=work, args=(shard,)) for shard in shards]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    table = read_runs(tmp_path / "comparison")
    assert sorted(table.seed) == list("012345")
    assert set(table.status) == {"done"}
    write_report(tmp_path / "comparison")
    assert len(pd.read_csv(tmp_path / "comparison/results.csv")) == 6


# ---- Network --------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys, warnings

def refuse(event, arguments):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname"}:
        print("uses the network:", event, arguments, file=sys.stderr)
        raise OSError("there is no network")

sys.addaudithook(refuse)
warnings.simplefilter("ignore")
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib_aprilgan import AprilGan, AuxiliaryDataModule
from anomalib_aprilgan.comparison.compare import compare

root, results = sys.argv[1:]
options = {"accelerator": "cpu", "logger": False, "max_epochs": 1, "default_root_dir": results}
arguments = {"backbone": "ViT-builtin", "image_size": 96}
data = MVTecAD(root, category="coins", num_workers=0)
model = AprilGan(k_shot=1, **arguments)
Engine(**options).test(model, datamodule=data, verbose=False)
Engine(**options).predict(model, data_path=f"{root}/coins/test/good")
model.product.save(f"{results}/product.safetensors")
model.to_torch(results)
Engine(**options).fit(AprilGan(adapter=None, **arguments), datamodule=AuxiliaryDataModule(data, num_workers=0))
component = {"class_path": "AprilGan", "init_args": arguments}
folder = {"class_path": "MVTecAD", "init_args": {"root": root, "num_workers": 0}}
compare({"ours": component}, folder, ["coins"], [0], output=f"{results}/comparison", trainer={"accelerator": "cpu"})
print("done")
"""


@pytest.mark.slow
def test_nothing_uses_the_network_unasked(sample_root: Path, tmp_path: Path) -> None:
    """With the built-in weights; also without the variables that set other packages offline."""
    own = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    own["HF_HOME"] = str(tmp_path / "cache")
    command = [sys.executable, "-c", PROGRAM, str(sample_root), str(tmp_path / "results")]
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
    assert "uses the network" not in done.stderr
    assert done.stdout.endswith("done\n"), done.stderr
