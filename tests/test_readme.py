"""Runs every command and every piece of Python in the README and in docs/, in order, with a small backbone.

CI runs the commands that set up environments, and takes them from the README. test_scheduler.py parses the commands of
a cluster.
"""

import re
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

import pytest
from anomalib.cli.cli import AnomalibCLI
from packaging.requirements import Requirement

from anomalib_aprilgan import AprilGan, Product, lightning_model
from anomalib_aprilgan.cli import main

ROOT = Path(__file__).parents[1]
NAVIGATION = re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
PAGES = [ROOT / "README.md", *(ROOT / "docs" / name for name in NAVIGATION)]


def blocks(language: str) -> list[str]:
    """Return the code blocks of a language on all pages."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands() -> list[str]:
    """Return each command line of the bash blocks, with continued lines joined."""
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip()]


@pytest.fixture
def user_folder(sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with all files that the commands name."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    for name in ("bottle", "cable", "capsule", "metal_nut"):
        shutil.copytree(sample_root / "gravel", f"datasets/MVTecAD/{name}")
    for name in ("capsules", "pcb1"):
        shutil.copytree(sample_root / "coins", f"datasets/visa/visa_pytorch/{name}")
    shutil.copytree(sample_root / "brick" / "train" / "good", "datasets/BTech/01/train/ok")
    shutil.copytree(sample_root / "brick" / "test" / "good", "datasets/BTech/01/test/ok")
    shutil.copytree(sample_root / "brick" / "test" / "stain", "datasets/BTech/01/test/ko")
    shutil.copytree(sample_root / "brick" / "ground_truth" / "stain", "datasets/BTech/01/ground_truth/ko")
    for mask in Path("datasets/BTech/01/ground_truth/ko").iterdir():
        mask.rename(mask.with_name(mask.name.replace("_mask", "")))
    for target in ("path/to/images", "path/to/new", "path/to/bolts/bad", "path/to/nuts/bad"):
        shutil.copytree(sample_root / "coins" / "test" / "stain", target)
    for target in ("path/to/good", "path/to/bolts/good", "path/to/nuts/good"):
        shutil.copytree(sample_root / "coins" / "train" / "good", target)
        for file in (sample_root / "coins" / "test" / "good").iterdir():  # enough to split in halves
            shutil.copy(file, f"{target}/test_{file.name}")
    return tmp_path


def small(command: str, clip_weights: Path, adapter: Path) -> list[str]:
    """Return the arguments of a command, with further ones that make model and training small."""
    arguments = shlex.split(command)[1:]
    verb = arguments[0]
    model = {"backbone": "golden-vit", "pretrained": clip_weights, "image_size": 64, "layers": "[2,4]"}
    if ("--model.adapter" not in arguments and verb != "fit") or "Folder" in arguments:
        model["adapter"] = adapter
    if "--model.window" in arguments:
        model["window"] = 32
    extra = [f"--model.{name}={value}" for name, value in model.items()]
    extra += ["--trainer.accelerator=cpu"]
    if verb == "fit" and "Folder" not in arguments:
        extra += ["--trainer.max_epochs=1"]
    if "AuxiliaryDataModule" in arguments:
        extra += ["--data.categories=[leather,washer]"]
    if verb in {"fit", "test"} or "--data.root" in arguments:
        extra += ["--data.num_workers=0"]
    return [*arguments, *extra]


def check_requirements(command: str) -> None:
    """Check that a command of pip, which would use the network, names this project, its extras or its dependencies."""
    parser = ArgumentParser(prog="pip")
    parser.add_argument("command", choices=["install", "wheel"])
    parser.add_argument("requirements", nargs="+")
    for option in ("--index-url", "--find-links", "--wheel-dir"):
        parser.add_argument(option)
    parser.add_argument("--no-index", action="store_true")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = {project["name"], *(Requirement(requirement).name for requirement in project["dependencies"])}
    for text in parser.parse_args(shlex.split(command)[1:]).requirements:
        requirement = Requirement(re.sub(r"^\.", project["name"], text))
        assert requirement.name in known, command
        assert requirement.extras <= set(project["optional-dependencies"]), command


def run(command: str, clip_weights: Path, adapter: Path) -> None:
    """Run a command as its entry point does."""
    if command.startswith("anomalib-aprilgan sample-data"):
        main([*shlex.split(command)[1:], "--train=1", "--test=1", "--size=64"])
    elif command.startswith(("python examples/benchmark", "sbatch")):  # test_examples.py runs a small part
        assert (ROOT / shlex.split(command)[1]).is_file()
    elif "benchmark" in command or "compare_mvtec" in command:  # test_configs.py runs these configurations
        assert Path(command.rsplit(maxsplit=1)[-1]).is_file()
    elif command.startswith("anomalib-aprilgan compare"):
        models = {"backbone": "golden-vit", "pretrained": clip_weights, "image_size": 64, "layers": "[2,4]"}
        small_models = [f"--models.aprilgan.init_args.{name}={value}" for name, value in models.items()]
        small_models += [
            f"--models.aprilgan.init_args.adapter={adapter}",
            "--models.patchcore.init_args.pre_trained=false",
        ]
        small_models += [
            "--models.patchcore.init_args.backbone=resnet18",
            "--models.patchcore.init_args.layers=[layer3]",
        ]
        main([*shlex.split(command)[1:], *small_models, "--data.num_workers=0", "--trainer.accelerator=cpu"])
    elif command.startswith("anomalib-aprilgan verify"):  # test_verification.py runs it on data
        with pytest.raises(SystemExit, match="does not download data sets"):
            main(shlex.split(command)[1:])
    elif command.startswith("anomalib-aprilgan"):
        main(shlex.split(command)[1:])
    elif command.startswith("python examples/"):
        subprocess.run([sys.executable, ROOT / command.split()[1], *command.split()[2:]], check=True)
    elif command.startswith("pip"):
        check_requirements(command)
    elif ".help" in command:
        with pytest.raises(SystemExit, match="0"):
            AnomalibCLI(shlex.split(command)[1:])
    else:
        AnomalibCLI(small(command, clip_weights, adapter))


def test_there_are_commands_of_all_kinds() -> None:
    verbs = [line.split()[:2] for line in commands()]
    assert {verb for command, verb in verbs if command == "anomalib"} == {
        *("predict", "test", "fit", "benchmark", "export")
    }
    assert sum(line.startswith("python3 -m venv") for line in commands()) == 2
    assert {command for command, _ in verbs} == {
        *("anomalib", "anomalib-aprilgan", "dask", "pip", "python", "python3", "sbatch")
    }


def test_every_command_runs(user_folder: Path, clip_weights: Path, official_adapter: Path) -> None:
    pytest.importorskip("openvino", reason="needs the extra `export`")
    del user_folder
    for command in commands():
        if not command.startswith(("python3 -m venv", "dask ")) and "--scheduler" not in command:
            run(command, clip_weights, official_adapter)
    assert list(Path("results/AprilGan/latest/images").rglob("*.png"))
    assert Path("results/AprilGan/AuxiliaryDataModule/latest/weights/lightning/model.ckpt").is_file()
    assert Path("results/AprilGan/bolts/latest/weights/lightning/model.ckpt").is_file()
    assert Path("results/compare_folder/report.html").is_file()
    assert {path.name for path in Path("exported/weights").rglob("model.*")} == {
        *("model.onnx", "model.xml", "model.bin", "model.pt")
    }
    assert Path("000.heatmap.png").is_file()


@pytest.mark.parametrize("block", blocks("python"))
def test_every_piece_of_python_runs(
    block: str,
    user_folder: Path,
    make_lightning_model: Callable[..., AprilGan],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(lightning_model, "AprilGan", make_lightning_model)
    block = block.replace("max_epochs=15", "max_epochs=1")
    names: dict[str, Any] = {}
    exec(compile(block, "docs", "exec"), names)  # noqa: S102  # our own documentation
    if "few_shot_source" in block:
        assert "path/to/good" in capsys.readouterr().out
    elif "switch_to" in block:
        bolts, nuts = (Product.load(user_folder / f"{name}.safetensors") for name in ("bolts", "nuts"))
        assert (bolts.class_name, len(bolts.reference_files)) == ("bolt", 5)
        assert (nuts.class_name, len(nuts.reference_files)) == ("nut", 4)
    else:
        assert (user_folder / "adapters.safetensors").is_file()
