"""Comparisons: the grid, the files of runs, and whole comparisons through the command."""

import errno
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from mmap import mmap
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.error import URLError

import open_clip
import pandas as pd
import pytest
import torch
import yaml
from anomalib.data import MVTecAD
from anomalib.data.datamodules.image import mvtecad, visa
from anomalib.engine import Engine
from anomalib.models.image.winclip import torch_model as winclip
from lightning.pytorch import seed_everything

from anomalib_aprilgan import AprilGan
from anomalib_aprilgan.cli import main
from anomalib_aprilgan.comparison import components
from anomalib_aprilgan.comparison.checks import find_categories
from anomalib_aprilgan.comparison.compare import compare
from anomalib_aprilgan.comparison.components import checked_components
from anomalib_aprilgan.comparison.environment import PeakMemory, check_environment, describe_environment, device_of_run
from anomalib_aprilgan.comparison.folder import prepare_folder, safe_name
from anomalib_aprilgan.comparison.grid import make_grid, shard_of
from anomalib_aprilgan.comparison.results import COLUMNS, METRICS, read_runs, write_run
from anomalib_aprilgan.comparison.zero_shot_seeds import zero_shot_seeds
from anomalib_aprilgan.files import whole_files
from anomalib_aprilgan.files.whole_files import unfinished_folder, write_file
from anomalib_aprilgan.method import clip, encoders, feature_store, towers
from anomalib_aprilgan.method.towers import runs_batch_first

APRILGAN = {"class_path": "AprilGan", "init_args": {"backbone": "ViT-builtin", "image_size": 96}}
PATCHCORE = {
    "class_path": "Patchcore",
    "init_args": {"backbone": "resnet18", "layers": ["layer3"], "pre_trained": False},
}
BROKEN = {**PATCHCORE, "init_args": {**PATCHCORE["init_args"], "coreset_sampling_ratio": 0.0}}
"""A model that can be made, but fails when it is fitted."""


@pytest.fixture
def data(sample_root: Path) -> dict[str, Any]:
    return {"class_path": "MVTecAD", "init_args": {"root": str(sample_root), "num_workers": 0}}


@pytest.fixture
def run(data: dict[str, Any], tmp_path: Path) -> Callable[..., pd.DataFrame]:
    """Compare in a folder, and return the table."""

    def comparison(**overrides: Any) -> pd.DataFrame:
        arguments: dict[str, Any] = {
            "models": {"aprilgan": APRILGAN},
            "data": data,
            "categories": ["gravel"],
            "shots": [0],
            "output": tmp_path / "comparison",
            "trainer": {"accelerator": "cpu"},
        }
        compare(**arguments | overrides)
        return read_runs(tmp_path / "comparison")

    return comparison


# ---- The grid -------------------------------------------------------------------------------------------------------


def grid(**overrides: Any) -> list[Any]:
    arguments: dict[str, Any] = {
        "models": {"a": APRILGAN, "b": PATCHCORE},
        "datamodule": {"class_path": "anomalib.data.MVTecAD", "init_args": {"category": "bottle"}},
        "categories": ["cable", "tile"],
        "shots": [0, 2, "full"],
        "seeds": [0, 1],
        "zero_shot": ["a"],
        "zero_shot_seeds": [0, 1],
    }
    return make_grid(**arguments | overrides)


def test_the_grid_has_what_can_be_run() -> None:
    runs = grid()
    assert len(runs) == 2 * 2 * (1 + 2 + 1)
    assert {(run.model, run.shots) for run in runs} == {("a", 0), ("a", 2), ("b", 2), ("b", "full")}
    assert len({run.key for run in runs}) == len(runs)
    assert str(runs[0]) == "a, MVTecAD/cable, 0-shot, seed 0"


def test_zero_shot_runs_may_have_seeds_of_their_own() -> None:
    runs = grid(shots=[0, 2], zero_shot_seeds=[0])
    assert [(run.shots, run.seed) for run in runs if run.model == "a" and run.category == "tile"] == [
        (0, 0),
        (2, 0),
        (2, 1),
    ]


def seeds_of(data: dict[str, Any], model: dict[str, Any] | None = None, **arguments: Any) -> list[int]:
    init_args = {**data["init_args"], **arguments}
    models, data = checked_components({"a": model or APRILGAN}, {**data, "init_args": init_args})
    categories = [""] if "name" in init_args else ["gravel"]
    return zero_shot_seeds(models, data, categories, [0, 2], [5, 6, 7])


