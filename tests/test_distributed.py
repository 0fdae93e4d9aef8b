"""Training in two processes gives the same weights as in one process with the same effective batch size."""

import os
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = """
import sys, warnings
warnings.filterwarnings("ignore")
import open_clip, torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning import seed_everything
from anomalib_aprilgan import AprilGan, AuxiliaryDataModule

golden, weights, root, output, processes = sys.argv[1:]
open_clip.add_model_config(golden)
seed_everything(3)
model = AprilGan(backbone="golden-vit", pretrained=weights, image_size=64, layers=(2, 4), adapter=None)
datamodule = AuxiliaryDataModule(
    source=MVTecAD(root, category="coins"), train_batch_size=4 // int(processes), num_workers=0,
    validation=MVTecAD(root, category="gravel"), categories=["brick", "coins"], mosaic_probability=0.3,
)
engine = Engine(
    max_epochs=2, accelerator="cpu", devices=int(processes), strategy="ddp" if processes == "2" else "auto",
    default_root_dir=output, logger=False, enable_progress_bar=False, enable_model_summary=False,
)
engine.fit(model, datamodule=datamodule)
if engine.trainer.is_global_zero:
    torch.save(model.model.adapters.state_dict(), f"{output}/adapters{processes}.pt")
"""


def test_two_processes_give_the_same_weights_as_one(clip_weights: Path, sample_root: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    config = Path(__file__).parent / "golden" / "golden-vit.json"
    adapters = []
    for processes in ("1", "2"):
        command = [sys.executable, script, config, clip_weights, sample_root, tmp_path, processes]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}
        process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
        assert process.returncode == 0, process.stderr[-3000:]
        adapters.append(torch.load(tmp_path / f"adapters{processes}.pt", weights_only=True))
    one, two = adapters
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-5), name
