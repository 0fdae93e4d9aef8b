"""Measure the cost of a model as ratios, in tables in Markdown: inference, banks, precision, training and others.

All weights are random, so nothing is downloaded; costs do not depend on them. Each figure is the median of alternating
repetitions. On a CPU, seconds are those of one thread, without what other programs take; on a GPU, wall seconds.
"""

import json
import logging
import os
import platform
import sys
import time
import warnings
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

warnings.simplefilter("ignore")

SECTIONS = ("inference", "banks", "precision", "training", "comparison", "processes", "start", "others")
SHOTS = (1, 4, 16)
BANK_SHOTS = (1, 4, 16, 64, 256)
LARGEST_BANK = 10_000
CLASS_NAMES = ("coins", "brick")


def seconds_of(work: Mapping[str, Callable[[], object]], device: Any, repetitions: int) -> dict[str, float]:
    """Return the median seconds of several pieces of work, which are repeated in turns after one warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for repetition in range(repetitions + 1):
        for name, run in work.items():
            start = now(device)
            run()
            if repetition:
                taken[name].append(now(device) - start)
    return {name: median(values) for name, values in taken.items()}


def now(device: Any) -> float:
    """Return CPU seconds of this process, or wall seconds after the device has finished its work."""
    import torch

    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()


def print_table(title: str, heads: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """Print a table in Markdown."""
    print(f"\n**{title}**\n\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(f'{cell:.3g}' if isinstance(cell, float) else str(cell) for cell in row)} |", flush=True)


def make_model(options: Namespace, **overrides: Any) -> Any:
    """Make a plain model with random weights, set up with random text features."""
    from anomalib_aprilgan import AprilGanModel

    arguments = {"backbone": options.backbone, "pretrained": None, "image_size": options.image_size} | overrides
    model = AprilGanModel(**arguments).to(options.device)
    model.state.record = model.state.record.__class__(class_name="object", class_origin="call")
    model.state.text_features = random_units(2, model.clip.embed_dim).to(options.device)
    return model


def random_units(*shape: int) -> Any:
    """Return random vectors of length 1."""
    import torch

    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(0)), dim=-1)


def images_for(model: Any, number: int) -> Any:
    """Return random pre-processed images."""
    import torch

    size = model.image_size
    images = torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(0)).clamp(-1.7, 2.1)
    return images.to(model.text_features.device)


def setup_with(model: Any, k_shot: int) -> Any:
    """Return the tensors of a setup with random tokens of a number of reference images."""
    number, device = k_shot * model.tokens_per_reference, model.text_features.device
    banks = [random_units(number, model.clip.width).to(device) for _ in model.reference_layers]
    return model.state.tensors()._replace(reference_tokens=tuple(banks))


def measure_inference(options: Namespace) -> None:
    """Compare zero-shot and few-shot inference with the bare tower of open_clip."""
    model, rows = make_model(options), []
    for batch in options.batches:
        images = images_for(model, batch)
        work: dict[str, Callable[[], object]] = {"tower": partial(run_tower, model, images)}
        for k_shot in (0, *SHOTS):
            work[f"{k_shot}-shot"] = partial(model, images, setup_with(model, k_shot))
        found = seconds_of(work, options.device, options.repetitions)
        rows += [(name, batch, found[name] / batch, found[name] / found["tower"]) for name in found]
    heads = ("", "batch", "seconds per image", "ratio to the bare tower")
    print_table(f"Inference, {options.backbone}, {model.image_size} px", heads, rows)
    options.figure["inference"] = rows


def run_tower(model: Any, images: Any) -> None:
    """Pass images through open_clip's own image tower."""
    without_gradients(model.clip.visual, images)


