# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Windows: cutting and blending, the model with windows, its state, training and exports, and its error messages."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from weakref import ref

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.deploy import TorchInferencer
from anomalib.engine import Engine
from torch import Tensor
from torch.nn.functional import interpolate
from torchmetrics.functional.classification import binary_auroc

from anomalib_aprilgan import AprilGan, AprilGanModel, AuxiliaryDataModule, Product
from anomalib_aprilgan.demo.drawing.defects import add_defect
from anomalib_aprilgan.demo.drawing.scenes import Pixels, render, render_pair
from anomalib_aprilgan.demo.drawing.sheet import Scene
from anomalib_aprilgan.files.adapter_files import read_adapters
from anomalib_aprilgan.integration.pre_processing import AprilGanPreProcessor
from anomalib_aprilgan.integration.training import compute_loss
from anomalib_aprilgan.method.encoders import ImageFeatures
from anomalib_aprilgan.method.losses import adapter_loss
from anomalib_aprilgan.method.windows import Windows

Make = Callable[..., Any]
MakeEngine = Callable[..., Engine]

GRIDS = [(64, 32), (192, 96), (100, 32), (65, 64), (70, 40), (320, 32), (96, 64), (1036, 518)]
IMAGE, WINDOW = 64, 32
VIEWS = 10
"""Views of an image of 64 px: nine windows of 32 px, and the whole image."""
WINDOWED = {"image_size": IMAGE, "window": WINDOW}


def random_images(number: int = 2, size: int = IMAGE, seed: int = 0) -> Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(seed))