def test_one_seed_is_enough_where_nothing_is_random(data: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    assert seeds_of(data) == [5]
    assert seeds_of(data, {"class_path": "WinClip"}) == [5]
    assert seeds_of(data, val_split_mode="from_test", seed=3) == [5], "a split that is the same for each seed"
    assert torch.equal(before, torch.get_rng_state())


def test_each_seed_counts_if_images_are_augmented_or_the_pre_processor_is_the_user_s(data: dict[str, Any]) -> None:
    crop = {"class_path": "torchvision.transforms.v2.RandomResizedCrop", "init_args": {"size": 64}}
    for name in ("test_augmentations", "augmentations"):
        assert seeds_of(data, **{name: crop}) == [5, 6, 7]
    turned = {"class_path": "PreProcessor", "init_args": {"transform": crop}}
    own = {**APRILGAN, "init_args": {**APRILGAN["init_args"], "pre_processor": turned}}
    assert seeds_of(data, own) == [5, 6, 7]


@pytest.mark.parametrize("mode", ["from_test", "from_train"])
def test_each_seed_counts_if_the_data_are_split_at_random(data: dict[str, Any], mode: str) -> None:
    assert seeds_of(data, val_split_mode=mode) == [5, 6, 7]


def test_each_seed_counts_if_normal_test_images_are_drawn_from_the_training_images(sample_root: Path) -> None:
    """The modes of such a datamodule do not say so."""
    folders = {"name": "gravel", "root": str(sample_root / "gravel"), "normal_dir": "train/good", "num_workers": 0}
    data = {"class_path": "Folder", "init_args": {**folders, "abnormal_dir": "test/stain"}}
    assert seeds_of(data, val_split_mode="same_as_test") == [5, 6, 7]
    assert seeds_of(data, val_split_mode="same_as_test", normal_test_dir="test/good") == [5]


def test_each_seed_counts_for_models_that_are_or_may_be_random(data: dict[str, Any]) -> None:
    untrained = {**APRILGAN, "init_args": {**APRILGAN["init_args"], "adapter": None}}
    assert seeds_of(data, untrained) == [5, 6, 7]
    assert seeds_of(data, PATCHCORE) == [5, 6, 7]


def test_lists_of_images_are_only_read_if_they_decide() -> None:
    absent = {"class_path": "anomalib.data.MVTecAD", "init_args": {"root": "absent"}}
    for shots, seeds in (([2], [0, 1]), ([0, 2], [0])):
        assert zero_shot_seeds({"a": APRILGAN}, absent, ["gravel"], shots, seeds) == seeds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shots": []}, 'Expected argument `shots` to hold numbers from 0 on, or "full", but got'),
        ({"shots": [0, -1]}, "but got -1"),
        ({"shots": [10**23]}, "but got 1000"),
        ({"shots": ["half"]}, "but got 'half'"),
        ({"shots": [5000]}, r"`shots` to be at most 6, the number of .* of MVTecAD/gravel, but got 5000\. No run was"),
        ({"seeds": []}, "Expected argument `seeds` to hold numbers from 0 to 4294967295, but got"),
        ({"seeds": [0, -5]}, "but got -5"),
        ({"seeds": [2**32]}, "but got 4294967296"),
        ({"processes": 0}, "Expected argument `processes` to be a number from 1 on, or None, but got 0"),
        ({"processes": -3}, "but got -3"),
        ({"trainer": {"epochs": 3}}, "`trainer` to hold arguments of Lightning's Trainer, but got epochs"),
    ],
)
def test_wrong_numbers_are_found_before_the_first_run(
    run: Callable[..., pd.DataFrame], tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(**arguments)
    assert not (tmp_path / "comparison").exists()


def test_a_seed_that_is_given_twice_is_run_once(run: Callable[..., pd.DataFrame]) -> None:
    """Random states and the seed that later models use are as before."""
    before = torch.get_rng_state(), os.environ.get("PL_GLOBAL_SEED"), os.environ.get("PYTHONSAFEPATH")
    assert run(shots=[1, 1], seeds=[3, 3]).seed.tolist() == ["3"]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (os.environ.get("PL_GLOBAL_SEED"), os.environ.get("PYTHONSAFEPATH")) == before[1:]


def test_shards_share_the_grid() -> None:
    runs = grid()
    shards = [shard_of(runs, f"{number}/3") for number in (1, 2, 3)]
    assert sorted(run.key for shard in shards for run in shard) == sorted(run.key for run in runs)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_settings_change_with_arguments_that_matter() -> None:
    first = grid()[0]
    others = grid(models={"a": {"class_path": "AprilGan", "init_args": {"backbone": "ViT-B-16"}}, "b": PATCHCORE})
    assert others[0].key == first.key
    assert others[0].settings != first.settings
    category = {"class_path": "anomalib.data.MVTecAD", "init_args": {"category": "tile", "num_workers": 2}}
    assert grid(datamodule=category)[0].settings == first.settings, "a column of its own, and no effect"


# ---- Files of runs --------------------------------------------------------------------------------------------------


def row(**values: Any) -> dict[str, Any]:
    defaults = {"model": "a", "data": "MVTecAD", "category": "tile", "shots": "0", "seed": "0", "status": "done"}
    return defaults | {"started": "2026-01-01T00:00:00"} | values


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{whole_files.UNFINISHED}*"))


def test_names_are_safe_and_differ() -> None:
    names = [
        "a",
        "A",
        "a/b",
        "a_b",
        "a\\b",
        "../../etc/passwd",
        "..",
        ".",
        "",
        " ",
        "CON",
        "nul.txt",
        "a\nb",
        "ä",
        "a\u0308",
    ]
    names += ["x" * 300, "x" * 299, "<script>", 'a:b*c?"|', "\0", "-rf", "50%#a", "日本", "\ud800", safe_name("a/b")]
    made = [safe_name(name) for name in names] + [safe_name("a", "b"), safe_name("a-b"), safe_name("a", "b", "")]
    assert len({name.lower() for name in made}) == len(names) + 3
    for name in made:
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
        assert len(name) < 64
        assert name[0] != "-"
    assert safe_name("a/b") == safe_name("a/b")


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    error = 'ValueError: a, "b"\n  second line, ünï \ud800'
    write_run(tmp_path, row(image_AUROC=0.1 + 0.2, parameters=3, model="x,y/z", pixel_AUROC=float("nan")))
    write_run(tmp_path, row(status="failed", error=error, started="2025"))
    table = read_runs(tmp_path)
    assert list(table.columns) == [*COLUMNS, "arguments"]
    assert table.model.tolist() == ["a", "x,y/z"], "by time"
    assert table.image_AUROC[1] == 0.1 + 0.2
    assert table.error.tolist() == [error, ""]
    assert table[["pixel_AUROC", "pixel_F1Max"]].isna().all(axis=None)
    with pytest.raises(ValueError, match="columns"):
        write_run(tmp_path, row(colour="red"))
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_failure_never_hides_a_result(tmp_path: Path) -> None:
    for images, status in enumerate(("failed", "failed", "done", "failed")):
        settings = "of a wrong configuration" if images == 0 else ""
        write_run(tmp_path, row(status=status, images=images, settings=settings))
        assert len(read_runs(tmp_path)) == 1
        assert read_runs(tmp_path).images[0] == min(images, 2), "the latest failure, then the result"
    write_run(tmp_path, row(images=4, settings=""))
    assert len(list((tmp_path / "runs").iterdir())) == 1
    for status in ("done", "failed"):
        with pytest.raises(ValueError, match=r"holds the same run \(a, MVTecAD, tile, 0, 0\) with other settings"):
            write_run(tmp_path, row(status=status, settings="other"))
    assert read_runs(tmp_path).images[0] == 4


def write_many(folder: Path, worker: int) -> None:
    for number in range(30):
        write_run(folder, row(seed=str(number), images=worker))
        write_run(folder, row(model=f"own {worker}", seed=str(number), error="x" * 100_000))
        read_runs(folder)


@pytest.mark.posix
def test_processes_write_and_read_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write_many, args=(tmp_path, worker)) for worker in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert read_runs(tmp_path).groupby("model").size().to_dict() == {"a": 30, "own 0": 30, "own 1": 30}
    assert not leftovers(tmp_path)