def measure_banks(options: Namespace) -> None:
    """Measure memory banks with random tokens, and their reduction, which is extrapolated from a few steps."""
    import torch

    from anomalib_aprilgan.coreset import select_coreset
    from anomalib_aprilgan.method.memory_bank import nearest_distances

    model, rows, steps = make_model(options), [], (10, 50)
    number_of_banks = len(model.reference_layers)
    image = torch.randn(1, model.tokens_per_reference, model.clip.width, device=options.device)
    for k_shot in BANK_SHOTS:
        bank = random_units(k_shot * model.tokens_per_reference, model.clip.width).to(options.device)
        work: dict[str, Callable[[], object]] = {"matching": partial(nearest_distances, image, bank)}
        if len(bank) > LARGEST_BANK:
            work |= {str(number): partial(select_coreset, bank, number) for number in steps}
        found = seconds_of(work, options.device, 1)
        few, more = (found.get(str(number), 0.0) for number in steps)
        reduction = number_of_banks * (more - few) / (steps[1] - steps[0]) * LARGEST_BANK / 60
        megabytes = number_of_banks * bank.numel() * bank.element_size() // 10**6
        rows.append((k_shot, len(bank), number_of_banks * found["matching"], megabytes, reduction if more else ""))
    heads = ("references", "tokens", "matching, seconds per image", "MB", f"reduction to {LARGEST_BANK:,}, minutes")
    title = f"{number_of_banks} memory banks, {options.backbone}, {model.image_size} px"
    print_table(title, heads, rows)


def measure_precision(options: Namespace) -> None:
    """Compare precisions, and torch.compile if there is a compiler."""
    import torch

    model = make_model(options)
    images = images_for(model, options.batches[-1])
    halves = {"bf16": torch.bfloat16} | ({"fp16": torch.float16} if options.device.type == "cuda" else {})
    others: dict[str, Callable[[], Any]] = {
        'fp32, matrix products "medium"': partial(predict_with_products, model, images, "medium"),
        **{name: partial(predict_with_autocast, model, images, dtype) for name, dtype in halves.items()},
    }
    work: dict[str, Callable[[], object]] = {"fp32": partial(model, images), **others}
    expected = model(images).anomaly_map
    compiled = torch.compile(model.clip.visual)
    try:
        without_gradients(compiled, images)
        work["torch.compile, tower alone"] = partial(without_gradients, compiled, images)
        work["the same without"] = partial(run_tower, model, images)
    except Exception as error:  # no compiler, or one that does not work
        print(f"\ntorch.compile: not measured ({type(error).__name__})")
    found = seconds_of(work, options.device, options.repetitions)
    rows = []
    for name, seconds in found.items():
        off = others[name]().anomaly_map - expected if name in others else None
        largest = "" if off is None else float(off.abs().max())
        rows.append((name, seconds / len(images), seconds / found["fp32"], largest))
    heads = ("", "seconds per image", "ratio to fp32", "largest difference of maps")
    print_table(f"Precision, {options.backbone}, {model.image_size} px, batch {len(images)}", heads, rows)


def predict_with_autocast(model: Any, images: Any, dtype: Any) -> Any:
    """Predict as Lightning does with a mixed precision."""
    import torch

    with torch.autocast(images.device.type, dtype):
        return model(images)