def random_maps(windows: Windows, number: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    size = windows.size
    return [
        (torch.rand(number, generator=generator), torch.rand(number, size, size, generator=generator))
        for _ in range(len(windows))
    ]


def corners(windows: Windows) -> list[tuple[int, int]]:
    """Return the top left corner of each window, row by row."""
    return [(top, left) for top in windows.starts for left in windows.starts]


def slowly_merged(windows: Windows, predictions: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Merge predictions pixel by pixel."""
    *parts, (whole_score, whole_map) = predictions
    image = windows.image_size
    bell = [np.sin(np.pi * (pixel + 0.5) / windows.size) ** 2 for pixel in range(windows.size)]
    blended = np.zeros((len(whole_score), image, image))
    for y in range(image):
        for x in range(image):
            total = 0.0
            for (top, left), (_, anomaly_map) in zip(corners(windows), parts, strict=True):
                if 0 <= y - top < windows.size and 0 <= x - left < windows.size:
                    weight = bell[y - top] * bell[x - left]
                    blended[:, y, x] += weight * anomaly_map[:, y - top, x - left].numpy()
                    total += weight
            blended[:, y, x] /= total
    scores = 0.5 * whole_score + 0.5 * torch.stack([score for score, _ in parts]).amax(dim=0)
    enlarged = interpolate(whole_map[None], size=(image, image), mode="bilinear")[0]
    return scores, 0.25 * enlarged + 0.75 * torch.from_numpy(blended).float()


# ---- Cutting and blending -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("image_size", "size"), GRIDS)
def test_windows_cover_the_image_and_overlap_by_a_quarter(image_size: int, size: int) -> None:
    starts = Windows(image_size, size).starts
    assert (starts[0], starts[-1]) == (0, image_size - size)
    steps = np.diff(starts)
    assert steps.max() <= 0.75 * size
    assert steps.max() - steps.min() <= 1, "equal distances"
    assert (len(steps) - 1) * 0.75 * size < image_size - size, "no more windows than necessary"


def test_the_views_are_the_windows_row_by_row_and_the_reduced_image() -> None:
    windows, images = Windows(70, 40), random_images(2, 70)
    *parts, whole = windows.views(images)
    assert len(parts) + 1 == len(windows) == 5
    for (top, left), part in zip(corners(windows), parts, strict=True):
        assert torch.equal(part, images[:, :, top : top + 40, left : left + 40])
    expected = interpolate(images, size=(40, 40), mode="bicubic", antialias=True)
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=0)


def test_an_image_of_the_size_of_a_window_is_its_only_view() -> None:
    windows, images = Windows(64, 64), random_images()
    (view,) = windows.views(images)
    assert view is images
    prediction = random_maps(windows)[0]
    assert windows.merge([prediction]) == prediction
    assert len(windows) == 1


@pytest.mark.parametrize(("image_size", "size"), [(64, 32), (70, 40), (65, 64)])
def test_predictions_are_merged_as_documented(image_size: int, size: int) -> None:
    windows = Windows(image_size, size)
    predictions = random_maps(windows)
    for found, expected in zip(windows.merge(predictions), slowly_merged(windows, predictions), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("image_size", "size"), GRIDS)
def test_constant_maps_stay_constant(image_size: int, size: int) -> None:
    windows = Windows(image_size, size)
    predictions = [(torch.tensor([0.3]), torch.full((1, size, size), 0.7)) for _ in range(len(windows))]
    score, anomaly_map = windows.merge(predictions)
    torch.testing.assert_close(score, torch.tensor([0.3]))
    torch.testing.assert_close(anomaly_map, torch.full((1, image_size, image_size), 0.7), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("image_size", "size"), [(1036, 518), (192, 96)])
def test_there_are_no_seams(image_size: int, size: int) -> None:
    """Windows that contradict each other leave no step: the map changes little from one pixel to the next."""
    windows = Windows(image_size, size)
    predictions = [(torch.zeros(1), torch.full((1, size, size), float(number % 2))) for number in range(len(windows))]
    _, anomaly_map = windows.merge(predictions)
    assert anomaly_map.amax() - anomaly_map.amin() > 0.5
    largest_step = max(anomaly_map.diff(dim=dim).abs().amax() for dim in (1, 2))
    overlap = size - (windows.starts[1] - windows.starts[0])
    assert largest_step < 2 / overlap


def test_the_map_moves_with_the_image() -> None:
    """An image that is moved by the distance of two windows: where the same windows see a pixel, its value is equal."""
    windows = Windows(128, 64)
    assert windows.starts == (0, 32, 64)
    image = torch.rand(1, 160, 128, generator=torch.Generator().manual_seed(0))

    def merged(images: Tensor) -> Tensor:
        *parts, _ = windows.views(images)
        maps = [part * part.mean() for part in parts]
        return windows.merge([(torch.zeros(1), one) for one in (*maps, torch.zeros(1, 64, 64))])[1]

    before, after = merged(image[:, :128]), merged(image[:, 32:])
    torch.testing.assert_close(before[:, 64:96], after[:, 32:64])


# ---- The model ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def make_windowed(make_model: Make) -> Callable[..., AprilGanModel]:
    """Make the plain model with windows of 32 px on images of 64 px, set up for a class."""

    def make(**arguments: Any) -> AprilGanModel:
        model: AprilGanModel = make_model(**WINDOWED | arguments)
        model._text._computed["coin"] = TEXT  # faster than encoding a prompt ensemble
        model.setup("coin")
        return model

    return make


TEXT = torch.nn.functional.normalize(torch.randn(2, 32, generator=torch.Generator().manual_seed(0)), dim=-1)


@pytest.mark.parametrize("shots", [0, 2])
def test_each_view_is_scored_as_an_image_of_a_plain_model(make_windowed: Make, shots: int) -> None:
    """With references, as an image of a model whose memory banks hold the tokens of all views."""
    model, plain = make_windowed(), make_windowed(image_size=WINDOW, window=0)
    images, references = random_images(), random_images(shots or 1, seed=1)
    if shots:
        model.setup(reference_images=references)
        plain.setup(reference_images=torch.cat(list(model.windows.views(references))))
    with torch.no_grad():
        predictions = [plain.predict_raw(view, plain.state.tensors()) for view in model.windows.views(images)]
    expected = slowly_merged(model.windows, predictions)
    for found, wanted in zip(model.predict_raw(images, model.state.tensors()), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert expected[1].std() > 1e-3


def test_references_fill_the_memory_banks_with_all_their_views(make_windowed: Make) -> None:
    model = make_windowed()
    references = random_images(2, seed=1)
    model.setup(reference_images=references)
    assert model.k_shot == 2
    assert {len(bank) for bank in model.memory_banks} == {2 * VIEWS * (WINDOW // 8) ** 2}
    model.add_references(random_images(1, seed=2))
    assert model.k_shot == 3

    zero_shot = make_windowed()
    found, without = (one.predict_raw(references, one.state.tensors()).anomaly_map for one in (model, zero_shot))
    torch.testing.assert_close(found, without, atol=1e-5, rtol=0)  # a reference has no distance to itself
    others = random_images(2, seed=3)
    assert (model(others).anomaly_map - zero_shot(others).anomaly_map).amin() > 1e-3


@pytest.mark.parametrize("shots", [0, 1])
def test_a_batch_gives_the_same_as_its_images_one_by_one(make_windowed: Make, shots: int) -> None:
    model, images = make_windowed(), random_images(3)
    if shots:
        model.setup(reference_images=random_images(1, seed=1))
    batch, singles = model(images), [model(image[None]) for image in images]
    for name in ("pred_score", "anomaly_map"):
        together = torch.cat([getattr(one, name) for one in singles])
        torch.testing.assert_close(getattr(batch, name), together, atol=1e-5, rtol=0)
    assert batch.anomaly_map.shape == (3, IMAGE, IMAGE)


def test_memory_holds_one_view_at_a_time(make_windowed: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and maps of a view are gone before the view after the next is encoded."""
    model, most, sizes = make_windowed(), [], []
    alive: list[ref[Tensor]] = []
    encode_image, predict_view = model.clip.encode_image, model._predict_view

    def encode(images: Tensor, stages: Collection[int]) -> ImageFeatures:
        most.append(sum(one() is not None for one in alive))
        sizes.append(tuple(images.shape))
        features = encode_image(images, stages)
        alive.extend(map(ref, features.tokens.values()))
        return features

    def predict(*arguments: Any) -> Any:
        raw = predict_view(*arguments)
        alive.append(ref(raw.anomaly_map))
        return raw

    monkeypatch.setattr(model.clip, "encode_image", encode)
    monkeypatch.setattr(model, "_predict_view", predict)
    model(random_images(3))
    assert sizes == [(3, 3, WINDOW, WINDOW)] * VIEWS
    assert len(alive) == VIEWS * 5, "four stages and a map"
    assert max(most) <= 1, "the last map"


def test_a_mixed_batch_uses_the_text_features_of_each_image(make_windowed: Make) -> None:
    model, images = make_windowed(), random_images()
    other = TEXT.flip(0)
    mixed = model.predict_raw(images, model.state.tensors(), torch.stack([TEXT, other]))
    for number, features in enumerate((TEXT, other)):
        alone = model.predict_raw(images[number : number + 1], model.state.tensors(), features)
        torch.testing.assert_close(mixed.anomaly_map[number], alone.anomaly_map[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(mixed.probability[number], alone.probability[0], atol=1e-5, rtol=0)


# ---- Arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 0])
def test_windows_are_off_by_default(make_windowed: Make, window: int | None) -> None:
    model = make_windowed(image_size=64, window=window)
    assert (model.architecture.window, len(model.windows)) == (0, 1)


def test_images_are_twice_as_large_as_a_window_by_default() -> None:
    model = AprilGan("ViT-builtin", window=48)
    assert model.model.image_size == 96
    assert model.model.clip.num_patches == 36
    assert model.pre_processor(torch.rand(1, 3, 50, 30)).shape == (1, 3, 96, 96)  # small photographs are enlarged


def test_images_need_not_be_a_multiple_of_the_patch_size(make_windowed: Make) -> None:
    model = make_windowed(image_size=75)
    assert model(random_images(1, 75)).anomaly_map.shape == (1, 75, 75)


@pytest.mark.parametrize("window", [-8, 32.0, "32", True, [32]])
def test_a_window_is_a_number_of_pixels(make_model: Make, window: object) -> None:
    with pytest.raises(ValueError, match=r"`window` to be a"):
        make_model(image_size=64, window=window)


def test_a_window_that_does_not_fit_the_patches_is_refused(make_model: Make) -> None:
    with pytest.raises(ValueError, match=r"`window` to be a multiple of the patch size 8 of golden-vit, but got 30"):
        make_model(image_size=64, window=30)


@pytest.mark.parametrize("image_size", [64, 32, 96.5, "128"])
def test_a_window_must_be_smaller_than_the_images(make_model: Make, image_size: object) -> None:
    message = rf"`window` to be smaller than image_size={image_size!r}, but got 64. Raise `image_size`, .* to 128"
    with pytest.raises(ValueError, match=message):
        make_model(image_size=image_size, window=64)


def test_images_of_another_size_are_refused(make_windowed: Make) -> None:
    model = make_windowed()
    for use in (model, lambda images: model.setup(reference_images=images)):
        with pytest.raises(ValueError, match=r"shape \(N, 3, 64, 64\)"):
            use(random_images(1, WINDOW))
    with pytest.raises(ValueError, match=r"shape \(N, 3, 32, 32\)"):
        model.stage_maps(random_images(1, IMAGE), TEXT)


def test_the_documented_number_of_views() -> None:
    page = (Path(__file__).parents[1] / "docs" / "windows.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d.]+) \| (\d+) \| (\d+) \|$", page, flags=re.MULTILINE)
    assert len(rows) == 6
    for ratio, windows, views in rows:
        found = Windows(round(float(ratio) * 518), 518)
        assert (len(found.starts) ** 2, len(found)) == (int(windows), int(views))


# ---- Training -------------------------------------------------------------------------------------------------------


def test_the_views_of_training_images_are_samples(make_windowed: Make) -> None:
    model, images = make_windowed(), random_images()
    masks = torch.zeros(2, IMAGE, IMAGE, dtype=torch.bool)
    masks[0, 10:50, 20:60] = True
    loss = compute_loss(model, SimpleNamespace(image=images, gt_mask=masks), TEXT)

    plain = make_windowed(image_size=WINDOW, window=0)
    *parts, whole = model.windows.views(images)
    truth = [masks[:, top : top + WINDOW, left : left + WINDOW] for top, left in corners(model.windows)]
    reduced = interpolate(masks[:, None].float(), size=(WINDOW, WINDOW), mode="bicubic", antialias=True)[:, 0] > 0.5
    views = zip([*parts, whole], [*truth, reduced], strict=True)
    expected = torch.stack([adapter_loss(plain.stage_maps(view, TEXT), mask) for view, mask in views]).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.adapters.parameters())


# ---- With anomalib --------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path: Path) -> MakeEngine:
    def make(**arguments: Any) -> Engine:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        return Engine(accelerator="cpu", devices=1, default_root_dir=tmp_path / "results", **quiet | arguments)

    return make


def data(root: Path) -> MVTecAD:
    return MVTecAD(root, category="gravel", num_workers=0, eval_batch_size=3)


def answers(model: AprilGan) -> dict[str, Tensor]:
    """Score raw images of another size than the model's."""
    prediction = model(torch.rand(2, 3, 90, 70, generator=torch.Generator().manual_seed(5)))
    return {name: value for name, value in prediction._asdict().items() if value is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


class Fitted(NamedTuple):
    model: AprilGan
    path: str


@pytest.fixture
def fitted(make_lightning_model: Make, engine: MakeEngine, sample_root: Path) -> Fitted:
    """A few-shot model with windows and thresholds, and its checkpoint."""
    model, runner = make_lightning_model(**WINDOWED, k_shot=2), engine()
    runner.fit(model, datamodule=data(sample_root))
    return Fitted(model, str(runner.best_model_path))


def test_a_checkpoint_restores_the_windows(fitted: Fitted, engine: MakeEngine, sample_root: Path) -> None:
    restored = AprilGan.load_from_checkpoint(fitted.path)
    assert restored.model.architecture == fitted.model.model.architecture
    assert restored.model.architecture.window == WINDOW
    assert_same(answers(restored), answers(fitted.model))
    images = sample_root / "gravel" / "test"
    expected = engine().predict(fitted.model, data_path=images)
    found = engine().predict(AprilGan(), data_path=images, ckpt_path=fitted.path)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.pred_score, other.pred_score)
        assert torch.equal(one.anomaly_map, other.anomaly_map)
        assert one.anomaly_map.shape[-2:] == (IMAGE, IMAGE)


def test_other_windows_need_other_memory_banks(fitted: Fitted) -> None:
    with pytest.raises(ValueError, match="memory banks of window 32 against the model's 0"):
        AprilGan.load_from_checkpoint(fitted.path, window=0)
    with pytest.raises(ValueError, match=r"`window` to be smaller than image_size=32, but got 32"):
        AprilGan.load_from_checkpoint(fitted.path, image_size=WINDOW)


def test_windows_added_to_a_checkpoint_reset_its_thresholds(
    make_lightning_model: Make, engine: MakeEngine, sample_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner = engine()
    runner.fit(make_lightning_model(), datamodule=data(sample_root))
    model = AprilGan.load_from_checkpoint(str(runner.best_model_path), window=WINDOW)
    assert "thresholds and ranges are reset" in caplog.text
    assert (model.model.image_size, model.model.architecture.window) == (IMAGE, WINDOW)
    assert model.setup_record.class_name == "gravel"
    expected = make_lightning_model(**WINDOWED, class_name="gravel")
    assert_same(answers(model), answers(expected))


def test_a_product_belongs_to_its_windows(fitted: Fitted, make_lightning_model: Make, tmp_path: Path) -> None:
    product = Product.load(fitted.model.product.save(tmp_path / "gravel.safetensors"))
    other = make_lightning_model(**WINDOWED, class_name="coin")
    other.switch_to(product)
    assert_same(answers(other), answers(fitted.model))
    with pytest.raises(ValueError, match="memory banks of window 32 against the model's 0"):
        make_lightning_model(class_name="coin").switch_to(product)
    zero_shot = make_lightning_model(**WINDOWED, class_name="coin").product
    with pytest.raises(ValueError, match="window 32 against 0"):
        make_lightning_model(class_name="coin").switch_to(zero_shot)


def test_damaged_memory_banks_of_windows_are_refused(fitted: Fitted) -> None:
    before = {name: value.clone() for name, value in fitted.model.state_dict().items() if isinstance(value, Tensor)}
    banks = [name for name in before if ".memory_banks." in name]
    one_view = fitted.model.model.clip.num_patches
    state = fitted.model.state_dict() | {name: before[name][:-one_view] for name in banks}
    with pytest.raises(ValueError, match="memory banks"):
        fitted.model.load_state_dict(state)
    product = fitted.model.product
    tensors = {name: value[:-one_view] if name in banks else value for name, value in product.tensors.items()}
    with pytest.raises(ValueError, match="memory banks of 2 images have"):
        fitted.model.switch_to(replace(product, tensors=tensors))
    origin = {**product.facts["origin"], "window": "32"}
    with pytest.raises(ValueError, match="window='32'"):
        fitted.model.switch_to(replace(product, facts={**product.facts, "origin": origin}))
    assert_same({name: fitted.model.state_dict()[name] for name in before}, before)


def test_adapters_are_trained_with_windows_and_fit_models_without(
    make_lightning_model: Make, engine: MakeEngine, sample_root: Path, tmp_path: Path
) -> None:
    model = make_lightning_model(**WINDOWED, adapter=None)
    before = {name: value.clone() for name, value in model.model.adapters.state_dict().items()}
    source = MVTecAD(sample_root, category="brick")
    auxiliary = AuxiliaryDataModule(source, ["brick"], train_batch_size=2, num_workers=0)
    engine(max_steps=2).fit(model, datamodule=auxiliary)
    assert not any(torch.equal(before[name], value) for name, value in model.model.adapters.state_dict().items())
    file = model.model.save_adapters(tmp_path / "adapters.safetensors")
    _, origin = read_adapters(file)
    assert (origin.image_size, origin.window) == (IMAGE, WINDOW)
    plain = make_lightning_model(adapter=file)
    assert torch.equal(plain.model.adapters.fc[0].weight, model.model.adapters.fc[0].weight)


# ---- Export ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("shots", [0, 2])
def test_exported_models_predict_the_same(
    make_lightning_model: Make, sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shots: int
) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    openvino = pytest.importorskip("openvino", reason="needs the extra `export`")
    references = {"k_shot": shots, "few_shot_source": sample_root / "gravel" / "train" / "good"} if shots else {}
    model = make_lightning_model(**WINDOWED, class_name="gravel", **references).eval()
    images = torch.rand(3, 3, 90, 70, generator=torch.Generator().manual_seed(5))
    expected = model(images)

    def check(found: Any) -> None:
        for name in ("pred_score", "anomaly_map"):
            value, wanted = np.asarray(found[name]), getattr(expected, name).numpy()
            np.testing.assert_allclose(value.reshape(wanted.shape), wanted, atol=1e-4, rtol=0)

    check(TorchInferencer(model.to_torch(tmp_path), device="cpu").model(images)._asdict())
    path = model.to_onnx(tmp_path)
    session = onnxruntime.InferenceSession(str(path))
    names = [output.name for output in session.get_outputs()]
    check(dict(zip(names, session.run(None, {"input": images.numpy()}), strict=True)))
    assert session.get_modelmeta().custom_metadata_map["window"] == str(WINDOW)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    check({port.any_name: value for port, value in compiled({"input": images.numpy()}).items()})


# ---- Quality --------------------------------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """Drawn pictures of 192 px: a reference, six normal ones, then six with a defect; and the masks of the defects."""

    pictures: list[Pixels]
    masks: list[Pixels]


def small_defect(kind: str, defect: str, number: int) -> tuple[Pixels, Pixels]:
    """Draw a picture with a defect that is small enough for a square of 36 px."""
    picture, mask, rng = render(kind, 2026, number, 192), np.zeros((192, 192), np.uint8), np.random.default_rng(number)
    top, left = rng.integers(0, 192 - 36, 2)
    square = np.s_[top : top + 36, left : left + 36]
    part = (picture[square] / 255).astype(np.float32)
    undercoat = np.ones_like(part) * part.mean((0, 1)) * np.float32(0.5)
    damaged, covered = add_defect(defect, Scene(part, undercoat, np.ones((36, 36), np.float32)), rng)
    picture[square], mask[square] = np.clip(damaged, 0, 1) * 255, covered * 255
    return picture, mask


def draw(kind: str, *, small: bool) -> Drawn:
    normal = [render(kind, 2026, number, 192) for number in range(7)]
    defects = [
        small_defect(kind, defect, 20 + number) if small else render_pair(kind, defect, 2026, 20 + number, 192)[1:]
        for number, defect in enumerate(("scratch", "stain", "spots", "wrong_texture", "crack", "hole"))
    ]
    return Drawn([*normal, *(picture for picture, _ in defects)], [mask for _, mask in defects])


def quality(model: AprilGanModel, drawn: dict[str, Drawn], shots: int) -> Tensor:
    """Compute the AUROC of images and pixels, the mean over all kinds."""
    transform, found = AprilGanPreProcessor(model.image_size).transform, []
    for kind, (pictures, defects) in drawn.items():
        images = transform(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255)
        model.setup(kind, images[:1] if shots else None)
        raw = model.predict_raw(images[1:], model.state.tensors())
        model.calibrate(raw.map_max.min(), raw.map_max.max())
        maps = interpolate(raw.anomaly_map[:, None], size=(192, 192), mode="bilinear")[:, 0]
        masks = torch.from_numpy(np.stack([*np.zeros((6, 192, 192), np.uint8), *defects])) > 127
        scores = model.image_score(raw, model.state.tensors())
        image = binary_auroc(scores, masks.amax(dim=(1, 2)).int())
        found.append([image, binary_auroc(maps.flatten(), masks.flatten().int())])
    return torch.tensor(found).mean(dim=0)


@pytest.mark.parametrize("shots", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_windows_find_small_defects_and_do_not_lose_large_ones(shots: int) -> None:
    kinds = ("honeycomb", "terrazzo", "wickerwork")
    sizes = {"image_size": 96}, {"image_size": 192, "window": 96}
    plain, windowed = (AprilGanModel("ViT-builtin", adapter="builtin", **size) for size in sizes)
    with torch.no_grad():
        for small in (True, False):
            drawn = {kind: draw(kind, small=small) for kind in kinds}
            gain = quality(windowed, drawn, shots) - quality(plain, drawn, shots)
            assert (gain > (0.03 if small else -0.03)).all()