@pytest.mark.posix
def test_a_kill_while_writing_leaves_whole_files(
    kill_repeatedly: Callable[..., Iterator[bool]], tmp_path: Path
) -> None:
    for _ in kill_repeatedly(lambda: write_many(tmp_path, 5), 5, longest=0.03, shortest=0.01):
        read_runs(tmp_path)  # raises an error for half a file
    write_many(tmp_path, 9)
    assert read_runs(tmp_path).groupby("model").size()[["a", "own 9"]].tolist() == [30, 30]


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_there(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, row(images=1))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full_disk)
        with pytest.raises(OSError, match="No space left"):
            write_run(tmp_path, row(images=2))
        with pytest.raises(OSError, match=r"`output` to be a folder that can be written to, .*No space left"):
            prepare_folder(tmp_path)
    assert read_runs(tmp_path).images.tolist() == [1]
    assert not leftovers(tmp_path)


def test_what_killed_processes_leave_is_deleted(tmp_path: Path) -> None:
    prepare_folder(tmp_path)
    assert not list((tmp_path / "runs").iterdir())
    for place in (".", "runs", "tracebacks", "examples/a/b"):
        write_file(tmp_path / place / f"{whole_files.UNFINISHED}killed" / "weights.ckpt", b"")
    with unfinished_folder(tmp_path) as alive:
        prepare_folder(tmp_path)
        assert leftovers(tmp_path) == [alive]


