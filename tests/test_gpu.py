"""A GPU computes what the authors' code and the CPU compute. `pytest -m gpu` runs these tests and prints figures.

`pytest -m gpu --device cpu` runs them on the CPU, which checks the tests themselves.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning import seed_everything
from lightning.pytorch import Callback
from torch import Tensor

from anomalib_aprilgan import AprilGan, AprilGanModel, AuxiliaryDataModule
from anomalib_aprilgan.method.losses import adapter_loss

pytestmark = pytest.mark.gpu

EXACT = 1e-4
"""Largest deviation from the authors' recorded outputs in single precision, as on a CPU. TF32 is off."""

PRECISIONS = {"16-mixed": 0.02, "bf16-mixed": 0.05}
"""Largest deviation of scores, and of maps in the mean, from those in single precision."""

Figure = Callable[[str, object], None]


@pytest.fixture(scope="module")
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Return the device, and switch TF32 off, which torch uses for convolutions otherwise."""
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA GPU. `pytest -m gpu --device cpu` runs these tests on the CPU.")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield torch.device(name)


@pytest.fixture
def figure(record_property: Figure) -> Figure:
    """Return a function that records a figure, which is printed at the end."""
    return lambda name, value: record_property("figure", f"{name}: {value}")


@pytest.fixture
def engine(device: torch.device, tmp_path: Path) -> Callable[..., Engine]:
    """Make an Engine that computes on the device, or on another accelerator."""

    def make(**arguments: Any) -> Engine:
        accelerator = "gpu" if device.type == "cuda" else device.type
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        chosen = {"accelerator": accelerator, "devices": 1, "default_root_dir": tmp_path} | quiet | arguments
        return Engine(**chosen)

    return make


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference."""
    return float((found.float().cpu() - expected.float().cpu()).abs().max())


def predictions(engine: Engine, model: AprilGan, folder: Path) -> tuple[Tensor, Tensor]:
    """Return scores and maps of a folder, as a prediction computes them."""
    batches: Any = engine.predict(model, data_path=folder)
    return (
        torch.cat([batch.pred_score.cpu() for batch in batches]),
        torch.cat([batch.anomaly_map.cpu() for batch in batches]),
    )


def test_the_device(device: torch.device, figure: Figure) -> None:
    on_cuda = device.type == "cuda"
    figure("device", torch.cuda.get_device_name() if on_cuda else device)
    figure("torch", f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    assert torch.ones(3, device=device).sum().item() == 3


# ---- The authors' outputs -------------------------------------------------------------------------------------------


def test_predictions_equal_the_authors(
    device: torch.device, golden: dict[str, Any], make_model: Callable[..., AprilGanModel], figure: Figure
) -> None:
    model, images, stages = make_model().to(device), golden["inputs"].to(device), len(golden["layers"])
    tested, references = images[golden["test"]], images[golden["refs"]]
    model.setup(golden["cls"])
    zero_shot = model(tested)
    model.setup(reference_images=references)
    raw = model.predict_raw(tested, model.state.tensors())
    model.calibrate(raw.map_max.min(), raw.map_max.max())

    assert zero_shot.anomaly_map.device.type == device.type
    deviations = {
        "zero-shot scores": difference(zero_shot.pred_score, golden["prob"]),
        "zero-shot maps": difference(zero_shot.anomaly_map[:, ::2, ::2] * stages, golden["zero_map"]),
        "4-shot maps": difference(raw.anomaly_map[:, ::2, ::2] * stages, golden["zero_map"] + golden["few_map"]),
    }
    few_shot_scores = difference(model(tested).pred_score, golden["few_score"])
    figures = {**deviations, "4-shot scores": few_shot_scores}
    figure("largest deviation from the authors", {name: f"{value:.1e}" for name, value in figures.items()})
    assert max(deviations.values()) < EXACT
    assert few_shot_scores < 2 * EXACT  # they are recorded with fewer digits


def test_training_steps_equal_the_authors(
    device: torch.device, golden: dict[str, Any], make_model: Callable[..., AprilGanModel], figure: Figure
) -> None:
    model = make_model().to(device).train()
    optimizer = torch.optim.Adam(model.adapters.parameters(), lr=1e-3, betas=(0.5, 0.999))
    text_features, losses = model.encode_classes(golden["batch_classes"]), []
    for batch in golden["batches"]:
        images, masks = golden["inputs"][batch].to(device), golden["gt"][batch].to(device)
        loss = adapter_loss(model.stage_maps(images, text_features), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    figure("largest deviation of six losses", f"{difference(torch.stack(losses), golden['losses']):.1e}")
    torch.testing.assert_close(torch.stack(losses).cpu(), golden["losses"], rtol=1e-4, atol=0)
    for name, value in model.adapters.state_dict().items():
        assert difference(value, golden["adapter_after"][name]) < EXACT, name


# ---- Memory banks, windows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [0, 32], ids=["whole images", "windows"])
def test_memory_banks_give_what_the_cpu_gives(
    device: torch.device,
    make_lightning_model: Callable[..., AprilGan],
    sample_root: Path,
    tmp_path: Path,
    window: int,
    figure: Figure,
) -> None:
    good = sample_root / "gravel" / "train" / "good"
    model = make_lightning_model(class_name="gravel", k_shot=4, few_shot_source=good, window=window).eval()
    images = torch.rand(3, 3, 90, 70, generator=torch.Generator().manual_seed(5))
    expected = model(images)

    model.to(device)
    assert {bank.device.type for bank in model.model.state.tensors().reference_tokens} == {device.type}
    found = model(images.to(device))
    torch.save(model.state_dict(), tmp_path / "state.pt")
    restored = make_lightning_model(class_name="gravel", window=window).to(device).eval()
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))

    deviation = max(
        difference(found.pred_score, expected.pred_score), difference(found.anomaly_map, expected.anomaly_map)
    )
    figure(f"largest deviation from the CPU, 4-shot, window {window}", f"{deviation:.1e}")
    assert deviation < 10 * EXACT  # the post-processor stretches scores between the thresholds of normal images
    assert difference(restored(images.to(device)).anomaly_map, found.anomaly_map) < EXACT


