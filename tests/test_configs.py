"""Every file in configs/ is run, through the command line that it is for, with a small backbone and the sample data."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from anomalib.cli.cli import AnomalibCLI

from anomalib_aprilgan.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture
def in_small(clip_weights: Path, official_adapter: Path) -> dict[str, object]:
    """Arguments that make the model small."""
    return {
        "backbone": "golden-vit",
        "pretrained": str(clip_weights),
        "image_size": 64,
        "layers": [2, 4],
        "adapter": str(official_adapter),
    }


def options(arguments: dict[str, object], prefix: str) -> list[str]:
    return [f"--{prefix}.{name}={value}" for name, value in arguments.items()]


@pytest.fixture
def visa_root(sample_root: Path, tmp_path: Path) -> Path:
    shutil.copytree(sample_root, tmp_path / "visa" / "visa_pytorch")
    return tmp_path / "visa"


@pytest.mark.parametrize("name", ["mvtec_zero_shot", "mvtec_few_shot", "visa_zero_shot", "visa_few_shot"])
def test_tests(name: str, in_small: dict[str, object], sample_root: Path, visa_root: Path, tmp_path: Path) -> None:
    root = visa_root if name.startswith("visa") else sample_root
    own = {"root": root, "category": "gravel", "num_workers": 0}
    arguments = ["test", "--config", str(CONFIGS / f"{name}.yaml"), *options(in_small, "model.init_args")]
    arguments += [*options(own, "data"), "--trainer.accelerator=cpu", f"--default_root_dir={tmp_path}"]
    cli = AnomalibCLI(arguments)
    assert cli.model.model.class_name == "gravel"
    assert cli.model.model.k_shot == (4 if "few" in name else 0)
    metrics = cli.engine.trainer.callback_metrics
    assert set(metrics) == {f"image_{metric}" for metric in ("AUROC", "F1Max", "AUPR")} | {
        f"pixel_{metric}" for metric in ("AUROC", "F1Max", "AUPR", "AUPRO")
    }


@pytest.mark.parametrize("name", ["train_on_mvtec", "train_on_visa"])
def test_training(name: str, in_small: dict[str, object], sample_root: Path, visa_root: Path, tmp_path: Path) -> None:
    root = visa_root if "visa" in name else sample_root
    arguments = ["fit", "--config", str(CONFIGS / f"{name}.yaml")]
    arguments += options({**in_small, "adapter": "null"}, "model.init_args")
    arguments += [f"--data.source.root={root}", "--data.num_workers=0"]
    arguments += ["--data.source.category=gravel", "--trainer.max_epochs=1"]
    arguments += ["--trainer.accelerator=cpu", f"--default_root_dir={tmp_path / 'results'}"]
    cli = AnomalibCLI(arguments)
    assert cli.model.model.trained_on == tuple(
        f"{'Visa' if 'visa' in name else 'MVTecAD'}/{category}" for category in ("brick", "coins", "gravel")
    )
    checkpoint = tmp_path / "results/AprilGan/AuxiliaryDataModule/latest/weights/lightning/model.ckpt"
    assert checkpoint.stat().st_size < 1e6


def test_benchmark(
    in_small: dict[str, object], sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml.safe_load((CONFIGS / "benchmark.yaml").read_text(encoding="utf-8"))
    config["benchmark"]["model"]["init_args"] |= in_small | {"k_shot": {"grid": [0, 2]}}
    config["benchmark"]["data"]["init_args"] |= {"root": str(sample_root), "num_workers": 0}
    config["benchmark"]["data"]["init_args"]["category"] = {"grid": ["coins", "gravel"]}
    (tmp_path / "benchmark.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    AnomalibCLI(["benchmark", "--config", "benchmark.yaml"])
    (table,) = tmp_path.rglob("results.csv")
    rows = pd.read_csv(table)
    assert len(rows) == 4
    assert rows["image_AUROC"].between(0, 1).all()
    assert rows.groupby("model.init_args.k_shot").size().to_dict() == {0: 2, 2: 2}


@pytest.mark.parametrize("name", ["compare_mvtec", "compare_visa", "compare_folder"])
def test_comparisons(
    name: str, in_small: dict[str, object], sample_root: Path, visa_root: Path, tmp_path: Path
) -> None:
    """With the models that need no download: APRIL-GAN and PatchCore."""
    roots = {"mvtec": sample_root, "visa": visa_root, "folder": tmp_path / "bolts"}
    for part, folder in (("good", "train/good"), ("bad", "test/stain")):
        shutil.copytree(sample_root / "gravel" / folder, tmp_path / "bolts" / part)
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    config["models"] = {model: config["models"][model] for model in ("aprilgan", "patchcore")}
    config["models"]["aprilgan"]["init_args"] = config["models"]["aprilgan"].get("init_args", {}) | in_small
    config["models"]["patchcore"]["init_args"] = {"backbone": "resnet18", "layers": ["layer3"], "pre_trained": False}
    config |= {"shots": config["shots"][:2], "seeds": config["seeds"][:1], "output": str(tmp_path / "output")}
    config |= {"categories": None if "folder" in name else ["gravel"], "trainer": {"accelerator": "cpu"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    own = {"root": roots[name.partition("_")[2]], "num_workers": 0}
    main(["compare", "--config", str(tmp_path / "config.yaml"), *options(own, "data")])
    rows = pd.read_csv(tmp_path / "output" / "results.csv")
    assert rows.status.tolist() == ["done"] * 3, rows.error.tolist()
    assert rows.model.tolist() == ["aprilgan", "aprilgan", "patchcore"]
    assert rows.pixel_AUROC.isna().all() == (name == "compare_folder")
    assert (tmp_path / "output" / "report.html").is_file()


@pytest.mark.parametrize(
    ("name", "models"),
    [("compare_stages", 5), ("compare_prompts", 2), ("compare_adapters", 2), ("compare_memory_banks", 2)],
)
def test_questions_of_the_paper(name: str, models: int, sample_root: Path, tmp_path: Path) -> None:
    """With the embedded CLIP, whose stages 5 to 8 stand for the real one's 6, 12, 18 and 24."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert len(config["models"]) == models
    for model in config["models"].values():
        arguments = model.setdefault("init_args", {})
        arguments |= {"backbone": "ViT-builtin", "image_size": 96, "layers": [5, 6, 7, 8]}
        method = arguments.get("method", {})
        if "map_stages" in method:
            method["map_stages"] = [4 + stage // 6 for stage in method["map_stages"]]
    config |= {"shots": config["shots"][:1], "seeds": [0], "output": str(tmp_path / "output")}
    config |= {"categories": ["gravel"], "trainer": {"accelerator": "cpu"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    own = {"root": sample_root, "num_workers": 0}
    main(["compare", "--config", str(tmp_path / "config.yaml"), *options(own, "data")])
    rows = pd.read_csv(tmp_path / "output" / "results.csv")
    assert rows.status.tolist() == ["done"] * models, rows.error.tolist()
    assert rows.pixel_AUPR.nunique() == models, "each asks for something of its own"


def test_every_config_opens_with_its_launch_line() -> None:
    paths = sorted(CONFIGS.glob("*.yaml"))
    assert len(paths) == 14
    for path in paths:
        head = path.read_text(encoding="utf-8").splitlines()[1]
        verbs = {"train": "anomalib fit", "benchmark": "anomalib benchmark", "compare": "anomalib-aprilgan compare"}
        command = verbs.get(path.stem.partition("_")[0], "anomalib test")
        assert head.startswith(f"#   {command} --config configs/{path.name}")
