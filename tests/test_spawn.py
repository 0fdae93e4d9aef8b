"""Workers that load images can be started with `spawn`, as on Windows and macOS. They get pickled datasets."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import MVTecAD, PredictDataset

from anomalib_aprilgan import AprilGan, AuxiliaryDataModule

SCRIPT = """
import json, multiprocessing, sys, warnings
warnings.filterwarnings("ignore")
import open_clip
from anomalib.data import MVTecAD, PredictDataset
from anomalib.engine import Engine
from lightning import seed_everything
from torch.utils.data import DataLoader
from anomalib_aprilgan import AprilGan, AuxiliaryDataModule

golden, weights, adapter, root, output, workers = sys.argv[1:]


def main():
    multiprocessing.set_start_method("spawn")
    open_clip.add_model_config(golden)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    model = AprilGan("golden-vit", pretrained=weights, image_size=64, layers=(2, 4), adapter=adapter, k_shot=2)
    engine = Engine(accelerator="cpu", devices=1, default_root_dir=output, **quiet)
    data = MVTecAD(root, category="gravel", eval_batch_size=6, num_workers=int(workers))
    (metrics,) = engine.test(model, datamodule=data, verbose=False)
    images = PredictDataset(f"{root}/gravel/test", transform=model.pre_processor.resize)
    loader = DataLoader(images, batch_size=6, num_workers=int(workers), collate_fn=images.collate_fn,
                        multiprocessing_context="spawn" if int(workers) else None)
    scores = [float(score) for batch in engine.predict(model, dataloaders=loader) for score in batch.pred_score]

    seed_everything(3)
    trained = AprilGan("golden-vit", pretrained=weights, image_size=64, layers=(2, 4), adapter=None)
    auxiliary = AuxiliaryDataModule(source=MVTecAD(root, category="gravel"), categories=["brick", "coins"],
                                    mosaic_probability=0.5, num_workers=int(workers), validation=data)
    engine = Engine(max_epochs=2, accelerator="cpu", devices=1, default_root_dir=output, **quiet)
    engine.fit(trained, datamodule=auxiliary)
    weights_sum = [float(value.sum()) for value in trained.model.adapters.state_dict().values()]
    print(json.dumps([metrics, scores, weights_sum]))


if __name__ == "__main__":
    main()
"""


@pytest.mark.slow  # each worker imports torch and anomalib
def test_spawned_workers_give_the_same(
    clip_weights: Path, official_adapter: Path, sample_root: Path, tmp_path: Path
) -> None:
    """Test, prediction, training with mosaics, and validation."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT, encoding="utf-8")
    config = Path(__file__).parent / "golden" / "golden-vit.json"
    results = []
    for workers in ("0", "1"):
        command = [sys.executable, script, config, clip_weights, official_adapter, sample_root, tmp_path, workers]
        process = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=False, timeout=500,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert process.returncode == 0, process.stderr[-3000:]
        results.append(json.loads(process.stdout.splitlines()[-1]))
    (metrics, scores, weights), spawned = results
    assert spawned == [pytest.approx(metrics), pytest.approx(scores), pytest.approx(weights)]


def test_what_workers_get_can_be_pickled(make_lightning_model: Callable[..., AprilGan], sample_root: Path) -> None:
    """Datasets, and the functions that make batches of them, after a model has set their transforms."""
    model = make_lightning_model()
    data = MVTecAD(sample_root, category="gravel", num_workers=0)
    auxiliary = AuxiliaryDataModule(source=data, categories=["brick"], mosaic_probability=1.0, validation=data)
    images: Any = PredictDataset(sample_root / "gravel" / "test", transform=model.pre_processor.resize)
    loaders: list[Any] = [torch.utils.data.DataLoader(images, collate_fn=images.collate_fn)]
    for datamodule in (data, auxiliary):
        datamodule.setup()
        datamodule.test_data.augmentations = datamodule.train_data.augmentations = model.pre_processor.resize
        loaders += [datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader()]
    for loader in loaders:
        dataset, collate = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))  # noqa: S301  # our own
        found, expected = collate([dataset[0]]), loader.collate_fn([loader.dataset[0]])
        assert torch.equal(found.image, expected.image)
        assert found.image_path == expected.image_path


@pytest.mark.parametrize(
    "script", sorted((Path(__file__).parents[1] / "examples").glob("*.py")), ids=lambda path: path.stem
)
def test_an_example_does_nothing_when_a_worker_imports_it(script: Path) -> None:
    """A spawned worker runs the main script under another name."""
    code = f"import runpy; runpy.run_path({str(script)!r}, run_name='__mp_main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]
