"""Comparisons: the grid, the table that survives everything, and whole runs through the command."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pandas as pd
import pytest
import torch
import yaml
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models.image.winclip import torch_model as winclip
from lightning.pytorch import seed_everything

from anomalib_aprilgan import AprilGan
from anomalib_aprilgan.cli import main
from anomalib_aprilgan.comparison import components
from anomalib_aprilgan.comparison.compare import compare
from anomalib_aprilgan.comparison.grid import make_grid, shard_of
from anomalib_aprilgan.comparison.results import (
    COLUMNS,
    METRICS,
    append_row,
    drop_torn_line,
    read_results,
    results_file,
)
from anomalib_aprilgan.comparison.surroundings import refuse_unfit_surroundings
from anomalib_aprilgan.method.towers import runs_batch_first

APRILGAN = {"class_path": "AprilGan", "init_args": {"backbone": "ViT-demo"}}
PATCHCORE = {
    "class_path": "Patchcore",
    "init_args": {"backbone": "resnet18", "layers": ["layer3"], "pre_trained": False},
}


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
        return read_results(tmp_path / "comparison")

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
    }
    return make_grid(**arguments | overrides)


def test_the_grid_has_what_can_be_run() -> None:
    runs = grid()
    assert len(runs) == 2 * 2 * (1 + 2 + 1)
    assert {(run.model, run.shots) for run in runs} == {("a", 0), ("a", 2), ("b", 2), ("b", "full")}
    assert len({run.key for run in runs}) == len(runs)
    assert str(runs[0]) == "a, MVTecAD/cable, 0-shot, seed 0"


def test_shards_share_the_grid() -> None:
    runs = grid()
    shards = [shard_of(runs, (number, 3)) for number in (1, 2, 3)]
    assert sorted(run.key for shard in shards for run in shard) == sorted(run.key for run in runs)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_settings_are_told_apart() -> None:
    first = grid()[0]
    others = grid(models={"a": {"class_path": "AprilGan", "init_args": {"backbone": "ViT-B-16"}}, "b": PATCHCORE})
    assert others[0].key == first.key
    assert others[0].digest != first.digest
    category = {"class_path": "anomalib.data.MVTecAD", "init_args": {"category": "tile", "num_workers": 2}}
    assert grid(datamodule=category)[0].digest == first.digest, "what the key tells, or changes no result"


# ---- The table ------------------------------------------------------------------------------------------------------


def row(**values: Any) -> dict[str, Any]:
    defaults = {"model": "a", "data": "MVTecAD", "category": "tile", "shots": 0, "seed": 0, "status": "done"}
    return defaults | {"started": "2026-01-01T00:00:00"} | values


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = results_file(tmp_path)
    error = 'ValueError: a, "b"\n  second line, ünï'
    append_row(path, row(image_AUROC=0.1 + 0.2, parameters=3, model="x,y"))
    append_row(path, row(status="failed", error=error))
    table = read_results(tmp_path)
    assert list(table.columns) == list(COLUMNS)
    assert table.image_AUROC[0] == 0.1 + 0.2
    assert table.model.tolist() == ["x,y", "a"]
    assert table.error[1] == 'ValueError: a, "b"   second line, ünï'
    assert pd.isna(table.pixel_AUROC[0])
    assert pd.read_csv(path).shape == (2, len(COLUMNS)), "other programs can read it, too"


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_torn_line_is_dropped_and_nothing_else(tmp_path: Path, cut: int) -> None:
    path = results_file(tmp_path)
    append_row(path, row())
    whole = path.read_bytes()
    append_row(path, row(model="b", error='a "quoted", text'))
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_results(tmp_path).model.tolist() == ["a"]
    assert drop_torn_line(path)
    assert path.read_bytes() == whole
    assert not drop_torn_line(path)
    append_row(path, row(model="c"))
    assert read_results(tmp_path).model.tolist() == ["a", "c"]


def test_the_latest_row_counts_but_a_failure_never_hides_a_result(tmp_path: Path) -> None:
    for number, status in enumerate(("failed", "done", "failed")):
        shard = (number + 1, 3) if number else None
        append_row(
            results_file(tmp_path, shard), row(status=status, seed=7, images=number, started=f"2026-01-0{number + 1}")
        )
    table = read_results(tmp_path)
    assert len(table) == 1
    assert (table.status[0], table.images[0]) == ("done", 1)


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    results_file(tmp_path).write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"results\.csv to be a table of results .* but its heading is 'a,b'"):
        read_results(tmp_path)
    with pytest.raises(ValueError, match="columns"):
        append_row(tmp_path / "other.csv", row(colour="red"))


# ---- Runs -----------------------------------------------------------------------------------------------------------


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
    assert table[["fit_seconds", "test_seconds", "seconds_per_image", "peak_memory_mb", "parameters"]].gt(0).all(None)
    assert table.torch.eq(torch.__version__.partition("+")[0]).all() or table.torch.eq(torch.__version__).all()
    references = [set(paths.split(";")) for paths in table.references[1:3]]
    assert references[0] == references[1], "the same images for every model"
    assert len(references[0]) == 2
    assert all(Path(path).parent == sample_root / "gravel/train/good" for path in references[0])
    settings = tmp_path / "comparison/settings" / f"{table.settings[0]}.txt"
    assert json.loads(settings.read_text())["model"]["class_path"] == "anomalib_aprilgan.AprilGan"
    assert json.loads(settings.read_text())["model"]["init_args"]["backbone"] == "ViT-demo"
    html = (tmp_path / "comparison/report.html").read_text()
    assert f"{100 * table.image_AUROC[2]:.1f}" in html
    maps = list((tmp_path / "comparison/examples/MVTecAD/gravel").glob("*/*-0-3.png"))
    assert {path.parent.name for path in maps} == {"scratch-000", "stain-000", "good-000"}


def test_aprilgan_is_measured_as_by_anomalib_itself(
    run: Callable[..., pd.DataFrame], sample_root: Path, tmp_path: Path
) -> None:
    table = run(shots=[2], seeds=[5])
    seed_everything(5)
    model = AprilGan(backbone="ViT-demo", k_shot=2, visualizer=False)
    datamodule = MVTecAD(root=sample_root, category="gravel", num_workers=0)
    (expected,) = Engine(default_root_dir=tmp_path, accelerator="cpu", logger=False).test(model, datamodule=datamodule)
    assert set(model.reference_files) == set(table.references[0].split(";"))
    for name in METRICS:
        assert table[name][0] == pytest.approx(expected[name], abs=1e-6), name


def test_only_what_is_missing_is_run(run: Callable[..., pd.DataFrame], capsys: pytest.CaptureFixture[str]) -> None:
    first = run()
    capsys.readouterr()
    again = run(seeds=[0, 1])
    assert "1 of 2 runs are to be done" in capsys.readouterr().out
    assert again.started[0] == first.started[0]
    assert len(again) == 2
    with pytest.raises(ValueError, match="1 rows that were made with others, the first of aprilgan, MVTecAD/gravel"):
        run(models={"aprilgan": {**APRILGAN, "init_args": {"backbone": "ViT-demo", "reference_layers": [8]}}})
    other = run(models={"other": {**APRILGAN, "init_args": {"backbone": "ViT-demo", "layers": [5, 6, 7, 8]}}})
    assert other.model.tolist() == ["aprilgan", "aprilgan", "other"]


def test_a_failure_is_a_row_and_the_next_model_runs(run: Callable[..., pd.DataFrame], tmp_path: Path) -> None:
    models = {
        "broken": {**PATCHCORE, "init_args": {**PATCHCORE["init_args"], "backbone": "no_such_backbone"}},
        "patchcore": PATCHCORE,
    }
    table = run(models=models, shots=[1])
    assert table.status.tolist() == ["failed", "done"]
    assert "no_such_backbone" in table.error[0]
    traceback = tmp_path / "comparison/tracebacks/broken-MVTecAD-gravel-1-0.txt"
    assert "Traceback" in traceback.read_text()
    assert len(pd.read_csv(results_file(tmp_path / "comparison"))) == 2
    run(models=models, shots=[1])
    assert len(pd.read_csv(results_file(tmp_path / "comparison"))) == 2, "failures are not repeated by themselves"
    run(models=models, shots=[1], retry_failed=True)
    assert len(pd.read_csv(results_file(tmp_path / "comparison"))) == 3
    report = (tmp_path / "comparison/report.md").read_text()
    assert "no\\_such\\_backbone" in report or "no_such_backbone" in report


def test_shards_write_into_one_folder(run: Callable[..., pd.DataFrame], tmp_path: Path) -> None:
    run(shots=[0, 1], shard="2/2")
    table = run(shots=[0, 1], shard="1/2")
    assert sorted(table.shots) == ["0", "1"]
    assert sorted(path.name for path in (tmp_path / "comparison").glob("results-*.csv")) == [
        "results-1-of-2.csv",
        "results-2-of-2.csv",
    ]
    assert len(pd.read_csv(results_file(tmp_path / "comparison"))) == 2


def test_several_processes_share_the_runs(run: Callable[..., pd.DataFrame]) -> None:
    table = run(seeds=[0, 1], processes=2)
    assert sorted(table.seed) == ["0", "1"]
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


def test_winclip_in_an_unfit_environment_is_refused() -> None:
    refuse_unfit_surroundings(["anomalib_aprilgan.AprilGan", "anomalib.models.Patchcore"])
    if runs_batch_first():
        with pytest.raises(RuntimeError, match=r"pip install 'anomalib-aprilgan\[compare\]'"):
            refuse_unfit_surroundings(["anomalib.models.Patchcore", "anomalib.models.WinClip"])
    else:
        refuse_unfit_surroundings(["anomalib.models.WinClip"])


@pytest.mark.skipif(runs_batch_first(), reason="WinClip is refused with this open_clip")
def test_winclip_takes_part(run: Callable[..., pd.DataFrame], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A small CLIP with random weights stands in for WinClip's."""
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 240, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "winclip-stand-in.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "winclip-stand-in.json")
    monkeypatch.setattr(winclip, "BACKBONE", "winclip-stand-in")
    monkeypatch.setattr(winclip, "PRETRAINED", None)
    table = run(models={"aprilgan": APRILGAN, "winclip": {"class_path": "WinClip"}}, shots=[0, 2])
    assert set(table.status) == {"done"}, table.error.tolist()
    few_shot = table[table.shots == "2"]
    assert len({frozenset(paths.split(";")) for paths in few_shot.references}) == 1
    assert table.filter(like="_").notna().all(axis=None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"categories": ["nothing"]}, r"`categories` to hold names from \['brick', 'coins', 'gravel'\]"),
        ({"shard": "5/4"}, "`shard` to be for instance 2/4"),
        ({"models": {"a": {"class_path": "Nothing"}}}, "classes of anomalib"),
        ({"models": {"a": {"class_path": "Patchcore", "init_args": {"colour": 1}}}}, "colour"),
        ({"models": {"a": {"class_path": "AprilGan", "init_args": {"k_shot": 4}}}}, "`shots`"),
    ],
)
def test_bad_arguments_are_explained(
    run: Callable[..., pd.DataFrame], tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(**overrides)
    assert not (tmp_path / "comparison").exists(), "nothing is written before everything is checked"


def test_models_are_made_anew(data: dict[str, Any]) -> None:
    models, _ = components.checked_components({"a": APRILGAN}, data)
    first, second = (components.make_model(models["a"], k_shot=k_shot) for k_shot in (0, 3))
    assert first is not second
    assert (first.k_shot, second.k_shot) == (0, 3)


# ---- The command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def config(data: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "compare.yaml"
    content = {
        "models": {"aprilgan": APRILGAN},
        "data": data,
        "categories": ["gravel"],
        "shots": [0],
        "seeds": list(range(20)),
        "output": str(tmp_path / "comparison"),
        "trainer": {"accelerator": "cpu"},
    }
    path.write_text(yaml.safe_dump(content))
    return path


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
    assert "[1/1] aprilgan, MVTecAD/gravel, 0-shot, seed 4: image AUROC" in output
    main(["report", str(tmp_path / "comparison")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "comparison/report.html")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_what_was_stopped_goes_on(config: Path, tmp_path: Path, sent: signal.Signals) -> None:
    # Jobs in a shell's background ignore the first of the two signals, and so would what they start.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "from anomalib_aprilgan.cli import main; main()"
    command = [sys.executable, "-c", program, "compare", "--config", str(config)]
    table = results_file(tmp_path / "comparison")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline = time.monotonic() + 120
        while not table.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(sent)
        output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Interrupted" in output or sent == signal.SIGKILL
    before = read_results(tmp_path / "comparison")
    assert 1 <= len(before) < 20
    with table.open("a") as file:
        file.write("aprilgan,MVTecAD,gra")  # as if killed within a write
    seeds = sorted({int(seed) for seed in before.seed} | {19})
    main(["compare", "--config", str(config), f"--seeds={seeds}"])
    after = read_results(tmp_path / "comparison")
    assert sorted(map(int, after.seed)) == seeds
    assert after.started[: len(before)].tolist() == before.started.tolist()
    assert len(pd.read_csv(table)) == len(seeds)