def predict_with_products(model: Any, images: Any, precision: str) -> Any:
    """Predict with a setting of torch for matrix products of single precision."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        return model(images)
    finally:
        torch.set_float32_matmul_precision(before)


def without_gradients(work: Callable[[Any], object], images: Any) -> None:
    """Call a module without gradients."""
    import torch

    with torch.no_grad():
        work(images)


def measure_training(options: Namespace) -> None:
    """Compare epochs of a training through the tower with epochs from stored features; validation, then test, too."""
    import torch
    from anomalib.data import MVTecAD

    from anomalib_aprilgan import AprilGan, AuxiliaryDataModule

    rows, losses = [], {}
    for name, features, precision in options.trainings:
        arguments = lightning_arguments(options) | {"adapter": None}
        torch.manual_seed(0)  # of the adapters
        model = AprilGan(**arguments, features=features and options.folder / features)
        know_classes(model)
        source = MVTecAD(options.folder / "data", category=CLASS_NAMES[0])
        data = AuxiliaryDataModule(source, categories=[CLASS_NAMES[0]], num_workers=0, train_batch_size=8, seed=0)
        clock = Epochs(options.device)
        engine(options, max_epochs=3, callbacks=[clock], precision=precision).fit(model, datamodule=data)
        number = len(data.train_data)
        losses[name] = clock.losses
        rows.append((name, clock.seconds[0] / number, median(clock.seconds[1:]) / number, *clock.losses))
    later = {row[0]: row[2] for row in rows}
    rows = [(name, first, second, later[rows[0][0]] / second, *found) for name, first, second, *found in rows]
    heads = ("", "first epoch: s per image", "later epochs", "times faster", "loss 1", "loss 2", "loss 3")
    print_table(f"Training, {options.backbone}, {options.image_size} px", heads, rows)
    options.figure["training"] = rows

    rows = []
    tests = (("without stored features", None), ("storing features", "tested"), ("with stored features", "tested"))
    for name, features in tests:
        model = AprilGan(**lightning_arguments(options), features=features and options.folder / features)
        know_classes(model)
        data = MVTecAD(options.folder / "data", category=CLASS_NAMES[0], num_workers=0)
        start = now(options.device)
        engine(options).test(model, datamodule=data, verbose=False)
        rows.append((name, (now(options.device) - start) / len(data.test_data)))
    print_table("Validation, then test", ("", "seconds per image"), rows)


def lightning_arguments(options: Namespace) -> dict[str, Any]:
    """Return the arguments of ``AprilGan`` with the random weights that were written to files."""
    own = {"backbone": options.backbone, "image_size": options.image_size, "visualizer": False}
    return own | {"pretrained": options.folder / "clip.safetensors", "adapter": options.folder / "adapters.safetensors"}


def know_classes(model: Any) -> None:
    """Give a model random text features of the classes, since encoding sentences is not what is measured."""
    for class_name in CLASS_NAMES:
        model.model._text._computed[class_name] = random_units(2, model.model.clip.embed_dim)  # noqa: SLF001


def engine(options: Namespace, **arguments: Any) -> Any:
    """Make an Engine that prints nothing."""
    from anomalib_aprilgan.integration.quiet_engine import quiet_engine

    accelerator = "gpu" if options.device.type == "cuda" else "cpu"
    return quiet_engine(options.folder / "runs", accelerator=accelerator, **arguments)


def Epochs(device: Any) -> Any:  # noqa: N802  # a class, but Lightning is imported only when it is needed
    """Make a callback with the seconds and the mean loss of each epoch."""
    from lightning.pytorch import Callback

    class Clock(Callback):
        seconds: list[float] = []  # noqa: RUF012
        losses: list[float] = []  # noqa: RUF012

        def on_train_epoch_start(self, *_: object) -> None:
            self.start = now(device)

        def on_train_epoch_end(self, trainer: Any, *_: object) -> None:
            self.seconds = [*self.seconds, now(device) - self.start]
            self.losses = [*self.losses, float(trainer.callback_metrics["train_loss"])]

    return Clock()


def measure_comparison(options: Namespace) -> None:
    """Compare one zero-shot run with all shots and seeds of a comparison."""
    from anomalib_aprilgan.comparison.compare import compare

    models, data = compared_components(options)
    grids: tuple[tuple[str, Any, tuple[int, ...], tuple[int, ...]], ...] = (
        ("one zero-shot run", None, (0,), (0,)),
        ("one zero-shot run, storing features", str(options.folder / "compared"), (0,), (0,)),
        ("0, 1, 2, 4 shots, 3 seeds: ten runs", str(options.folder / "compared again"), (0, 1, 2, 4), (0, 1, 2)),
        ("the same without stored features", None, (0, 1, 2, 4), (0, 1, 2)),
    )
    rows: list[tuple[object, ...]] = []
    for name, features, shots, seeds in grids[: 3 + options.slow]:
        output = options.folder / name
        start = now(options.device)
        compare(models, data, CLASS_NAMES[:1], shots, seeds, output, features=features)
        seconds = now(options.device) - start
        rows.append((name, seconds, seconds / float(rows[0][1]) if rows else 1.0))
    print_table(f"Comparison, {options.backbone}, {options.image_size} px", ("", "seconds", "ratio"), rows)


def measure_processes(options: Namespace) -> None:
    """Measure the wall seconds of a comparison by number of processes, with one thread or one GPU each."""
    import torch

    from anomalib_aprilgan.comparison.compare import compare

    models, data = compared_components(options)
    seeds, rows = (0, 1), []
    runs = len(CLASS_NAMES) * len(seeds)
    for count in range(1, min(torch.cuda.device_count() or os.cpu_count() or 1, runs) + 1):
        start = time.perf_counter()
        output = options.folder / f"{count} processes"
        with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
            compare(models, data, CLASS_NAMES, (1,), seeds, output, features=None, processes=count)
        rows.append((count, time.perf_counter() - start))
    rows = [(count, seconds, seconds / rows[0][1]) for count, seconds in rows]
    title = f"A comparison of {runs} runs, {options.backbone}, {options.image_size} px"
    print_table(title, ("processes", "wall seconds", "ratio"), rows)


def compared_components(options: Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a model and data for a comparison."""
    arguments = {name: str(value) for name, value in lightning_arguments(options).items() if name != "visualizer"}
    model = {"class_path": "anomalib_aprilgan.AprilGan", "init_args": arguments | {"image_size": options.image_size}}
    data = {"class_path": "MVTecAD", "init_args": {"root": str(options.folder / "data"), "num_workers": 0}}
    return {"AprilGan": model}, data


