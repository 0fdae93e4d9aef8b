"""Measure exported models.

`cost` prints seconds per image (median, one image at a time), peak memory and file size of each form, with random CLIP
weights, for ViT-builtin at 192 px, ViT-B-16 at 224 px and ViT-L-14-336 at 518 px. Each form is measured in a process of
its own, which loads only its own runtime. `quality` prints the AUROC of each form with ViT-builtin, on kinds that were
held out from its training. Exported files stay in the folder.
"""

import json
import resource
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import mkdtemp
from typing import Any, NamedTuple

import numpy as np

BACKBONES = {
    "ViT-builtin": (192, (8,)),
    "ViT-B-16": (224, (3, 6, 9, 12)),
    "ViT-L-14-336": (518, (6, 12, 18, 24)),
}
REPETITIONS = 5


class Form(NamedTuple):
    """A way to run the model: kind of export, compression, precision of the computation."""

    kind: str
    compression: str | None = None
    precision: str = "f32"


FORMS = {
    "torch, fp32": Form("torch"),
    "torch, bf16 autocast": Form("torch", precision="bf16"),
    "ONNX Runtime": Form("onnx"),
    "OpenVINO, fp32": Form("openvino"),
    "OpenVINO, FP16 weights": Form("openvino", "fp16"),
    "OpenVINO, bf16": Form("openvino", precision="bf16"),
    "OpenVINO, INT8 weights": Form("openvino", "int8"),
    "OpenVINO, INT8_PTQ": Form("openvino", "int8_ptq"),
}

Answer = tuple[np.ndarray, np.ndarray]


def export(form: Form, folder: Path, data: Path, category: str, arguments: dict[str, Any]) -> Path:
    """Export a calibrated model if the file does not exist yet."""
    from anomalib.data import MVTecAD
    from anomalib.deploy import CompressionType
    from anomalib.engine import Engine
    from lightning import seed_everything

    from anomalib_aprilgan import AprilGan

    root = folder / f"{form.kind}-{form.compression}"
    suffix = {"torch": "pt", "onnx": "onnx", "openvino": "xml"}[form.kind]
    path = root / "weights" / form.kind / f"model.{suffix}"
    if not path.is_file():
        seed_everything(0)
        model = AprilGan(k_shot=4, few_shot_source=data / category / "train" / "good", class_name=category, **arguments)
        compression = None if form.compression is None else CompressionType(form.compression)
        datamodule = MVTecAD(data, category=category, num_workers=0)
        Engine(logger=False).export(model, form.kind, root, compression_type=compression, datamodule=datamodule)
    return path


def load(form: Form, path: Path) -> Callable[[np.ndarray], Answer]:
    """Load an exported model with its runtime. The result takes float images in [0, 1], (N, 3, h, w)."""
    if form.kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        return lambda images: tuple(session.run(["pred_score", "anomaly_map"], {"input": images}))
    if form.kind == "openvino":
        import openvino

        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": form.precision})
        return lambda images: tuple(compiled({"input": images})[name].copy() for name in ("pred_score", "anomaly_map"))
    import torch

    model = torch.load(path, weights_only=False)["model"].eval()

    def predict(images: np.ndarray) -> Answer:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=form.precision == "bf16"):
            found = model(torch.from_numpy(images))
        return found.pred_score.float().numpy(), found.anomaly_map.float().numpy()

    return predict


def measure(name: str, path: Path, size: int) -> None:
    """Print the cost of one form as JSON."""
    predict = load(FORMS[name], path)
    seconds = []
    for number in range(REPETITIONS + 1):
        images = np.random.default_rng(number).random((1, 3, size, size), np.float32)
        start = time.perf_counter()
        predict(images)
        seconds.append(time.perf_counter() - start)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    files = [path.with_suffix(suffix) for suffix in {path.suffix, ".bin"}]
    size_of_files = sum(file.stat().st_size for file in files if file.is_file())
    print(json.dumps({"seconds": median(seconds[1:]), "memory": memory, "file": size_of_files}))


