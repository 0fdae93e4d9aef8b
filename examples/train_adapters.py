"""Train adapters on labelled data: python train_adapters.py MVTEC_ROOT ADAPTERS.safetensors [EPOCHS].

Train on all categories of a data set that is not tested later, as in the paper. MVTEC_ROOT is a folder with the layout
of MVTec AD. Only the data may differ from the paper.
"""

import sys
from pathlib import Path

from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning import seed_everything

from anomalib_aprilgan import AprilGan, AuxiliaryDataModule


def main(root: str, output: str, epochs: str = "3") -> None:
    """Train adapters and write them to a small file."""
    seed_everything(111)
    category = next(path.name for path in sorted(Path(root).iterdir()) if (path / "test").is_dir())
    datamodule = AuxiliaryDataModule(source=MVTecAD(root, category=category), mosaic_probability=0.2, num_workers=2)
    model = AprilGan(adapter=None)
    Engine(logger=False, max_epochs=int(epochs)).fit(model, datamodule=datamodule)
    print(f"Trained on {', '.join(model.model.trained_on)}: {model.model.save_adapters(output)}")
    print(f"Use them: anomalib test --model AprilGan --model.adapter {output} ...")


if __name__ == "__main__":
    main(*sys.argv[1:])