START = """
import json, re, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
status = Path("/proc/self/status")
def largest():  # of the memory of this process so far in MB; only Linux tells it
    return int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) // 1000 if status.exists() else 0
start = time.perf_counter()
import anomalib.models
imported = time.perf_counter()
from anomalib_aprilgan import AprilGanModel
own, memory = time.perf_counter(), largest()
model = AprilGanModel(sys.argv[1], pretrained=sys.argv[2])
made = time.perf_counter()
model.setup("coin")
print(json.dumps([imported - start, own - imported, made - own, time.perf_counter() - made, largest() - memory]))
"""


def measure_start(options: Namespace) -> None:
    """Measure a start for a new class and for a known one: wall seconds, and largest memory beyond the imports."""
    rows = []
    for backbone, weights in (("ViT-builtin", "auto"), (options.backbone, options.folder / "clip.safetensors")):
        for kind in ("new", "known"):
            own = {"XDG_CACHE_HOME": str(options.folder / "cache"), "ANOMALIB_APRILGAN_AUTOLOAD": "0"}
            output = run_python(START, backbone, str(weights), **own)
            rows.append((backbone, kind, *json.loads(output.splitlines()[-1])))
    heads = ("backbone", "class", "import of anomalib.models", "of this package", "model", "its class", "MB")
    print_table("Start: seconds, and largest memory beyond the imports", heads, rows)


def run_python(code: str, *arguments: str, **environment: str) -> str:
    """Run a program in a process of its own, and return its output."""
    import subprocess

    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment).stdout


def measure_others(options: Namespace) -> None:
    """Compare AprilGan with anomalib's WinClip and Patchcore at their defaults, with random weights."""
    import torch
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel
    from anomalib.models.image.winclip.torch_model import WinClipModel

    patchcore = PatchcoreModel(("layer2", "layer3"), pre_trained=False).eval().to(options.device)
    patchcore.memory_bank = torch.randn(10_000, 1536, device=options.device)
    import open_clip

    create = open_clip.create_model_and_transforms
    with mock.patch.object(open_clip, "create_model_and_transforms", lambda name, **_: create(name, pretrained=None)):
        winclip = WinClipModel().eval().to(options.device)
    winclip._text_embeddings = random_units(2, 640).to(options.device)  # noqa: SLF001
    model = make_model(options)
    work: dict[str, Callable[[], object]] = {
        f"AprilGan, {options.backbone}, {options.image_size} px": partial(model, images_for(model, 1)),
        "WinClip, 240 px": partial(without_gradients, winclip, torch.randn(1, 3, 240, 240, device=options.device)),
        "Patchcore, 256 px, 10,000 tokens": partial(
            without_gradients, patchcore, torch.randn(1, 3, 256, 256, device=options.device)
        ),
    }
    found = seconds_of(work, options.device, options.repetitions)
    rows = [(name, seconds, seconds / next(iter(found.values()))) for name, seconds in found.items()]
    print_table("Other models at their defaults, zero-shot, batch 1", ("", "seconds per image", "ratio"), rows)


