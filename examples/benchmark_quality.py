"""Measure the quality of a model, zero-shot and few-shot, as a table in Markdown.

The root is a data set in the folder layout of MVTec AD, with masks. Each row shows the seven metrics of the paper in
percent. Rows with reference images are means over the seeds, which choose the images; behind a metric stands its
standard deviation.
"""

import logging
import sys
import warnings
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

METRICS = {
    "image_AUROC": "image AUROC",
    "image_F1Max": "F1-max",
    "image_AUPR": "AP",
    "pixel_AUROC": "pixel AUROC",
    "pixel_F1Max": "F1-max",
    "pixel_AUPR": "AP",
    "pixel_AUPRO": "PRO",
}


def categories_of(root: Path) -> list[str]:
    """Return the categories of a data set: the folders with a test split."""
    found = sorted(path.name for path in root.iterdir() if (path / "test").is_dir())
    if not found:
        sys.exit(f"Expected argument root to hold folders such as bottle/test/good, but {root} has none.")
    return found


def measure(options: Namespace, category: str, k_shot: int, seed: int, folder: str) -> np.ndarray:
    """Test a model on a category.

    Returns:
        The metrics in percent.
    """
    from anomalib.data import MVTecAD
    from anomalib.engine import Engine
    from lightning import seed_everything

    from anomalib_aprilgan import AprilGan
    from anomalib_aprilgan.method.options import MethodOptions

    seed_everything(seed, verbose=False)
    clip = {"backbone": options.backbone, "pretrained": options.pretrained, "adapter": options.adapter}
    architecture = {"image_size": options.image_size, "window": options.window, "layers": options.layers}
    method = MethodOptions(largest_bank=options.largest_bank)
    model = AprilGan(k_shot=k_shot, visualizer=False, method=method, **architecture, **clip)
    datamodule = MVTecAD(options.root, category=category, num_workers=0)
    engine = Engine(logger=False, default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False)
    (results,) = engine.test(model, datamodule=datamodule, verbose=False)
    return 100 * np.array([float(results[name]) for name in METRICS])


def row(category: str, k_shot: int, runs: np.ndarray) -> str:
    """Format the metrics of some runs, shape (runs, metrics), as a row of a table in Markdown."""
    cells = [f"{mean:.1f}" for mean in runs.mean(axis=0)]
    if len(runs) > 1:
        deviations = runs.std(axis=0, ddof=1)
        cells = [f"{cell} ± {deviation:.1f}" for cell, deviation in zip(cells, deviations, strict=True)]
    return f"| {category} | {k_shot} | " + " | ".join(cells) + " |"


def main(options: Namespace) -> None:
    """Print a row per category and number of references, then the means over categories."""
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    categories = options.category or categories_of(options.root)
    print("| category | references | " + " | ".join(METRICS.values()) + " |")
    print("|" + " --- |" * (2 + len(METRICS)))
    with TemporaryDirectory() as folder:
        for k_shot in options.shots:
            means = []
            for category in categories:
                seeds = range(options.seeds if k_shot else 1)
                runs = np.stack([measure(options, category, k_shot, seed, folder) for seed in seeds])
                print(row(category, k_shot, runs), flush=True)
                means.append(runs.mean(axis=0, keepdims=True))
            if len(categories) > 1:
                print(row("mean", k_shot, np.concatenate(means).mean(axis=0, keepdims=True)), flush=True)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="data set in the folder layout of MVTec AD")
    parser.add_argument("category", nargs="*", help="categories (default: all)")
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 1, 4], help="numbers of references")
    parser.add_argument("--seeds", type=int, default=3, help="choices of references (default: 3)")
    parser.add_argument("--image_size", type=int, help="height and width of the model's input in pixels")
    parser.add_argument("--window", type=int, help="height and width of windows in pixels (default: whole images)")
    parser.add_argument("--layers", type=int, nargs="+", help="stages with an adapter (default: those of the backbone)")
    parser.add_argument("--largest_bank", type=int, help="tokens to keep in each memory bank (default: all)")
    parser.add_argument("--backbone", help="architecture of open_clip, or ViT-builtin, which needs no download")
    parser.add_argument("--pretrained", default="auto", help="file with CLIP's weights, if there is no network")
    parser.add_argument("--adapter", default="auto", help="file with adapters, if there is no network")
    main(parser.parse_args())
