"""The patches in docs/upstream.md apply to the installed anomalib, and each of them repairs what it says.

`check_...` runs twice: here, with the installed anomalib, where it must fail, and in a new process with a patched copy.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import anomalib
import open_clip
import pytest
import torch
from jsonargparse import Namespace
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
PATCHES = re.findall(r"```diff\n(.*?)```", (ROOT / "docs" / "upstream.md").read_text(encoding="utf-8"), flags=re.DOTALL)

pytestmark = pytest.mark.skipif(shutil.which("patch") is None, reason="needs the program patch")


def zero_shot_model() -> Any:
    """Make a zero-shot model of anomalib, without weights and without a dataloader of its own."""
    from anomalib import LearningType  # noqa: PLC0415
    from anomalib.data import InferenceBatch  # noqa: PLC0415
    from anomalib.models.components import AnomalibModule  # noqa: PLC0415
    from anomalib.post_processing import PostProcessor  # noqa: PLC0415

    class Brightness(AnomalibModule):
        def __init__(self) -> None:
            super().__init__(visualizer=False, post_processor=PostProcessor())
            self.model = nn.Identity()

        @property
        def learning_type(self) -> LearningType:
            return LearningType.ZERO_SHOT

        @property
        def trainer_arguments(self) -> dict[str, Any]:
            return {}

        def _score(self, batch: Any) -> Any:
            maps = batch.image.mean(dim=1)
            return batch.update(**InferenceBatch(pred_score=maps.amax((1, 2)), anomaly_map=maps)._asdict())

        def validation_step(self, batch: Any, *_: Any, **__: Any) -> Any:
            return self._score(batch)

        def test_step(self, batch: Any, *_: Any, **__: Any) -> Any:
            return self._score(batch)

        def predict_step(self, batch: Any, *_: Any, **__: Any) -> Any:
            return self._score(batch)

    return Brightness()


def check_discovery(_: Path) -> None:
    """The hook is off, so only the entry points make the classes known."""
    import anomalib.data  # noqa: PLC0415

    assert "anomalib.models" not in sys.modules or "patched" in anomalib.__file__
    assert vars(anomalib.data)["AuxiliaryDataModule"].__module__ == "anomalib_aprilgan.datamodule"
    from anomalib.models import get_model, list_models  # noqa: PLC0415

    assert "april_gan" in list_models()
    arguments = {"backbone": "ViT-S-16-alt", "pretrained": None, "image_size": 32, "layers": [2, 4], "adapter": None}
    for path in ("AprilGan", "anomalib_aprilgan.AprilGan", "anomalib_aprilgan.lightning_model.AprilGan"):
        assert type(get_model({"class_path": path, "init_args": arguments})).__name__ == "AprilGan"
    with pytest.raises(ModuleNotFoundError):
        get_model({"class_path": "os.system"})


def check_prediction(category: Path) -> None:
    from anomalib.engine import Engine  # noqa: PLC0415

    with TemporaryDirectory() as folder:
        engine = Engine(accelerator="cpu", logger=False, default_root_dir=folder)
        batches = engine.predict(zero_shot_model(), data_path=category / "test" / "good")
    assert len(batches) == len(list((category / "test" / "good").iterdir()))


def check_benchmark(category: Path) -> None:
    from anomalib.data import MVTecAD  # noqa: PLC0415
    from anomalib.pipelines.benchmark.job import BenchmarkJob  # noqa: PLC0415

    datamodule = MVTecAD(category.parent, category=category.name, num_workers=0)
    assert "image_AUROC" in BenchmarkJob("cpu", zero_shot_model(), datamodule, seed=0, flat_cfg={}).run()


def check_winclip(_: Path) -> None:
    """Windows of one image do not depend on the other images of the batch."""
    from anomalib.models.image.winclip.torch_model import WinClipModel  # noqa: PLC0415

    open_clip.add_model_config(ROOT / "tests" / "golden" / "golden-vit.json")
    model = SimpleNamespace(clip=open_clip.create_model("golden-vit").eval())
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 65, 64, generator=generator)
    masks = torch.randint(0, 64, (4, 5), generator=generator)
    with torch.no_grad():
        together: Tensor = WinClipModel._get_window_embeddings(model, tokens, masks)
        alone = [WinClipModel._get_window_embeddings(model, one[None], masks)[0] for one in tokens]
    assert torch.allclose(together, torch.stack(alone), atol=1e-4)


def check_post_processor(_: Path) -> None:
    from anomalib.post_processing import PostProcessor  # noqa: PLC0415

    low, high, threshold = torch.tensor(2.0), torch.tensor(4.0), torch.tensor(3.5)
    values = torch.linspace(-10, 20, 1000)
    normalised = PostProcessor._normalize(values, low, high, threshold)
    assert (normalised.diff() > 0).all(), "the order is kept"
    assert ((normalised > 0) & (normalised < 1)).all()
    assert torch.equal(values > threshold, normalised > 0.5)
    middle = torch.tensor([3.0, 3.5, 3.9])
    assert torch.allclose(PostProcessor._normalize(middle, low, high, threshold), (middle - threshold) / 2 + 0.5)


def check_seed(_: Path) -> None:
    from anomalib.cli.cli import AnomalibCLI  # noqa: PLC0415

    drawn = []
    for seed in (7, 7, 8):
        cli = object.__new__(AnomalibCLI)
        cli.subcommand = "export"
        cli.config = Namespace(subcommand="export", export=Namespace(seed_everything=seed))
        cli.before_instantiate_classes()
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


CHECKS: list[Callable[[Path], None]] = [
    check_discovery,
    check_prediction,
    check_benchmark,
    check_winclip,
    check_post_processor,
    check_seed,
]


def run_all(category: str) -> None:
    """Run the checks in a new process."""
    for check in CHECKS:
        check(Path(category))
        sys.stdout.write(f"{check.__name__}\n")


@pytest.fixture
def patched(tmp_path: Path) -> Path:
    """Copy the installed anomalib, and apply the patches."""
    folder = tmp_path / "patched"
    shutil.copytree(Path(anomalib.__file__).parent, folder / "anomalib", ignore=shutil.ignore_patterns("__pycache__"))
    for patch in PATCHES:
        command = ["patch", "-p1", "--fuzz=0", "--no-backup-if-mismatch"]
        applied = subprocess.run(command, cwd=folder, input=patch, capture_output=True, text=True, check=False)
        assert applied.returncode == 0, applied.stdout + applied.stderr
    return folder


def test_the_patches_repair_what_they_say(patched: Path, sample_root: Path) -> None:
    path = os.pathsep.join([str(patched), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    code = f"import test_upstream; test_upstream.run_all({str(sample_root / 'gravel')!r})"
    environment = os.environ | {"PYTHONPATH": path, "ANOMALIB_APRILGAN_AUTOLOAD": "0"}
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    assert [check.__name__ for check in CHECKS if check.__name__ in process.stdout] == [
        check.__name__ for check in CHECKS
    ]


@pytest.mark.parametrize("check", CHECKS[1:], ids=lambda check: check.__name__)
def test_the_installed_anomalib_needs_the_patch(check: Callable[[Path], None], sample_root: Path) -> None:
    """If this fails, anomalib has changed: take the patch and what it makes superfluous out."""
    if check is check_winclip and not hasattr(open_clip.transformer.Transformer(8, 1, 1), "batch_first"):
        pytest.skip("an open_clip that WinCLIP was written for")
    with pytest.raises(Exception, match=r"\w") as error:
        check(sample_root / "gravel")
    reason = error.value.__cause__ or error.value  # the benchmark has an error of its own
    assert isinstance(reason, AssertionError) or "val_dataloader" in str(reason)


def test_each_patch_is_a_few_lines() -> None:
    assert len(PATCHES) == 5
    for patch in PATCHES:
        assert len(re.findall(r"^[+-](?![+-])", patch, flags=re.MULTILINE)) < 35