def draw(options: Namespace, path: Path) -> None:
    """Draw cost against batch, shots, image size and epochs."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(14, 3.4), layout="constrained")
    rows = options.figure["inference"]
    for name in ("tower", "0-shot", "4-shot", "16-shot"):
        points = [(batch, seconds) for kind, batch, seconds, _ in rows if kind == name]
        axes[0].plot(*zip(*points, strict=True), marker="o", label=name)
    axes[0].set(xlabel="batch", ylabel="seconds per image", ylim=(0, None))
    axes[0].legend()
    shots = [(int(kind.partition("-")[0]), seconds) for kind, batch, seconds, _ in rows if batch == 1 and "-" in kind]
    axes[1].plot(*zip(*shots, strict=True), marker="o")
    axes[1].set(xlabel="reference images", ylim=(0, None))
    axes[2].plot(*zip(*options.figure["sizes"], strict=True), marker="o")
    axes[2].set(xlabel="image size in pixels", ylim=(0, None))
    for name, first, later, *_ in options.figure["training"]:
        axes[3].plot(range(1, 16), [first + epoch * later for epoch in range(15)], label=name)
    axes[3].set(xlabel="epochs of a training", ylabel="seconds per training image", ylim=(0, None))
    axes[3].legend()
    figure.savefig(path, dpi=110)
    print(f"\nPicture: {path}")


def measure_sizes(options: Namespace) -> None:
    """Measure inference at several image sizes, for the picture."""
    found = []
    for share in (0.5, 1.0, 1.5):
        model = make_model(options, image_size=round(options.image_size * share / 32) * 32 or 32)
        seconds = seconds_of({"": partial(model, images_for(model, 1))}, options.device, options.repetitions)
        found.append((model.image_size, seconds[""]))
    options.figure["sizes"] = found


@contextmanager
def prepared(options: Namespace) -> Iterator[Namespace]:
    """Write random weights and sample images into a temporary folder."""
    from safetensors.torch import save_file

    from anomalib_aprilgan.demo.sample_data import write_sample_data
    from anomalib_aprilgan.method.towers import build_towers

    with TemporaryDirectory() as folder:
        options.folder, options.figure = Path(folder), {}
        towers = build_towers(options.backbone, None, options.image_size, quick_gelu=False)
        save_file(towers.state_dict(), options.folder / "clip.safetensors")
        model = make_model(options, pretrained=options.folder / "clip.safetensors")
        model.mark_trained(["nothing"])
        model.save_adapters(options.folder / "adapters.safetensors")
        write_sample_data(options.folder / "data", CLASS_NAMES, size=256, train=4, test=options.images)
        yield options


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=SECTIONS, help=f"Any of {', '.join(SECTIONS)}; default: all.")
    parser.add_argument("--backbone", default="ViT-B-16", help="Name of an open_clip architecture.")
    parser.add_argument("--image_size", type=int, default=224, help="Height and width in pixels.")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4], help="Batch sizes of the inference.")
    parser.add_argument("--images", type=int, default=8, help="Test images per defect of the sample data.")
    parser.add_argument("--repetitions", type=int, default=5, help="Repetitions of the inference.")
    parser.add_argument("--slow", action="store_true", help="Also the comparison without stored features.")
    parser.add_argument("--picture", type=Path, help="File for a picture of the inference and the training.")
    options = parser.parse_args()
    import torch

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("anomalib").setLevel(logging.ERROR)
    unknown = sorted(set(options.sections) - set(SECTIONS))
    if unknown:
        sys.exit(f"Expected sections from {', '.join(SECTIONS)}, but got {', '.join(unknown)}.")
    options.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = "bf16-mixed"
    options.trainings = (("through the tower", None, "32"), ("stored features", "f", "32"), (half, "h", half))
    torch.set_num_threads(1)
    device = torch.cuda.get_device_name() if options.device.type == "cuda" else f"one thread of {cpu_name()}"
    print(f"{device}, torch {torch.__version__}")
    needs_files = set(options.sections) & {"training", "comparison", "processes", "start"}
    with prepared(options) if needs_files else nullcontext():
        options.figure = getattr(options, "figure", {})
        for section in options.sections:
            globals()[f"measure_{section}"](options)
        if options.picture:
            measure_sizes(options)
            draw(options, options.picture)


def cpu_name() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