# ---- With anomalib --------------------------------------------------------------------------------------------------


class Losses(Callback):
    """Collects the mean loss of each epoch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train_loss_epoch"]))


def test_training_lowers_the_loss_and_can_be_resumed(
    make_lightning_model: Callable[..., AprilGan], engine: Callable[..., Engine], sample_root: Path, figure: Figure
) -> None:
    def train(epochs: int, **arguments: Any) -> tuple[AprilGan, list[float], str]:
        seed_everything(5)
        model, losses = make_lightning_model(adapter=None), Losses()
        runner = engine(max_epochs=epochs, callbacks=[losses])
        source = MVTecAD(sample_root, category="coins")
        datamodule = AuxiliaryDataModule(source=source, categories=["brick", "coins"], num_workers=0)
        runner.fit(model, datamodule=datamodule, **arguments)
        return model, losses.values, runner.best_model_path

    whole, losses, _ = train(4)
    _, _, half = train(2)
    resumed, _, _ = train(4, ckpt_path=half)
    figure("loss per epoch", [round(loss, 4) for loss in losses])
    assert losses[-1] < 0.95 * losses[0]
    for name, value in whole.model.adapters.state_dict().items():
        assert difference(resumed.model.adapters.state_dict()[name], value) < 10 * EXACT, name


def test_predictions_equal_those_of_the_cpu(
    make_lightning_model: Callable[..., AprilGan],
    engine: Callable[..., Engine],
    sample_root: Path,
    tmp_path: Path,
    figure: Figure,
) -> None:
    folder = sample_root / "gravel" / "test"
    expected = predictions(engine(accelerator="cpu"), make_lightning_model(visualizer=False), folder)
    found = predictions(engine(), make_lightning_model(), folder)
    deviation = max(map(difference, found, expected))
    figure("largest deviation of predictions from the CPU", f"{deviation:.1e}")
    assert deviation < EXACT
    assert len(next(tmp_path.rglob("predictions.csv")).read_text("utf-8").splitlines()) == len(found[0]) + 1


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("k_shot", [0, 2])
def test_half_precision_gives_nearly_the_same(
    make_lightning_model: Callable[..., AprilGan],
    engine: Callable[..., Engine],
    sample_root: Path,
    precision: str,
    k_shot: int,
    figure: Figure,
) -> None:
    """On a CPU, Lightning replaces fp16 by bf16."""
    folder, good = sample_root / "gravel" / "test", sample_root / "gravel" / "train" / "good"
    references = {"k_shot": k_shot, "few_shot_source": good} if k_shot else {}
    (score, maps), (half_score, half_maps) = (
        predictions(engine(precision=one), make_lightning_model(visualizer=False, **references), folder)
        for one in ("32-true", precision)
    )
    deviations = difference(half_score, score), float((half_maps - maps).abs().mean())
    figure(
        f"{precision}, {k_shot}-shot: deviation of scores, of maps in the mean", [f"{one:.1e}" for one in deviations]
    )
    assert max(deviations) < PRECISIONS[precision]
    assert half_maps.dtype == torch.float32


def test_speed(device: torch.device, figure: Figure) -> None:
    """The embedded CLIP, 4-shot, in batches of 32. The bound says only that nothing falls back to another device."""
    model = AprilGan("ViT-builtin", class_name="gravel").model.to(device).eval()
    images = torch.randn(32, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))
    images = images.to(device).clamp(-1.5, 1.5)
    model.setup("gravel", images[:4])
    times = []
    for _ in range(4):
        started = time.perf_counter()
        model(images).pred_score.cpu()  # waits for the device
        times.append(time.perf_counter() - started)
    memory = f", {torch.cuda.max_memory_allocated() / 1e6:.0f} MB at most" if device.type == "cuda" else ""
    figure("ViT-builtin, 4-shot", f"{32 / min(times):.0f} images per second{memory}")
    assert {weight.device.type for weight in model.parameters()} == {device.type}
    assert min(times) < 10
