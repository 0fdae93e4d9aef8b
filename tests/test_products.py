# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Product files, switching between products, and adding references."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from anomalib import LearningType
from anomalib.data import MVTecAD
from anomalib.deploy import TorchInferencer
from anomalib.engine import Engine
from anomalib.post_processing import PostProcessor
from lightning import seed_everything
from torch import Tensor

from anomalib_aprilgan import AprilGan, Product
from anomalib_aprilgan.method.clip import Clip
from anomalib_aprilgan.method.options import MethodOptions

MakeModel = Callable[..., AprilGan]


def data(root: Path, category: str) -> MVTecAD:
    return MVTecAD(root, category=category, num_workers=0, eval_batch_size=4)


def answers(model: AprilGan, images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return model.eval()(images)._asdict()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 80, 70, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Engine(accelerator="cpu", devices=1, default_root_dir=tmp_path, **quiet)


@pytest.fixture
def products(make_lightning_model: MakeModel, sample_root: Path, engine: Engine, images: Tensor, tmp_path: Path):
    """Write files of two products with different references, and return the predictions of their models."""
    seed_everything(7)
    model = make_lightning_model(k_shot=2)
    expected = {}
    for category in ("gravel", "coins"):
        engine.validate(model, datamodule=data(sample_root, category), verbose=False)
        model.product.save(tmp_path / f"{category}.safetensors")
        expected[category] = answers(model, images)
    return expected


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)


