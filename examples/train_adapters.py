"""Train adapters on labelled data, as in the paper.

Train on all categories of a data set that is not tested later. Only the data may differ from the paper.
"""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path


def main(options: Namespace) -> None:
    """Train adapters and write them to a small file."""
    from anomalib.data import MVTecAD
    from anomalib.engine import Engine
    from lightning import seed_everything

    from anomalib_aprilgan import AprilGan, AuxiliaryDataModule

    seed_everything(111)
    category = next(path.name for path in sorted(options.root.iterdir()) if (path / "test").is_dir())
    source = MVTecAD(options.root, category=category)
    datamodule = AuxiliaryDataModule(source=source, mosaic_probability=0.2, num_workers=2)
    model = AprilGan(backbone=options.backbone, pretrained=options.pretrained, adapter=None)
    Engine(logger=False, max_epochs=options.epochs).fit(model, datamodule=datamodule)
    print(f"Trained on {', '.join(model.model.trained_on)}: {model.model.save_adapters(options.output)}")
    print(f"Use them: anomalib test --model AprilGan --model.adapter {options.output} ...")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="data set in the folder layout of MVTec AD")
    parser.add_argument("output", help="file to write, with the suffix .safetensors")
    parser.add_argument("epochs", nargs="?", type=int, default=3, help="number of epochs (default: 3)")
    parser.add_argument("--backbone", help="architecture of open_clip, or ViT-builtin, which needs no download")
    parser.add_argument("--pretrained", default="auto", help="file with CLIP's weights, if there is no network")
    main(parser.parse_args())
