"""Every script in examples/ is run, with the embedded CLIP in place of the default one.

app.py and walkthrough.ipynb have tests of their own.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anomalib.cli.cli import AnomalibCLI
from PIL import Image

from anomalib_aprilgan import AprilGan
from anomalib_aprilgan.files.adapter_files import read_adapters

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a script with arguments, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run_script(name: str, *arguments: Any) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments), "--backbone", "ViT-builtin"])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run_script


def test_zero_shot_image(run: Callable[..., None], sample_root: Path, tmp_path: Path, capsys: Any) -> None:
    run("zero_shot_image.py", sample_root / "gravel" / "test" / "stain" / "000.png", "gravel")
    assert "000.png: score 0." in capsys.readouterr().out
    with Image.open(tmp_path / "heatmap.png") as image:
        assert image.size == (192, 192)


def test_few_shot_folder(run: Callable[..., None], sample_root: Path, tmp_path: Path, capsys: Any) -> None:
    run("few_shot_folder.py", sample_root / "gravel" / "train", sample_root / "gravel" / "test", "gravel", 2)
    output = capsys.readouterr().out
    references, scores = output.split("References:")[1].split("\n0.", 1)
    assert references.count("/train/good/") == 2
    assert scores.count("/gravel/test/") == 12
    assert len(list((tmp_path / "results").rglob("images/*/*.png"))) == 12


def test_train_adapters(run: Callable[..., None], sample_root: Path, tmp_path: Path) -> None:
    run("train_adapters.py", sample_root, tmp_path / "adapters.safetensors", 1)
    _, origin = read_adapters(tmp_path / "adapters.safetensors")
    assert origin.trained_on == ("MVTecAD/brick", "MVTecAD/coins", "MVTecAD/gravel")


def test_benchmark_quality(run: Callable[..., None], sample_root: Path, capsys: Any) -> None:
    run("benchmark_quality.py", sample_root, "--shots", "0", "2", "--seeds", "2", "--image_size", "64")
    heading, rule, *rows = capsys.readouterr().out.splitlines()
    assert heading.count("AUROC") == 2
    assert rule.count("---") == 9
    assert [row.split(" | ")[:2] for row in rows] == [
        [f"| {category}", shots] for shots in "02" for category in ("brick", "coins", "gravel", "mean")
    ]
    values = [[float(cell.split(" ±")[0]) for cell in row.strip("| ").split(" | ")[2:]] for row in rows]
    for first in (0, 4):
        mean = np.mean(values[first : first + 3], axis=0)
        assert values[first + 3] == pytest.approx(mean, abs=0.11)
    assert all("±" in row for row in rows[4:7])
    assert not any("±" in row for row in (*rows[:4], rows[7]))

    few_shot = sample_root, "coins", "--shots", "2", "--seeds", "1", "--image_size", "64"
    found = []
    for largest_bank in ("128", "10"):  # two images have 128 tokens
        run("benchmark_quality.py", *few_shot, "--largest_bank", largest_bank)
        found.append(capsys.readouterr().out.splitlines()[-1])
    assert found[0] != found[1]


def test_benchmark_quality_names_a_folder_without_categories(run: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="bottle/test/good"):
        run("benchmark_quality.py", tmp_path)


def slurm(folder: Path, srun: str, *options: object, **variables: str) -> None:
    """Run slurm.sh for two machines with one process each, with a stand-in for srun."""
    (folder / "bin").mkdir()
    (folder / "bin/srun").write_text(f"#!/usr/bin/env bash\nset -e\n{srun}\n", encoding="utf-8")
    (folder / "bin/srun").chmod(0o755)
    numbers = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"}
    loopback = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    path = f"{folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | numbers | loopback | {"PATH": path, "SLURM_JOB_NAME": "aprilgan"} | variables
    done = subprocess.run(
        ["bash", EXAMPLES / "slurm.sh", *map(str, options)], cwd=folder, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.posix
def test_the_commands_of_slurm_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """anomalib's own parser reads them. The program that srun would start prints its arguments."""
    shutil.copytree(EXAMPLES.parent / "configs", tmp_path / "configs")
    (tmp_path / "anomalib").write_text(
        "#!/usr/bin/env bash\nprintf '%s\\0' \"$@\" >> commands\nprintf '\\n' >> commands\n", encoding="utf-8"
    )
    (tmp_path / "anomalib").chmod(0o755)
    slurm(tmp_path, f'PATH={tmp_path}:$PATH SLURM_PROCID=1 "$@"', CLASS_NAME="metal nut")
    fit, predict = (line.split("\0")[:-1] for line in (tmp_path / "commands").read_text(encoding="utf-8").splitlines())
    assert (fit[0], predict[0]) == ("fit", "predict")
    assert fit[fit.index("--data.train_batch_size") + 1] == "4"
    assert fit[fit.index("--default_root_dir") + 1] == "results/slurm-7/1"
    assert predict[predict.index("--model.class_name") + 1] == "metal nut"
    monkeypatch.chdir(tmp_path)
    for command in (fit, predict):
        assert command[command.index("--trainer.num_nodes") + 1] == "2"
        with pytest.raises(SystemExit) as stopped:
            AnomalibCLI([*command, "--print_config"])
        assert stopped.value.code == 0