def test_a_fresh_model_switches_between_products(
    products, make_lightning_model: MakeModel, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not torch.allclose(products["gravel"]["anomaly_map"], products["coins"]["anomaly_map"], atol=0.01)
    model = make_lightning_model()
    loaded = {category: Product.load(tmp_path / f"{category}.safetensors") for category in products}
    monkeypatch.setattr(Clip, "encode_text", None)  # switching must not encode prompts
    for category in ("gravel", "coins", "gravel"):
        model.switch_to(loaded[category])
        assert_same(answers(model, images), products[category])
        assert model.model.class_name == loaded[category].class_name == category
        assert model.reference_files == loaded[category].reference_files
        assert len(model.reference_files) == 2


def test_an_exported_model_switches_between_products(
    products, make_lightning_model: MakeModel, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    path = make_lightning_model(class_name="nothing").to_torch(tmp_path)
    inferencer = TorchInferencer(path, device="cpu")
    for category, expected in products.items():
        inferencer.model.switch_to(Product.load(tmp_path / f"{category}.safetensors"))
        assert_same(inferencer.predict(images).__dict__, {"anomaly_map": expected["anomaly_map"]})


def test_the_engine_does_not_change_the_product(
    products, make_lightning_model: MakeModel, sample_root: Path, engine: Engine, images: Tensor, tmp_path: Path
) -> None:
    model = make_lightning_model(class_name="something", k_shot=1, few_shot_source=sample_root / "brick/train/good")
    model.switch_to(Product.load(tmp_path / "coins.safetensors"))
    engine.predict(model, data_path=sample_root / "coins/test/good")
    assert_same(answers(model, images), products["coins"])


def test_later_changes_of_the_model_do_not_affect_a_product(
    products, make_lightning_model: MakeModel, images: Tensor, tmp_path: Path
) -> None:
    model = make_lightning_model()
    product = Product.load(tmp_path / "coins.safetensors")
    model.switch_to(product)
    again = model.product
    model.model.calibrate(0.1, 0.2)
    model.model.memory_banks[0].clear()
    for same in (product, again):
        model.switch_to(same)
        assert_same(answers(model, images), products["coins"])


def test_a_switch_to_zero_shot(products, make_lightning_model: MakeModel, images: Tensor, tmp_path: Path) -> None:
    model = make_lightning_model(class_name="brick")
    zero_shot = model.product
    expected = answers(model, images)
    model.switch_to(Product.load(tmp_path / "coins.safetensors"))
    model.switch_to(zero_shot)
    assert model.model.k_shot == 0
    assert_same(answers(model, images), expected)


def test_products_of_other_models_are_refused(
    products, make_lightning_model: MakeModel, images: Tensor, tmp_path: Path
) -> None:
    product = Product.load(tmp_path / "coins.safetensors")
    for other, message in (
        (make_lightning_model(reference_layers=(1,), class_name="x"), "reference_layers"),
        (make_lightning_model(image_size=32, class_name="x"), "image_size 64 against the model's 32"),
        (make_lightning_model(quick_gelu=True, class_name="x", adapter=None), "quick_gelu"),
        (
            make_lightning_model(class_name="x", post_processor=PostProcessor()),
            "post_processor 'AprilGanPostProcessor' against 'PostProcessor'",
        ),
        (make_lightning_model(class_name="x", adapter=None), r"calibrated with another model: adapters '\w+' against"),
        (
            make_lightning_model(class_name="x", method=MethodOptions(map_stages=(2,))),
            r"map_stages \[2, 4\] against \[2\]",
        ),
    ):
        before = answers(other, images)
        with pytest.raises(ValueError, match=message):
            other.switch_to(product)
        assert other.model.class_name == "x"
        assert_same(answers(other, images), before)


def test_a_zero_shot_product_of_another_size_is_refused(make_lightning_model: MakeModel) -> None:
    product = make_lightning_model(class_name="coin", image_size=32).product
    with pytest.raises(ValueError, match="image_size 32 against 64"):
        make_lightning_model(class_name="x").switch_to(product)


def test_a_damaged_product_changes_nothing(
    products, make_lightning_model: MakeModel, images: Tensor, tmp_path: Path
) -> None:
    product = Product.load(tmp_path / "coins.safetensors")
    damaged = replace(product, tensors={**product.tensors, "model.state.map_range": torch.zeros(3)})
    model = make_lightning_model(class_name="x")
    before = answers(model, images)
    with pytest.raises(ValueError, match="coins"):
        model.switch_to(damaged)
    assert model.model.class_name == "x"
    assert_same(answers(model, images), before)
    facts = {name: value for name, value in product.facts.items() if name != "origin"}
    replace(product, facts=facts).save(tmp_path / "without.safetensors")
    with pytest.raises(ValueError, match="lacks origin"):
        Product.load(tmp_path / "without.safetensors")


@pytest.mark.parametrize("k_shot", [0, 1])
def test_a_checkpoint_keeps_the_product(
    products,
    make_lightning_model: MakeModel,
    sample_root: Path,
    engine: Engine,
    images: Tensor,
    tmp_path: Path,
    k_shot: int,
) -> None:
    source = sample_root / "brick" / "train" / "good" if k_shot else None
    model = make_lightning_model(class_name="something", k_shot=k_shot, few_shot_source=source)
    model.switch_to(Product.load(tmp_path / "coins.safetensors"))
    engine.predict(model, data_path=sample_root / "coins/test/good")
    engine.trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = AprilGan.load_from_checkpoint(tmp_path / "model.ckpt")
    loaded.prepare()
    assert_same(answers(loaded, images), products["coins"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_products_do_not_depend_on_the_precision(
    products, make_lightning_model: MakeModel, images: Tensor, tmp_path: Path, dtype: torch.dtype
) -> None:
    product = Product.load(tmp_path / "coins.safetensors")
    other = make_lightning_model(class_name="x")
    other.prepare()
    other.to(dtype).switch_to(product)
    assert other.model.class_name == "coins"
    back = make_lightning_model()
    back.switch_to(other.product)
    for name in ("pred_score", "anomaly_map"):
        torch.testing.assert_close(answers(back, images)[name], products["coins"][name], atol=0.05, rtol=0)


def replaced(product: Product, part: str, **values: object) -> Product:
    return replace(product, **{part: {**getattr(product, part), **values}})


MALFORMED = {
    "half a bank": lambda product: replaced(
        product, "tensors", **{(name := "model.state.memory_banks.1.tokens"): product.tensors[name][:-1]}
    ),
    "empty bank": lambda product: replaced(
        product, "tensors", **{(name := "model.state.memory_banks.0.tokens"): product.tensors[name][:0]}
    ),
    "other shape": lambda product: replaced(product, "tensors", **{"model.state.text_features": torch.zeros(2, 3)}),
    "other type": lambda product: replaced(product, "tensors", **{"post_processor.image_min": torch.tensor(1)}),
    "no tensor": lambda product: replaced(product, "tensors", **{"post_processor.image_min": None}),
    "unknown": lambda product: replaced(product, "tensors", **{"post_processor.other": torch.zeros(1)}),
    "missing": lambda product: replace(product, tensors=dict(list(product.tensors.items())[1:])),
    "class": lambda product: replaced(product, "facts", setup={**product.facts["setup"], "class_name": None}),
    "class of another type": lambda product: replaced(
        product, "facts", setup={**product.facts["setup"], "class_name": 7}
    ),
    "references": lambda product: replaced(product, "facts", setup={**product.facts["setup"], "references": 3}),
    "shots": lambda product: replaced(product, "facts", k_shot=5),
    "origin": lambda product: replaced(product, "facts", origin={"layers": "abc"}),
    "stages": lambda product: replaced(product, "facts", reference_layers=3),
    "sensitivity": lambda product: replaced(product, "options", image_sensitivity="much"),
    "range": lambda product: replaced(product, "options", pixel_sensitivity=7.5),
    "huge": lambda product: replaced(product, "options", false_alarm_rate=10**400),
    "switch": lambda product: replaced(product, "options", enable_normalization="yes"),
    "options": lambda product: replace(product, options={}),
    "unknown option": lambda product: replaced(product, "options", colour="red"),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_product_changes_nothing(
    products, make_lightning_model: MakeModel, images: Tensor, tmp_path: Path, fault: str
) -> None:
    model = make_lightning_model()
    model.switch_to(Product.load(tmp_path / "gravel.safetensors"))
    malformed = MALFORMED[fault](Product.load(tmp_path / "coins.safetensors"))
    before = model.product
    with pytest.raises(ValueError, match="damaged"):
        model.switch_to(malformed)
    after = model.product
    assert (after.facts, after.options) == (before.facts, before.options)
    assert all(torch.equal(value, after.tensors[name]) for name, value in before.tensors.items())
    assert_same(answers(model, images), products["gravel"])


@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize("fault", ["bank", "missing", "shape", "setup"])
def test_a_malformed_state_changes_nothing(
    products, make_lightning_model: MakeModel, images: Tensor, tmp_path: Path, fault: str, is_plain: bool
) -> None:
    model = make_lightning_model()
    model.switch_to(Product.load(tmp_path / "coins.safetensors"))
    state = dict(model.state_dict())
    model.switch_to(Product.load(tmp_path / "gravel.safetensors"))
    bank = "model.state.memory_banks.1.tokens"
    if fault == "missing":
        del state[bank]
    elif fault == "setup":
        state["model._extra_state"] = {**state["model._extra_state"], "setup": {"class_name": 7}}
    else:
        name = bank if fault == "bank" else "model.adapters.fc.1.weight"
        state[name] = state[name][:-1]
    if is_plain:
        state = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    with pytest.raises(ValueError, match=r"damaged|does not fit"):
        (model.model if is_plain else model).load_state_dict(state)
    assert_same(answers(model, images), products["gravel"])
    assert model.model.class_name == "gravel"


def test_files_that_are_no_product_are_refused(make_lightning_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no existing file"):
        Product.load(tmp_path / "missing.safetensors")
    adapters = make_lightning_model().model.save_adapters(tmp_path / "adapters.safetensors")
    with pytest.raises(ValueError, match="to be a product file, but it lacks"):
        Product.load(adapters)
    (tmp_path / "damaged.safetensors").write_bytes(b"\0" * 30)
    with pytest.raises(ValueError, match=r"Could not read a product from .*damaged"):
        Product.load(tmp_path / "damaged.safetensors")
    with pytest.raises(ValueError, match="safetensors"):
        make_lightning_model().product.save(tmp_path / "product.pt")


# ---- Adding references ----------------------------------------------------------------------------------------------


def test_added_references_give_the_same_as_references_from_the_start(
    make_lightning_model: MakeModel, sample_root: Path, images: Tensor
) -> None:
    good = sample_root / "gravel" / "train" / "good"
    files = sorted(good.iterdir())
    at_once = make_lightning_model(class_name="gravel", k_shot=len(files), few_shot_source=good)
    at_once.prepare()
    later = make_lightning_model(class_name="gravel", k_shot=1, few_shot_source=files[0])
    for file in files[1:]:
        later.add_references(file)
    assert later.reference_files == tuple(map(str, files))
    assert later.model.k_shot == len(files)
    raw = [one.model.predict_raw(one.pre_processor(images), one.model.state.tensors()) for one in (later, at_once)]
    torch.testing.assert_close(*raw)


def test_adding_references_keeps_the_calibration(
    make_lightning_model: MakeModel, sample_root: Path, engine: Engine, tmp_path: Path
) -> None:
    model = make_lightning_model(k_shot=2)
    engine.validate(model, datamodule=data(sample_root, "gravel"), verbose=False)
    threshold, map_range = model.post_processor.image_threshold.clone(), model.model.map_range.clone()
    model.add_references(sample_root / "gravel" / "train" / "good")
    assert model.post_processor.image_threshold == threshold
    assert torch.equal(model.model.map_range, map_range)
    engine.validate(model, datamodule=data(sample_root, "gravel"), verbose=False)
    assert model.model.k_shot == 2 + 6  # they are not drawn anew
    assert not torch.equal(model.model.map_range, map_range)


def test_adding_references_makes_a_zero_shot_model_few_shot(
    make_lightning_model: MakeModel, sample_root: Path, images: Tensor
) -> None:
    good = sample_root / "gravel" / "train" / "good"
    model = make_lightning_model(class_name="gravel")
    model.add_references(good)
    expected = make_lightning_model(class_name="gravel", k_shot=6, few_shot_source=good)
    expected.prepare()
    assert_same(answers(model, images), answers(expected, images))
    assert model.learning_type == LearningType.FEW_SHOT


def test_added_references_do_not_set_the_class(
    make_lightning_model: MakeModel, sample_root: Path, engine: Engine
) -> None:
    model = make_lightning_model()
    model.add_references(sample_root / "gravel" / "train" / "good")
    engine.validate(model, datamodule=data(sample_root, "gravel"), verbose=False)
    assert model.model.class_name == "gravel"
    assert model.model.k_shot == 6


def test_unreadable_references_change_nothing(
    make_lightning_model: MakeModel, sample_root: Path, tmp_path: Path
) -> None:
    model = make_lightning_model(class_name="gravel", k_shot=1, few_shot_source=sample_root / "gravel/train/good")
    model.prepare()
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png"):
        model.add_references(tmp_path)
    with pytest.raises(ValueError, match=r"argument `source`.*does not exist"):
        model.add_references(tmp_path / "nowhere")
    assert model.model.k_shot == 1