# ---- Runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(data: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "compare.yaml"
    content = {
        "models": {"aprilgan": APRILGAN},
        "data": data,
        "categories": ["gravel"],
        "shots": [1],
        "seeds": list(range(20)),
        "output": str(tmp_path / "comparison"),
        "trainer": {"accelerator": "cpu"},
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_models_side_by_side(run: Callable[..., pd.DataFrame], sample_root: Path, tmp_path: Path) -> None:
    table = run(models={"aprilgan": APRILGAN, "patchcore": PATCHCORE}, shots=[0, 2, "full"], seeds=[3])
    assert [(line.model, line.shots) for line in table.itertuples()] == [
        ("aprilgan", "0"),
        ("aprilgan", "2"),
        ("patchcore", "2"),
        ("patchcore", "full"),
    ]
    assert set(table.status) == {"done"}, table.error.tolist()
    assert table[list(METRICS)].notna().all(axis=None)
    assert table.filter(like="authors").notna().all(axis=None)
    assert (table.images == 12).all()
    assert (
        table[["fit_seconds", "test_seconds", "seconds_per_image", "peak_memory_mb", "parameters"]].gt(0).all(axis=None)
    )
    assert table.torch.eq(torch.__version__.partition("+")[0]).all() or table.torch.eq(torch.__version__).all()
    references = [set(paths.split(";")) for paths in table.references[1:3]]
    assert references[0] == references[1], "the same images for every model"
    assert len(references[0]) == 2
    assert all(Path(path).parent == sample_root / "gravel/train/good" for path in references[0])
    arguments = json.loads(table.arguments[0])
    assert arguments["model"]["class_path"] == "anomalib_aprilgan.AprilGan"
    assert arguments["model"]["init_args"]["backbone"] == "ViT-builtin"
    html = (tmp_path / "comparison/report.html").read_text(encoding="utf-8")
    assert f"{100 * table.image_AUROC[2]:.1f}" in html
    assert all(name in html for name in ("scratch/000.png", "stain/000.png", "good/000.png"))
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "comparison/results.csv", float_precision="round_trip")[list(METRICS)],
        table[list(METRICS)],
        check_exact=True,
    )
    assert not leftovers(tmp_path / "comparison")


def test_aprilgan_is_measured_as_by_anomalib_itself(
    run: Callable[..., pd.DataFrame], sample_root: Path, tmp_path: Path
) -> None:
    table = run(shots=[2], seeds=[5], features=None)
    seed_everything(5)
    model = AprilGan(backbone="ViT-builtin", image_size=96, k_shot=2, visualizer=False)
    datamodule = MVTecAD(root=sample_root, category="gravel", num_workers=0)
    (expected,) = Engine(default_root_dir=tmp_path, accelerator="cpu", logger=False).test(model, datamodule=datamodule)
    assert set(model.reference_files) == set(table.references[0].split(";"))
    for name in METRICS:
        assert table[name][0] == pytest.approx(expected[name], abs=1e-6), name