def cost(folder: Path) -> None:
    """Print the table of costs."""
    data = sample_data(folder, ("gear",), test=1)
    print("| | seconds per image | peak memory | file |\n|---|---|---|---|")
    for backbone, (size, layers) in BACKBONES.items():
        arguments = {"backbone": backbone, "pretrained": None, "image_size": size, "layers": layers, "adapter": None}
        for name in FORMS:
            command = [sys.executable, __file__, "export", name, folder / backbone, data, json.dumps(arguments)]
            path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            command = [sys.executable, __file__, "measure", name, path, str(size)]
            found = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
            print(
                f"| {backbone}, {size} px: {name} | {found['seconds']:.3f} | {found['memory'] / 1e9:.1f} GB | "
                f"{found['file'] / 1e6:,.0f} MB |",
                flush=True,
            )


def quality(folder: Path) -> None:
    """Print the table of AUROC."""
    import torch
    from anomalib.data import MVTecAD
    from torchmetrics.functional.classification import binary_auroc

    from anomalib_aprilgan.demo.drawing.scenes import HELD_OUT_KINDS
    from anomalib_aprilgan.integration.pre_processing import EightBitResize

    data = sample_data(folder, HELD_OUT_KINDS, test=4)
    print("| | image AUROC | pixel AUROC | largest loss, image | largest loss, pixel |\n|---|---|---|---|---|")
    full: np.ndarray | None = None
    for name, form in FORMS.items():
        rows = []
        for kind in HELD_OUT_KINDS:
            predict = load(form, export(form, folder / "ViT-builtin" / kind, data, kind, {"backbone": "ViT-builtin"}))
            datamodule = MVTecAD(data, category=kind, num_workers=0)
            datamodule.setup()
            scores, maps, labels, masks = [], [], [], []
            for batch in datamodule.test_dataloader():
                score, anomaly_map = predict(batch.image.numpy())
                _, mask = EightBitResize(anomaly_map.shape[-1])(batch.image, batch.gt_mask)
                scores.append(torch.from_numpy(score))
                maps.append(torch.from_numpy(anomaly_map).flatten())
                labels.append(batch.gt_label.int())
                masks.append(mask.as_subclass(torch.Tensor).int().flatten())
            image = binary_auroc(torch.cat(scores), torch.cat(labels)).item()
            rows.append([image, binary_auroc(torch.cat(maps), torch.cat(masks)).item()])
        found = np.array(rows)
        full = found if full is None else full
        means, falls = found.mean(axis=0), (full - found).max(axis=0)
        print(f"| {name} | {means[0]:.4f} | {means[1]:.4f} | {falls[0]:.4f} | {falls[1]:.4f} |", flush=True)


def sample_data(folder: Path, kinds: tuple[str, ...], test: int) -> Path:
    """Write images for calibration and test: `test` normal ones, and as many of each defect."""
    from anomalib_aprilgan.demo.sample_data import write_sample_data

    root = folder / "data"
    return root if root.is_dir() else write_sample_data(root, kinds, size=128, train=8, test=test)


def main(task: str = "", *arguments: str) -> None:
    """Run a task of the command line. The tasks `export` and `measure` are for processes that this script starts."""
    if task == "measure":
        measure(arguments[0], Path(arguments[1]), int(arguments[2]))
    elif task == "export":
        name, folder, data, model = arguments
        print(export(FORMS[name], Path(folder), Path(data), "gear", json.loads(model)))
    else:
        parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
        parser.add_argument("task", choices=("cost", "quality"))
        parser.add_argument("folder", nargs="?", type=Path, help="by default a new temporary folder")
        options = parser.parse_args([task, *arguments] if task else [])
        {"cost": cost, "quality": quality}[options.task](options.folder or Path(mkdtemp()))


if __name__ == "__main__":
    main(*sys.argv[1:])