CONFIG = """
seed_everything: 111
model: {class_path: AprilGan, init_args: {adapter: null}}
data:
  class_path: AuxiliaryDataModule
  init_args: {source: {class_path: MVTecAD, init_args: {root: ROOT, category: gravel}}, num_workers: 0}
trainer: {max_epochs: 1}
"""


@pytest.mark.slow  # four processes, each of which imports torch and anomalib
@pytest.mark.posix
def test_slurm_trains_and_predicts_on_two_machines(sample_root: Path, tmp_path: Path) -> None:
    srun = """
    for number in 0 1; do SLURM_PROCID=$number SLURM_NODEID=$number SLURM_LOCALID=0 "$@" & started+=($!); done
    for process in "${started[@]}"; do wait "$process"; done
    """
    (tmp_path / "config.yaml").write_text(CONFIG.replace("ROOT", str(sample_root)), encoding="utf-8")
    images = sample_root / "gravel" / "test"
    options = "--model.backbone", "ViT-builtin", "--trainer.accelerator", "cpu"
    slurm(tmp_path, srun, *options, CONFIG="config.yaml", IMAGES=str(images))
    results = tmp_path / "results" / "slurm-7"
    table = (results / "AprilGan/latest/predictions.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert [line.split(",")[0] for line in table] == sorted(map(str, images.rglob("*.png")))
    assert [path.relative_to(results).parts[0] for path in results.rglob("model.ckpt")] == ["0"]


def test_run_onnx(
    make_lightning_model: Callable[..., AprilGan], sample_root: Path, tmp_path: Path, capsys: Any
) -> None:
    """In a process that has neither anomalib nor torch."""
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    good = sample_root / "gravel" / "train" / "good"
    model = make_lightning_model(class_name="gravel", k_shot=2, few_shot_source=good).to_onnx(tmp_path)
    image = shutil.copy(sample_root / "gravel" / "test" / "stain" / "000.png", tmp_path / "stain.png")
    without = "import sys; sys.modules.update(torch=None, anomalib=None, anomalib_aprilgan=None); import runpy; "
    script = f"{without}sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", script, EXAMPLES / "run_onnx.py", model, image]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert output.startswith(f'class gravel, references ["{good}/')
    assert f"{image}: score 0." in output
    with Image.open(tmp_path / "stain.heatmap.png") as heatmap:
        assert heatmap.size == (64, 64)


@pytest.mark.slow
def test_benchmark_export(tmp_path: Path, capsys: Any) -> None:
    """One form of a small model; the real thing takes half an hour."""
    script = runpy.run_path(str(EXAMPLES / "benchmark_export.py"))
    script["BACKBONES"].clear()
    script["BACKBONES"]["ViT-builtin"] = (96, (5, 6))
    for name in [name for name in script["FORMS"] if name != "torch, bf16 autocast"]:
        del script["FORMS"][name]
    script["cost"](tmp_path)
    *_, row = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\| ViT-builtin, 96 px: torch, bf16 autocast \| \d+\.\d{3} \| \d+\.\d GB \| 9 MB \|", row)


@pytest.mark.parametrize(
    "sections",
    [
        ["inference", "banks"],
        pytest.param([], marks=pytest.mark.slow),
    ],
    ids=["two sections", "all"],
)
def test_benchmark_speed(sections: list[str], tmp_path: Path) -> None:
    """A small model, in a process of its own, since the script sets the number of threads."""
    small = ["--backbone", "ViT-builtin", "--image_size", "64", "--repetitions", "1", "--batches", "1"]
    rest = ["--images", "1", "--picture", tmp_path / "picture.png"] if not sections else []
    command = [sys.executable, EXAMPLES / "benchmark_speed.py", *sections, *small, *rest]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    ratios = dict(re.findall(r"\| (tower|\d+-shot) \| 1 \| [\d.e-]+ \| ([\d.]+) \|", output))
    assert list(ratios) == ["tower", "0-shot", "1-shot", "4-shot", "16-shot"]
    assert ratios["tower"] == "1"
    banks = re.findall(r"\| (\d+) \| (\d+) \| [\d.e-]+ \| \d+ \| ([\d.e-]*) \|", output)
    assert [row[:2] for row in banks] == [(str(k), str(64 * k)) for k in (1, 4, 16, 64, 256)]
    assert [bool(reduction) for *_, reduction in banks] == [False] * 4 + [True]
    assert output.count("**") == 2 * (2 if sections else 9)
    assert (tmp_path / "picture.png").exists() == (not sections)


SCRIPTS = sorted(path for path in EXAMPLES.iterdir() if path.suffix in {".py", ".sh"})
LONGER = {"app.py", "benchmark_export.py", "benchmark_quality.py", "benchmark_speed.py"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_help(path: Path) -> None:
    """It says what the script does. It imports neither anomalib nor torch, so it is quick."""
    without = "import sys; sys.modules.update(torch=None, anomalib=None, onnxruntime=None, anomalib_aprilgan=None); "
    code = f"{without}import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = ["bash"] if path.suffix == ".sh" else [sys.executable, "-c", code]
    output = subprocess.run([*command, path, "--help"], check=True, capture_output=True, text=True).stdout
    text = path.read_text(encoding="utf-8")
    first = text.splitlines()[1][2:] if path.suffix == ".sh" else text.partition("\n")[0].strip('"')
    assert first in output
    assert ("--backbone" in output) == ("AprilGan(" in text and path.name != "benchmark_export.py")


@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.name not in LONGER], ids=lambda path: path.name)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40