def test_all_shots_and_seeds_share_one_clip_and_encode_each_image_once(
    run: Callable[..., pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics stay within half precision, and each row has the seconds that its run would have taken alone."""
    made: list[str] = []
    passed: list[int] = []
    build, encode = towers.build_image_tower, encoders.encode_image

    def counted_build(*args: Any, **kwargs: Any) -> Any:
        made.append(args[0])
        return build(*args, **kwargs)

    def counted_encode(visual: Any, images: Any, stages: Any) -> Any:
        passed.append(len(images))
        return encode(visual, images, stages)

    monkeypatch.setattr(clip, "build_image_tower", counted_build)
    monkeypatch.setattr(feature_store, "encode_image", counted_encode)
    table = run(shots=[0, 2], seeds=[0, 1], features=str(tmp_path / "features"))
    references = {file for files in table.references for file in filter(None, files.split(";"))}
    assert made == ["ViT-builtin"]
    assert table[["shots", "seed"]].to_numpy().tolist() == [["0", "0"], ["2", "0"], ["2", "1"]]
    assert set(table.status) == {"done"}
    assert sum(passed) == table.images[0] + len(references)
    seconds = table.seconds_per_image
    assert seconds.max() < 3 * seconds.min(), "a run that found all features must not seem faster"
    passed.clear()
    run(shots=[2], features=None, output=tmp_path / "exact")
    assert passed == []
    exact = read_runs(tmp_path / "exact")
    rounded = table[(table.shots == "2") & (table.seed == "0")]
    for name in METRICS:
        assert rounded[name].item() == pytest.approx(exact[name].item(), abs=1e-3), name


def test_only_what_is_missing_is_run(
    run: Callable[..., pd.DataFrame], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first = run(shots=[1])
    capsys.readouterr()
    again = run(shots=[1], seeds=[0, 1])
    assert "1 of 2 runs are to be done" in capsys.readouterr().out
    assert again.started[0] == first.started[0]
    assert len(again) == 2
    other = {
        **APRILGAN,
        "init_args": {"backbone": "ViT-builtin", "image_size": 96, "layers": [5, 6, 7, 8], "reference_layers": [8]},
    }
    with pytest.raises(ValueError, match="1 of these runs with other settings, the first of them aprilgan, MVTecAD/gr"):
        run(models={"aprilgan": other}, shots=[1])
    assert run(shots=[1], retry_failed=True, seeds=[1]).started.tolist() == again.started.tolist()


def test_names_of_models_and_categories(run: Callable[..., pd.DataFrame], tmp_path: Path, sample_root: Path) -> None:
    """Names with slashes, dots and HTML, formulas and Markdown, and 100 characters stay in their folder and cell."""
    category = "v1.0, left 50%#a"  # anomalib refuses paths with letters beyond ASCII
    shutil.copytree(sample_root / "gravel", tmp_path / "root" / category)
    names = ["../../april/zero", "<script>|".ljust(100, "x"), "=cmd|' /C calc'!`A` \u0645\u06cc\u200c\u062e\u0648"]
    data = {"class_path": "MVTecAD", "init_args": {"root": str(tmp_path / "root"), "num_workers": 0}}
    table = run(models=dict.fromkeys(names, APRILGAN), data=data, categories=None)
    assert table.model.tolist() == names
    assert set(table.status) == {"done"}, table.error.tolist()
    assert set(table.category) == {category}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison", "root"], "nothing outside the folder"
    assert len(list((tmp_path / "comparison/examples").glob("*/*/*.json"))) == 3 * 3
    report = (tmp_path / "comparison/report.html").read_text(encoding="utf-8")
    assert report.count("heatmap of ../../april/zero") == 3
    assert "<script" not in report
    assert pd.read_csv(tmp_path / "comparison/results.csv").model.tolist() == [*names[:2], f"'{names[2]}"]
    assert r"=cmd\|' /C calc'!\`A\`" in (tmp_path / "comparison/report.md").read_text(encoding="utf-8")


def test_failed_runs_are_reported(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(config.read_text(encoding="utf-8")) | {
        "models": {"bro/ken": BROKEN, "patchcore": PATCHCORE}
    }
    config.write_text(yaml.safe_dump(content | {"shots": [1], "seeds": [0]}), encoding="utf-8")
    command = ["compare", "--config", str(config)]
    folder = tmp_path / "comparison"
    started = []
    for options, runs in ([], 2), ([], 0), (["--retry_failed", "true"], 1):
        with pytest.raises(SystemExit) as stopped:
            main([*command, *options])
        message = str(stopped.value.code)
        assert message.startswith("anomalib-aprilgan compare: 1 of 2 runs failed, the first of them bro/ken, MVTecAD")
        assert f"tracebacks are in {folder / 'tracebacks'}" in message
        assert str(folder / "report.html") in message
        assert f"{runs} of 2 runs are to be done" in capsys.readouterr().out
        table = read_runs(folder).set_index("model")
        assert table.status.to_dict() == {"bro/ken": "failed", "patchcore": "done"}
        assert "coreset_size must be" in table.error["bro/ken"]
        started.append(table.started.to_dict())
    assert started[0] == started[1], "failures are not repeated by themselves"
    assert started[2]["patchcore"] == started[0]["patchcore"]
    assert started[2]["bro/ken"] > started[0]["bro/ken"]
    (traceback,) = (folder / "tracebacks").iterdir()
    assert "Traceback" in traceback.read_text(encoding="utf-8")
    assert "coreset_size must be" in (folder / "report.md").read_text(encoding="utf-8")


def test_a_corrected_configuration_is_run_without_further_ado(
    run: Callable[..., pd.DataFrame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"shots": [1]}
    with pytest.raises(RuntimeError, match="1 of 1 runs failed"):
        run(models={"patchcore": BROKEN}, **options)
    table = run(models={"patchcore": PATCHCORE}, **options)
    assert "1 of 1 runs are to be done" in capsys.readouterr().out
    assert table.status.tolist() == ["done"]
    assert not list((tmp_path / "comparison/tracebacks").iterdir())
    assert "different settings" not in (tmp_path / "comparison/report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("root", ["absent", "empty"])
@pytest.mark.parametrize("class_path", ["MVTecAD", "Visa", "Folder"])
def test_missing_data_are_found_before_the_first_run(
    class_path: str, root: str, run: Callable[..., pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (mvtecad, visa):
        monkeypatch.setattr(module, "download_and_extract", Mock(side_effect=URLError("no network")))
    (tmp_path / "empty").mkdir()
    arguments = {"root": str(tmp_path / root)}
    arguments |= {"name": "bolts", "normal_dir": "good", "abnormal_dir": "bad"} if class_path == "Folder" else {}
    data = {"class_path": class_path, "init_args": arguments}
    with pytest.raises(ValueError, match=rf"`data` to be .*{class_path}.* in {tmp_path / root} cannot be read: .*root"):
        run(data=data, categories=None)
    assert not (tmp_path / "comparison").exists()


def test_models_with_and_without_windows_are_compared(run: Callable[..., pd.DataFrame]) -> None:
    windowed = {"class_path": "AprilGan", "init_args": {"backbone": "ViT-builtin", "window": 48}}
    table = run(models={"whole": APRILGAN, "windows": windowed}, shots=[1]).set_index("model")
    assert set(table.status) == {"done"}
    assert table.settings["whole"] != table.settings["windows"]
    assert '"window": 48' in table.arguments["windows"]
    assert table.pixel_AUROC["whole"] != table.pixel_AUROC["windows"]


def test_missing_weights_are_found_before_the_first_run(
    run: Callable[..., pd.DataFrame], tmp_path: Path, clip_weights: Path
) -> None:
    small = {"backbone": "golden-vit", "pretrained": str(clip_weights), "image_size": 64, "layers": [2, 4]}
    for arguments, message in [
        (small, "published adapters 'visa' do not fit"),
        (small | {"pretrained": "absent.pt"}, "neither a tag nor an existing file"),
        (small | {"adapter": "absent.pth"}, "absent.pth"),
    ]:
        models = {"aprilgan": APRILGAN, "without": {"class_path": "AprilGan", "init_args": arguments}}
        with pytest.raises(RuntimeError, match=rf"The model 'without' cannot be made: .*{message}.*No run was started"):
            run(models=models, seeds=[0, 1])
    assert not (tmp_path / "comparison").exists()


def test_visa_is_unpacked_before_its_categories_are_listed(sample_root: Path, tmp_path: Path) -> None:
    """As it is when the archive was extracted by hand: without the folder `visa_pytorch`, which anomalib makes."""
    lines = ["object,split,label,image,mask"]
    for category in visa.VISA_CATEGORIES:
        shutil.copytree(sample_root / "gravel", tmp_path / category)
        for split, kind in (("train", "good"), ("test", "good"), ("test", "stain")):
            for image in sorted((tmp_path / category / split / kind).iterdir()):
                mask = tmp_path / category / "ground_truth" / kind / f"{image.stem}_mask.png"
                paths = [str(path.relative_to(tmp_path)) if path.is_file() else "" for path in (image, mask)]
                lines.append(",".join([category, split, "anomaly" if kind == "stain" else "normal", *paths]))
    write_file(tmp_path / "split_csv" / "1cls.csv", "\n".join(lines))
    data = {"class_path": "Visa", "init_args": {"root": str(tmp_path)}}
    _, data = components.checked_components({}, data)
    assert find_categories(data, None) == sorted(visa.VISA_CATEGORIES)
    assert find_categories(data, ["pcb1"]) == ["pcb1"]


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\x1b[2Jb", "x" * 300])
def test_unsuitable_names_of_models_are_refused(name: str, config: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(content | {"models": {name: APRILGAN}}), encoding="utf-8")
    with pytest.raises(SystemExit, match="`models` to have names of one line and at most 100 characters"):
        main(["compare", "--config", str(config)])
    assert not (tmp_path / "comparison").exists()


def test_a_run_that_cannot_be_saved_stops_the_comparison(
    run: Callable[..., pd.DataFrame],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match=r"`output` to be a folder that can be written to"):
        run(models={"broken": BROKEN}, shots=[1], output=tmp_path / "file" / "comparison")
    assert "FAILED" not in capsys.readouterr().out, "found out before the first run"
    attempts = []

    def write_nothing(*arguments: Any) -> None:
        attempts.append(arguments)
        full_disk()

    monkeypatch.setattr("anomalib_aprilgan.comparison.job.write_run", write_nothing)
    with pytest.raises(OSError, match=r"could not be saved\. broken, MVTecAD/gravel, 1-shot, seed 0: .*No space left"):
        run(models={"broken": BROKEN}, shots=[1], seeds=[0, 1, 2])
    assert len(attempts) == 1, "no other run begins"
    monkeypatch.setattr("anomalib_aprilgan.comparison.job.ComparisonJob._measure", full_disk)
    with pytest.raises(OSError, match=r"could not be saved\. broken, .*No space left"):
        run(models={"broken": BROKEN}, shots=[1], seeds=[0, 1, 2])
    assert len(attempts) == 1, "not recorded as a failure of the model"
    assert "[1/3]" not in capsys.readouterr().out
    assert not (tmp_path / "comparison/results.csv").exists()
    assert read_runs(tmp_path / "comparison").empty


def test_processes_share_the_runs_of_a_shard(
    run: Callable[..., pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They import nothing from the current folder, which Python 3.10 cannot do without."""
    (tmp_path / "here").mkdir()
    for name in ("multiprocessing", "signal", "threading") if sys.version_info >= (3, 11) else ():
        (tmp_path / "here" / f"{name}.py").write_text("raise SystemExit", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "here")
    table = run(shots=[1], seeds=[0, 1, 2], processes=2, shard="1/2")
    assert sorted(table.seed) == ["0", "2"]
    assert set(table.status) == {"done"}


def test_images_without_masks(run: Callable[..., pd.DataFrame], sample_root: Path) -> None:
    data = {
        "class_path": "Folder",
        "init_args": {
            "name": "gravel",
            "root": str(sample_root / "gravel"),
            "normal_dir": "train/good",
            "abnormal_dir": "test/stain",
            "normal_test_dir": "test/good",
            "num_workers": 0,
        },
    }
    table = run(data=data, categories=None, models={"aprilgan": APRILGAN, "patchcore": PATCHCORE}, shots=[2])
    assert set(table.status) == {"done"}, table.error.tolist()
    assert table.filter(like="image_AU").notna().all(axis=None)
    assert table.filter(like="pixel_").isna().all(axis=None)


def test_examples_of_the_same_name_stay_apart_and_earlier_ones_go(
    run: Callable[..., pd.DataFrame], sample_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "bolts"
    for part, source in {"good": "train/good", "bad/a/x/y": "test/stain", "bad/b/x/y": "test/scratch"}.items():
        shutil.copytree(sample_root / "gravel" / source, root / part)
    folders = {"root": str(root), "normal_dir": "good", "abnormal_dir": "bad", "num_workers": 0}
    data = {"class_path": "Folder", "init_args": {"name": "bolts", "val_split_mode": "same_as_test", **folders}}
    run(data=data, categories=None, examples=6)
    examples = tmp_path / "comparison/examples"
    names = {json.loads(path.read_text(encoding="utf-8"))["image"] for path in examples.glob("*/*/*.json")}
    assert {name for name in names if name.startswith("bad")} == {
        f"bad/{part}/x/y/00{number}.png" for part in "ab" for number in range(3)
    }
    assert len(list(examples.glob("*/*/image.png"))) == len(names) == 7, "and a normal one"
    html = (tmp_path / "comparison/report.html").read_text(encoding="utf-8")
    assert all(name in html for name in names)
    shutil.rmtree(tmp_path / "comparison/runs")
    run(data=data, categories=None, examples=1)
    assert len(list(examples.glob("*/*/image.png"))) == len(list(examples.glob("*/*/*.json"))) == 2


def test_memory_is_that_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def use(size: int) -> None:  # mapped, since the heap may keep what is freed, after other tests in the process
        with mmap(-1, size) as memory:
            for page in range(0, size, 4096):
                memory[page] = 1

    use(300_000_000)
    before = PeakMemory(torch.device("cpu"))
    use(200_000_000)
    with_large = before.megabytes
    after = PeakMemory(torch.device("cpu")).megabytes
    assert 190 < with_large - after < 250, "not the peak of the process so far"
    assert math.isnan(PeakMemory(torch.device("mps")).megabytes)
    calls: list[Any] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", calls.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: calls.append(device) or 3_000_000)
    assert PeakMemory(torch.device("cuda", 1)).megabytes == 3
    assert calls == [torch.device("cuda", 1)] * 2, "not of the first GPU"


def test_the_device_is_the_one_that_lightning_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert [str(device_of_run(name, 1)) for name in ("auto", "gpu", "cuda", "mps", "cpu")] == [
        *("cuda:1", "cuda:1", "cuda:1", "mps:0", "cpu")
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [str(device_of_run(name, 1)) for name in ("auto", "gpu", "mps", "cpu")] == ["mps:0", "mps:0", "mps:0", "cpu"]
    assert describe_environment(torch.device("cpu"))["device"].startswith("cpu (")


def test_winclip_with_a_wrong_open_clip_is_refused() -> None:
    check_environment(["anomalib_aprilgan.AprilGan", "anomalib.models.Patchcore"])
    if runs_batch_first():
        with pytest.raises(RuntimeError, match=r"pip install '\.\[compare\]'"):
            check_environment(["anomalib.models.Patchcore", "anomalib.models.WinClip"])
    else:
        check_environment(["anomalib.models.WinClip"])


@pytest.mark.skipif(runs_batch_first(), reason="WinClip is refused with this open_clip")
def test_winclip_takes_part(run: Callable[..., pd.DataFrame], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A small CLIP with random weights stands in for WinClip's."""
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 240, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "winclip-stand-in.json").write_text(json.dumps(config), encoding="utf-8")
    open_clip.add_model_config(tmp_path / "winclip-stand-in.json")
    monkeypatch.setattr(winclip, "BACKBONE", "winclip-stand-in")
    monkeypatch.setattr(winclip, "PRETRAINED", None)
    table = run(models={"aprilgan": APRILGAN, "winclip": {"class_path": "WinClip"}}, shots=[0, 2])
    assert set(table.status) == {"done"}, table.error.tolist()
    few_shot = table[table.shots == "2"]
    assert len({frozenset(paths.split(";")) for paths in few_shot.references}) == 1
    assert table.filter(like="_").notna().all(axis=None)


def test_bad_arguments_are_explained(run: Callable[..., pd.DataFrame], tmp_path: Path) -> None:
    for overrides, message in [
        ({"categories": ["nothing"]}, r"`categories` to hold names from \['brick', 'coins', 'gravel'\]"),
        ({"shard": "5/4"}, "`shard` to be for instance 2/4"),
        ({"models": {"a": {"class_path": "Nothing"}}}, "classes of anomalib"),
        ({"models": {"a": {"class_path": "Patchcore", "init_args": {"colour": 1}}}}, "colour"),
        ({"models": {"a": {"class_path": "AprilGan", "init_args": {"k_shot": 4}}}}, "`shots`"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(**overrides)
    assert not (tmp_path / "comparison").exists(), "nothing is written before everything is checked"


def test_models_are_made_anew(data: dict[str, Any]) -> None:
    models, _ = components.checked_components({"a": APRILGAN}, data)
    first, second = (components.make_model(models["a"], k_shot=k_shot) for k_shot in (0, 3))
    assert first is not second
    assert (first.k_shot, second.k_shot) == (0, 3)


# ---- The command ----------------------------------------------------------------------------------------------------


def test_the_command_takes_a_config_and_overrides(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["--models.aprilgan.init_args.reference_layers=[7,8]", "--seeds=[4]"]
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--config", str(config), *overrides, "--print_config"])
    assert stopped.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["models"]["aprilgan"]["init_args"]["reference_layers"] == [7, 8]
    assert printed["seeds"] == [4]
    main(["compare", "--config", str(config), *overrides])
    output = capsys.readouterr().out
    assert "[1/1] aprilgan, MVTecAD/gravel, 1-shot, seed 4: image AUROC" in output
    main(["report", str(tmp_path / "comparison")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "comparison/report.html")


@pytest.mark.posix
@pytest.mark.parametrize("sent", ["SIGINT", "SIGKILL"])
def test_what_was_stopped_goes_on(config: Path, tmp_path: Path, sent: str) -> None:
    # Jobs in a shell's background ignore the first of the two signals, and so would what they start.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "from anomalib_aprilgan.cli import main; main()"
    command = [sys.executable, "-c", program, "compare", "--config", str(config)]
    folder = tmp_path / "comparison"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(folder.glob("runs/*.json")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.Signals[sent])
        output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Interrupted" in output or sent == "SIGKILL"
    before = read_runs(folder)
    assert 1 <= len(before) < 20
    write_file(folder / "runs" / f"{whole_files.UNFINISHED}half" / "run.json", '{"model": "apr')  # as if killed here
    seeds = sorted({int(seed) for seed in before.seed} | {19})
    main(["compare", "--config", str(config), f"--seeds={seeds}"])
    after = read_runs(folder)
    assert sorted(map(int, after.seed)) == seeds
    assert after.started[: len(before)].tolist() == before.started.tolist()
    assert len(pd.read_csv(folder / "results.csv")) == len(seeds)


@pytest.mark.posix
@pytest.mark.slow
def test_a_comparison_that_is_killed_loses_and_doubles_no_run(
    kill_repeatedly: Callable[..., Iterator[bool]],
    run: Callable[..., pd.DataFrame],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = time.monotonic()
    run(shots=[1], seeds=[0, 1, 2], output=tmp_path / "whole")
    seconds = time.monotonic() - start
    folder, ends, kept = tmp_path / "killed", 0, 0
    before = pd.DataFrame(columns=["seed", "started"])
    for was_killed in kill_repeatedly(lambda: run(shots=[1], seeds=[0, 1, 2], output=folder), 50, longest=seconds):
        after = read_runs(folder)
        kept += len(before)
        assert after.started[: len(before)].tolist() == before.started.tolist(), "a run is lost, or was repeated"
        assert len(set(after.seed)) == len(after), "a run is there twice"
        assert set(after.status) <= {"done"}
        if (folder / "results.csv").exists():
            assert len(pd.read_csv(folder / "results.csv")) <= len(after)
        if (folder / "report.html").exists():
            assert (folder / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
        before = after
        if not was_killed:
            assert sorted(after.seed) == ["0", "1", "2"]
            assert len(pd.read_csv(folder / "results.csv")) == 3
            assert not leftovers(folder)
            shutil.rmtree(folder)
            before, ends = after[:0], ends + 1
    with capsys.disabled():
        print(f"\n50 kills of comparisons of {seconds:.1f} s: {kept} rows kept, {ends} comparisons ended")
    assert min(ends, kept) > 5
