# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The plain model: the authors' recorded outputs, its state, and its error messages."""

import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import InferenceBatch
from torch import Tensor

from anomalib_aprilgan import AprilGanModel
from anomalib_aprilgan.method import text_features
from anomalib_aprilgan.method.clip import Clip
from anomalib_aprilgan.method.losses import adapter_loss
from anomalib_aprilgan.method.options import MethodOptions
from anomalib_aprilgan.method.scoring import RawPrediction, image_score

Make = Callable[..., AprilGanModel]


def random_images(number: int = 2, size: int = 96, seed: int = 0) -> Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(seed))


def random_features(seed: int = 0) -> Tensor:
    """Random text features, for tests that do not need a real class."""
    features = torch.randn(2, 32, generator=torch.Generator().manual_seed(seed))
    return features / features.norm(dim=-1, keepdim=True)


def set_class(model: AprilGanModel, features: Tensor) -> AprilGanModel:
    """Set text features directly, which is faster than encoding a prompt ensemble."""
    model._text._computed["something"] = features
    model.setup("something")
    return model


def raw_prediction(model: AprilGanModel, images: Tensor) -> RawPrediction:
    return model.predict_raw(images, model.state.tensors())


def assert_same_prediction(found: InferenceBatch, expected: InferenceBatch, atol: float = 0) -> None:
    torch.testing.assert_close(found.pred_score, expected.pred_score, atol=atol, rtol=0)
    torch.testing.assert_close(found.anomaly_map, expected.anomaly_map, atol=atol, rtol=0)


@pytest.fixture
def zero_shot(golden: dict[str, Any], make_model: Make) -> AprilGanModel:
    model = make_model()
    model.setup(golden["cls"])
    return model


@pytest.fixture
def few_shot(golden: dict[str, Any], zero_shot: AprilGanModel) -> AprilGanModel:
    zero_shot.setup(reference_images=golden["inputs"][golden["refs"]])
    return zero_shot


# ---- The authors' outputs -----------------------------------------------------------------------------------------


def test_text_features_equal_the_authors(golden, make_model):
    found = make_model().encode_classes(golden["classes"])
    torch.testing.assert_close(found, golden["text"], atol=1e-4, rtol=0)


def test_the_zero_shot_prediction_equals_the_authors(golden, zero_shot):
    prediction = zero_shot(golden["inputs"][golden["test"]])
    assert isinstance(prediction, InferenceBatch)
    torch.testing.assert_close(prediction.pred_score, golden["prob"].float(), atol=1e-4, rtol=0)
    found = prediction.anomaly_map[:, ::2, ::2] * len(golden["layers"])
    torch.testing.assert_close(found, golden["zero_map"], atol=1e-4, rtol=0)


def test_the_few_shot_prediction_equals_the_authors(golden, few_shot):
    images = golden["inputs"][golden["test"]]
    raw = few_shot.predict_raw(images, few_shot.state.tensors())
    divisor = len(golden["layers"])
    found = raw.anomaly_map[:, ::2, ::2] * divisor
    torch.testing.assert_close(found, golden["zero_map"] + golden["few_map"], atol=1e-4, rtol=0)
    torch.testing.assert_close(raw.map_max * divisor, golden["map_max"], atol=1e-4, rtol=0)

    few_shot.calibrate(raw.map_max.min(), raw.map_max.max())
    prediction = few_shot(images)
    torch.testing.assert_close(prediction.pred_score, golden["few_score"].float(), atol=2e-4, rtol=0)
    torch.testing.assert_close(prediction.anomaly_map, raw.anomaly_map)


def test_six_training_steps_equal_the_authors(golden, make_model):
    model = make_model().train()
    optimizer = torch.optim.Adam(model.adapters.parameters(), lr=1e-3, betas=(0.5, 0.999))
    text_features = model.encode_classes(golden["batch_classes"])
    losses = []
    for batch in golden["batches"]:
        loss = adapter_loss(model.stage_maps(golden["inputs"][batch], text_features), golden["gt"][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    torch.testing.assert_close(torch.stack(losses), golden["losses"], rtol=1e-4, atol=0)
    state = model.adapters.state_dict()
    assert set(state) == set(golden["adapter_after"])
    for name, expected in golden["adapter_after"].items():
        torch.testing.assert_close(state[name], expected, atol=1e-4, rtol=0)


# ---- Maps and scores ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_references", [False, True], ids=["zero-shot", "few-shot"])
def test_a_batch_gives_the_same_as_its_images_one_by_one(golden, make_model, with_references):
    model = set_class(make_model(), golden["text"][1])
    if with_references:
        model.setup(reference_images=golden["inputs"][golden["refs"]])
    images = golden["inputs"][golden["test"]][:4]
    singles = [model(image[None]) for image in images]
    batch = model(images)
    torch.testing.assert_close(batch.pred_score, torch.cat([one.pred_score for one in singles]), atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.anomaly_map, torch.cat([one.anomaly_map for one in singles]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("number", [1, 5])
@pytest.mark.parametrize("image_size", [64, 96, 40])
@pytest.mark.parametrize("with_references", [False, True], ids=["zero-shot", "few-shot"])
def test_shapes_and_ranges(make_model, number, image_size, with_references):
    model = set_class(make_model(image_size=image_size), random_features())
    if with_references:
        model.setup(reference_images=random_images(3, image_size, seed=1))
    prediction = model(random_images(number, image_size))
    assert prediction.pred_score.shape == (number,)
    assert prediction.anomaly_map.shape == (number, image_size, image_size)
    assert model.largest_map_value == (3 if with_references else 1)
    for values, largest in ((prediction.pred_score, 1), (prediction.anomaly_map, model.largest_map_value)):
        assert values.min() >= 0
        assert values.max() <= largest
        assert not values.requires_grad
    assert prediction.anomaly_map.std() > 1e-3, "a constant map has seen no patches"


def test_a_reference_image_has_distance_zero_to_itself(make_model):
    model, images = set_class(make_model(), random_features()), random_images()
    without = raw_prediction(model, images).anomaly_map
    model.setup(reference_images=images)
    torch.testing.assert_close(raw_prediction(model, images).anomaly_map, without, atol=1e-5, rtol=0)
    model.setup(reference_images=random_images(seed=1))
    assert (raw_prediction(model, images).anomaly_map - without).max() > 0.01


def test_reference_layers_default_to_layers(make_model):
    model = make_model(reference_layers=None)
    assert model.reference_layers == model.layers == (2, 4)
    explicit = make_model(reference_layers=(2, 4))
    for one in (model, explicit):
        set_class(one, random_features()).setup(reference_images=random_images(seed=1))
    assert_same_prediction(model(random_images()), explicit(random_images()))


@pytest.mark.parametrize(("reference_layers", "largest"), [((1,), 2), ((1, 2, 3, 4), 5)])
def test_any_number_of_reference_layers(make_model, reference_layers, largest):
    """The distances are summed over the reference stages, then divided by the number of stages with adapters."""
    model, images = set_class(make_model(reference_layers=reference_layers), random_features()), random_images()
    zero_shot_map = raw_prediction(model, images).anomaly_map
    model.setup(reference_images=random_images(seed=1))
    assert model.largest_map_value == largest
    total = torch.zeros(2, 96, 96)
    for layer in reference_layers:
        single = set_class(make_model(reference_layers=(layer,)), random_features())
        single.setup(reference_images=random_images(seed=1))
        total += raw_prediction(single, images).anomaly_map - zero_shot_map
    torch.testing.assert_close(raw_prediction(model, images).anomaly_map - zero_shot_map, total, atol=1e-5, rtol=0)


def test_each_stage_has_its_own_adapter(make_model):
    """Each adapter alone on its stage gives that stage's map; the model's map is their mean."""
    model = set_class(make_model(layers=(1, 3), adapter=None), random_features())
    singles = []
    for number, layer in enumerate((1, 3)):
        single = set_class(make_model(layers=(layer,), adapter=None), random_features())
        single.adapters.fc[0].load_state_dict(model.adapters.fc[number].state_dict())
        singles.append(single(random_images()).anomaly_map)
    torch.testing.assert_close(model(random_images()).anomaly_map, sum(singles) / 2)


def test_the_zero_shot_image_score_does_not_depend_on_adapters(make_model):
    first, second = (set_class(make_model(adapter=adapter), random_features()) for adapter in (None, None))
    with torch.no_grad():
        second.adapters.fc[0].weight.mul_(-1)
    first, second = first(random_images()), second(random_images())
    assert torch.equal(first.pred_score, second.pred_score)
    assert not torch.equal(first.anomaly_map, second.anomaly_map)


def test_a_prediction_needs_one_pass_through_the_tower(make_model):
    model, calls = set_class(make_model(), random_features()), []
    model.setup(reference_images=random_images(seed=1))
    model.clip.visual.conv1.register_forward_hook(lambda *_: calls.append(1))
    model(random_images())
    assert len(calls) == 1


def test_similarities_are_computed_without_autocast(make_model):
    """In bfloat16, similarities times 100 have a resolution of a quarter only."""
    model = set_class(make_model(), random_features())
    model.setup(reference_images=random_images(seed=1))
    with torch.autocast("cpu", torch.bfloat16):
        prediction = model(random_images())
    assert prediction.pred_score.dtype == prediction.anomaly_map.dtype == torch.float32
    assert len(prediction.anomaly_map.unique()) > 1000, "there are at most 256 bfloat16 values in a power of two"
    assert_same_prediction(prediction, model(random_images()), atol=0.1)


def test_inputs_are_not_modified(make_model):
    model, images, references = set_class(make_model(), random_features()), random_images(), random_images(seed=1)
    copies = images.clone(), references.clone()
    model.setup(reference_images=references)
    model(images)
    assert torch.equal(images, copies[0])
    assert torch.equal(references, copies[1])


def test_predicting_does_not_use_the_global_random_state(make_model):
    model = set_class(make_model(), random_features())
    state = torch.get_rng_state(), random.getstate()
    model.setup("cable", random_images())
    model(random_images())
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]


# ---- Training -----------------------------------------------------------------------------------------------------


def test_only_the_adapters_get_gradients(make_model):
    model = make_model().train()
    text_features = torch.stack([random_features(), random_features(seed=1)])
    maps = model.stage_maps(random_images(), text_features)
    assert [stage.shape for stage in maps] == [(2, 2, 96, 96)] * 2
    adapter_loss(maps, torch.ones(2, 96, 96)).backward()
    with_gradients = {name for name, value in model.named_parameters() if value.grad is not None}
    assert with_gradients == {f"adapters.fc.{number}.{name}" for number in (0, 1) for name in ("weight", "bias")}
    assert all(value.grad.abs().max() > 0 for value in model.adapters.parameters())
    assert with_gradients == {name for name, value in model.named_parameters() if value.requires_grad}


def test_each_image_of_a_training_batch_has_its_own_class(make_model):
    model, images = make_model(), random_images()
    features = [random_features(seed) for seed in (0, 1)]
    maps = model.stage_maps(images, torch.stack(features))
    for number in (0, 1):
        alone = model.stage_maps(images[number : number + 1], features[number])
        for stage, expected in zip(maps, alone, strict=True):
            torch.testing.assert_close(stage[number : number + 1], expected, atol=1e-5, rtol=0)


def test_training_and_prediction_compute_the_same_maps(make_model):
    model = set_class(make_model(), random_features())
    maps = model.stage_maps(random_images(), random_features())
    expected = torch.stack([stage[:, 1] for stage in maps]).mean(dim=0)
    torch.testing.assert_close(model(random_images()).anomaly_map, expected)


def test_text_features_of_inference_mode_can_be_trained_with(make_model):
    """Validation computes and caches text features in inference mode, and training uses the cache."""
    model = make_model()
    with torch.inference_mode():
        model.encode_class("cable")
    adapter_loss(model.stage_maps(random_images(), model.encode_class("cable")), torch.ones(2, 96, 96)).backward()
    assert model.adapters.fc[0].weight.grad is not None


def test_fresh_adapters_follow_the_global_seed(make_model):
    """As for other modules of torch, the same seed gives the same weights."""

    def fresh(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return make_model(adapter=None).adapters.fc[1].weight.detach()

    assert torch.equal(fresh(0), fresh(0))
    assert not torch.equal(fresh(0), fresh(1))


# ---- Setup --------------------------------------------------------------------------------------------------------


def test_setup_keeps_parts_that_are_not_given(golden, few_shot):
    few_shot.calibrate(0.1, 0.7)
    few_shot.setup("cable")
    torch.testing.assert_close(few_shot.text_features, golden["text"][0], atol=1e-4, rtol=0)
    assert (few_shot.class_name, few_shot.k_shot, few_shot.is_few_shot) == ("cable", 3, True)
    torch.testing.assert_close(few_shot.map_range, torch.tensor([0.1, 0.7]))
    few_shot.setup(reference_images=random_images(1))
    assert (few_shot.class_name, few_shot.k_shot) == ("cable", 1)
    few_shot.setup()
    assert (few_shot.class_name, few_shot.k_shot) == ("cable", 1)


def test_new_references_reset_the_calibration(make_model):
    model = make_model()
    assert model.map_range.tolist() == [0, 1]
    model.setup(reference_images=random_images())
    assert model.map_range.tolist() == [0, 3]
    model.calibrate(0.25, torch.tensor(0.75))
    assert model.map_range.tolist() == [0.25, 0.75]
    model.setup(reference_images=random_images())
    assert model.map_range.tolist() == [0, 3]


def test_the_few_shot_score_is_defined_without_calibration(make_model):
    model = set_class(make_model(), random_features())
    model.setup(reference_images=random_images(seed=1))
    raw, prediction = raw_prediction(model, random_images()), model(random_images())
    torch.testing.assert_close(prediction.pred_score, 0.5 * (raw.probability + raw.map_max / 3))


def test_calibration_changes_nothing_but_the_few_shot_score(make_model):
    model = set_class(make_model(), random_features())
    before = model(random_images())
    model.calibrate(0.4, 0.5)
    assert_same_prediction(model(random_images()), before)
    model.setup(reference_images=random_images(seed=1))
    before = model(random_images())
    model.calibrate(0.4, 0.5)
    after, raw = model(random_images()), raw_prediction(model, random_images())
    assert torch.equal(after.anomaly_map, before.anomaly_map)
    expected = image_score(raw.probability, raw.map_max, torch.tensor([0.4, 0.5]))
    torch.testing.assert_close(after.pred_score, expected)


def test_references_are_encoded_one_by_one_with_the_same_result(make_model):
    """This limits memory to the activations of one image."""
    model, batch_sizes = make_model(), []
    model.clip.visual.conv1.register_forward_hook(lambda module, inputs, _: batch_sizes.append(len(inputs[0])))
    images = random_images(3)
    model.setup(reference_images=images)
    assert batch_sizes == [1, 1, 1]
    for layer, bank in zip((1, 3), model.memory_banks, strict=True):
        expected = model.clip.encode_image(images, {layer}).tokens[layer].flatten(0, 1)
        expected = expected / expected.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(bank.tokens, expected, atol=1e-5, rtol=0)


def test_references_of_inference_mode_can_be_used_outside(make_model):
    model = set_class(make_model(), random_features())
    with torch.inference_mode():
        model.setup("something", random_images(seed=1))
    state = {name: value.clone() if isinstance(value, Tensor) else value for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    assert model(random_images()).pred_score.isfinite().all()


def test_a_class_is_encoded_once(make_model):
    model, calls = make_model(), []
    encode = model.clip.encode_text
    model.clip.encode_text = lambda sentences: calls.append(1) or encode(sentences)
    first = model.encode_class("cable")
    count = len(calls)
    assert torch.equal(model.encode_classes(["cable", "cable"]), torch.stack([first, first]))
    assert len(calls) == count


def test_forward_before_setup_is_refused(make_model):
    with pytest.raises(RuntimeError, match="setup"):
        make_model()(random_images())


def test_forward_with_references_but_without_a_class_is_refused(make_model):
    model = make_model()
    model.setup(reference_images=random_images())
    with pytest.raises(RuntimeError, match="class"):
        model(random_images())


@pytest.mark.parametrize("class_name", ["", " "])
def test_an_empty_class_is_refused(make_model, class_name):
    model = make_model()
    with pytest.raises(ValueError, match="class_name"):
        model.setup(class_name)
    assert model.class_name is None


WRONG_SHAPES = [(3, 96, 96), (1, 3, 64, 64), (1, 1, 96, 96), (1, 3, 96, 64), (1, 96, 96, 3), (0, 3, 96, 96)]


@pytest.mark.parametrize("shape", WRONG_SHAPES, ids=str)
@pytest.mark.parametrize("call", ["forward", "stage_maps"])
def test_images_of_another_shape_are_refused(make_model, shape, call):
    model = set_class(make_model(), random_features())
    with pytest.raises(ValueError, match=r"`images` to be a tensor of shape \(N, 3, 96, 96\)") as error:
        model(torch.zeros(shape)) if call == "forward" else model.stage_maps(torch.zeros(shape), random_features())
    assert str(shape) in str(error.value)


def test_images_that_are_not_normalised_are_refused(make_model):
    model = set_class(make_model(), random_features())
    images = random_images()
    wrong = {"uint8": (images * 20).to(torch.uint8), "int64": images.long(), "[0, 255]": images.abs() * 255}
    wrong |= {str(value): torch.where(images > 1, value, images) for value in (float("nan"), float("inf"), -100.0)}
    calls: dict[str, list[Callable[..., Any]]] = {
        "images": [model, lambda given: model.stage_maps(given, random_features())],
        "reference_images": [model.encode_references],
    }
    for name, functions in calls.items():
        for call in functions:
            call(images)
            for case, given in wrong.items():
                with pytest.raises(ValueError, match=rf"`{name}` to be floats that are normalised.*but got") as error:
                    call(given)
                assert "pre-processor" in str(error.value), case
            with pytest.raises(ValueError, match=rf"`{name}` to be a tensor of shape .* but got ndarray"):
                call(images.numpy())


def test_images_are_converted_to_the_precision_of_the_model(make_model):
    model = set_class(make_model(), random_features())
    images = random_images().half()  # so that all precisions hold the same values
    expected = model(images.float())
    for dtype in (torch.half, torch.double):
        found = model(images.to(dtype))
        assert found.anomaly_map.dtype == torch.float32
        assert torch.equal(found.anomaly_map, expected.anomaly_map)
        assert torch.equal(found.pred_score, expected.pred_score)


@pytest.mark.parametrize("shape", WRONG_SHAPES, ids=str)
def test_reference_images_of_another_shape_are_refused(make_model, shape):
    model = make_model()
    model.setup(reference_images=random_images())
    with pytest.raises(ValueError, match=r"`reference_images` to be a tensor of shape \(N, 3, 96, 96\)") as error:
        model.setup(reference_images=torch.zeros(shape))
    assert str(shape) in str(error.value)
    assert model.k_shot == 2, "a refused setup must leave the bank as it was"


# ---- Stages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["layers", "reference_layers"])
@pytest.mark.parametrize("stages", [(), (0, 2), (-1,), (2, 2), (4, 2), (5,), (2, 24), (1.0, 2.0), ("1",), "12", 4])
def test_invalid_stages_are_refused(make_model, name, stages):
    with pytest.raises(ValueError, match=f"`{name}`") as error:
        make_model(adapter=None, **{name: stages})
    assert repr(stages) in str(error.value)


@pytest.mark.parametrize("stages", [[1, 3], (1, 3), range(1, 4, 2)], ids=["list", "tuple", "range"])
def test_stages_may_come_in_any_sequence(make_model, stages):
    model = make_model(layers=stages, reference_layers=stages, adapter=None)
    assert (model.layers, model.reference_layers) == ((1, 3), (1, 3))


# ---- Adapters -----------------------------------------------------------------------------------------------------


def test_saved_adapters_can_be_loaded_by_the_same_model(make_model, golden, tmp_path):
    model = make_model()
    model.mark_trained(("MVTecAD/cable",))
    path = model.save_adapters(tmp_path / "adapters.safetensors")
    restored = make_model(adapter=path, image_size=64)
    assert restored.trained_on == ("MVTecAD/cable",)
    assert all(torch.equal(value, golden["adapter_before"][n]) for n, value in restored.adapters.state_dict().items())


@pytest.mark.parametrize(
    ("overrides", "sides"),
    [
        ({"layers": (1, 3)}, ("(2, 4)", "(1, 3)")),
        ({"layers": (2, 3, 4)}, ("(2, 4)", "(2, 3, 4)")),
        ({"quick_gelu": True}, ("quick_gelu False", "quick_gelu=True")),
        ({"pretrained": None}, ("clip.pt", "pretrained=None")),
    ],
    ids=["layers", "number of layers", "quick_gelu", "weights"],
)
def test_saved_adapters_of_another_model_are_refused(make_model, tmp_path, overrides, sides):
    path = make_model().save_adapters(tmp_path / "adapters.safetensors")
    with pytest.raises(ValueError, match="not fit the model") as error:
        make_model(adapter=path, **overrides)
    assert str(path) in str(error.value)
    assert all(side in str(error.value) for side in sides), str(error.value)


def test_the_authors_adapters_of_another_shape_are_refused(make_model, official_adapter, tmp_path):
    with pytest.raises(ValueError, match=r"2 adapters of shape \(32, 64\) against the model's 3 adapters"):
        make_model(layers=(1, 2, 3))
    content = {"trainable_linearlayer": {"fc.0.weight": torch.zeros(768, 1024), "fc.0.bias": torch.zeros(768)}}
    torch.save(content, tmp_path / "large.pth")
    with pytest.raises(ValueError, match=r"1 adapters of shape \(768, 1024\) against the model's 1 adapters") as error:
        make_model(layers=(4,), adapter=tmp_path / "large.pth")
    assert "(32, 64)" in str(error.value)


def test_the_authors_adapters_belong_to_gelu(make_model):
    with pytest.raises(ValueError, match="quick_gelu False against the model's True"):
        make_model(quick_gelu=True)


def test_refused_adapters_do_not_change_the_present_ones(make_model, official_adapter):
    model = make_model(layers=(2, 3, 4), adapter=None)
    before = {name: value.clone() for name, value in model.adapters.state_dict().items()}
    with pytest.raises(ValueError, match="not fit"):
        model.load_adapters(official_adapter)
    assert all(torch.equal(value, before[name]) for name, value in model.adapters.state_dict().items())


# ---- State --------------------------------------------------------------------------------------------------------


def name_references(model: AprilGanModel, files: tuple[str, ...]) -> None:
    references = replace(model.state.record.references, files=files)
    model.state.replace(replace(model.state.record, references=references))


def through_a_file(model: AprilGanModel, folder: Path) -> dict[str, Any]:
    torch.save(model.state_dict(), folder / "model.pt")
    return torch.load(folder / "model.pt", weights_only=True)


@pytest.mark.parametrize("kind", ["zero-shot", "few-shot", "calibrated"])
def test_a_restored_model_gives_the_same_predictions(make_model, tmp_path, kind):
    model = make_model()
    model.mark_trained(("Visa/pcb1",))  # removes the class, whose thresholds belong to other adapters
    set_class(model, random_features())
    if kind != "zero-shot":
        model.setup(reference_images=random_images(3, seed=1))
        name_references(model, ("a.png", "b.png", "c.png"))
    if kind == "calibrated":
        model.calibrate(0.3, 0.6)
    state = through_a_file(model, tmp_path)
    for restored in (make_model(adapter=None), set_class(make_model(), random_features(seed=1))):
        restored.load_state_dict(state)
        assert_same_prediction(restored(random_images()), model(random_images()))
        for name in ("class_name", "reference_files", "trained_on", "k_shot"):
            assert getattr(restored, name) == getattr(model, name)


def test_a_zero_shot_state_empties_the_banks(make_model, tmp_path):
    model = set_class(make_model(), random_features())
    restored = make_model()
    restored.setup(reference_images=random_images())
    restored.load_state_dict(through_a_file(model, tmp_path))
    assert not restored.is_few_shot
    assert_same_prediction(restored(random_images()), model(random_images()))


def test_a_state_dict_does_not_contain_clip(make_model, tmp_path):
    model = set_class(make_model(), random_features())
    state = through_a_file(model, tmp_path)
    assert set(state) == {
        "state.text_features",
        "state.map_range",
        "_extra_state",
        *(f"adapters.fc.{number}.{name}" for number in (0, 1) for name in ("weight", "bias")),
        *(f"state.memory_banks.{number}.tokens" for number in (0, 1)),
    }


@pytest.mark.parametrize(
    ("overrides", "sides"),
    [
        ({"layers": (1, 3)}, ("(2, 4)", "(1, 3)")),
        ({"layers": (2, 3, 4)}, ("(2, 4)", "(2, 3, 4)")),
        ({"reference_layers": (2, 4)}, ("(1, 3)", "(2, 4)")),
        ({"reference_layers": (1,)}, ("(1, 3)", "(1,)")),
        ({"quick_gelu": True}, ("quick_gelu", "False", "True")),
        ({"pretrained": None}, ("clip.pt", "pretrained=None")),
    ],
    ids=["layers", "number of layers", "reference layers", "number of reference layers", "quick_gelu", "weights"],
)
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reversed"])
def test_a_state_of_another_model_is_refused_with_both_sides(make_model, tmp_path, overrides, sides, reverse):
    models = [make_model(adapter=None), make_model(adapter=None, **overrides)]
    saved, loading = reversed(models) if reverse else models
    with pytest.raises(ValueError, match="not fit the model") as error:
        loading.load_state_dict(through_a_file(saved, tmp_path))
    assert all(side in str(error.value) for side in sides), str(error.value)


def test_a_refused_state_changes_nothing(make_model, tmp_path):
    state = through_a_file(set_class(make_model(reference_layers=(4,)), random_features(seed=1)), tmp_path)
    model = set_class(make_model(), random_features())
    before = model(random_images())
    with pytest.raises(ValueError, match="not fit"):
        model.load_state_dict(state)
    assert_same_prediction(model(random_images()), before)


def test_a_zero_shot_state_fits_another_image_size(make_model, tmp_path):
    """An adapter maps each token separately."""
    state = through_a_file(set_class(make_model(), random_features()), tmp_path)
    restored = make_model(image_size=64, adapter=None)
    restored.load_state_dict(state)
    expected = set_class(make_model(image_size=64), random_features())
    assert_same_prediction(restored(random_images(size=64)), expected(random_images(size=64)))


@pytest.mark.parametrize("files", [("a.png", "b.png", "c.png"), ()], ids=["files known", "files unknown"])
def test_memory_banks_of_another_image_size_are_refused(make_model, tmp_path, files):
    model = set_class(make_model(), random_features())
    model.setup(reference_images=random_images(3))
    name_references(model, files)
    with pytest.raises(ValueError, match="image_size 96 against the model's 64"):
        make_model(image_size=64).load_state_dict(through_a_file(model, tmp_path))


def test_a_state_with_random_clip_weights_can_be_restored(make_model, tmp_path):
    """Random CLIP weights are the same each time, so they have the same fingerprint."""
    model = set_class(make_model(pretrained=None), random_features())
    restored = make_model(pretrained=None, adapter=None)
    restored.load_state_dict(through_a_file(model, tmp_path))
    assert_same_prediction(restored(random_images()), model(random_images()))


# ---- Method options -----------------------------------------------------------------------------------------------


def test_the_map_is_the_mean_of_the_chosen_stages(
    make_model: Callable[..., AprilGanModel], golden: dict[str, Any]
) -> None:
    images = golden["inputs"][:2]
    every = make_model()
    every.setup("bottle")
    stages = every.stage_maps(images, every.text_features)
    for number, stage in enumerate(every.layers):
        alone = make_model(method=MethodOptions(map_stages=(stage,)))
        alone.setup("bottle")
        assert torch.allclose(alone(images).anomaly_map, stages[number][:, 1], atol=1e-6)
        assert torch.allclose(alone(images).pred_score, every(images).pred_score)


def test_memory_banks_alone_give_the_map_that_they_add(
    make_model: Callable[..., AprilGanModel], golden: dict[str, Any]
) -> None:
    images, references = golden["inputs"][:2], golden["inputs"][-3:]
    zero_shot, few_shot, alone = make_model(), make_model(), make_model(method=MethodOptions(map_stages=()))
    zero_shot.setup("bottle")
    few_shot.setup("bottle", references)
    alone.setup("bottle")
    with pytest.raises(RuntimeError, match="map needs memory banks"):
        alone(images)
    alone.setup(reference_images=references)
    expected = few_shot(images).anomaly_map - zero_shot(images).anomaly_map
    assert torch.allclose(alone(images).anomaly_map, expected, atol=1e-6)
    assert alone.largest_map_value == few_shot.largest_map_value - 1


def test_single_prompts_are_one_sentence_per_state(make_model: Callable[..., AprilGanModel]) -> None:
    model = make_model(method=MethodOptions(prompts="single"))
    model.setup("bottle")
    sentences = ["a photo of a flawless bottle.", "a photo of a damaged bottle."]
    expected = torch.nn.functional.normalize(model.clip.encode_text(sentences), dim=-1)
    assert torch.allclose(model.text_features, expected, atol=1e-6)
    ensemble = make_model()
    ensemble.setup("bottle")
    assert not torch.allclose(ensemble.text_features, expected, atol=1e-2)


def test_clip_projection_replaces_the_adapters(
    make_model: Callable[..., AprilGanModel], golden: dict[str, Any], tmp_path: Path
) -> None:
    """The projected tokens of the last stage must equal open_clip's."""
    model = make_model(adapter=None, method=MethodOptions(projection="clip"), layers=(4,), reference_layers=(4,))
    images = golden["inputs"][:2]
    model.setup("bottle")
    visual = model.clip.visual
    visual.output_tokens = True
    _, tokens = visual(images)
    tokens = torch.nn.functional.normalize(tokens @ visual.proj, dim=-1)
    logits = 100 * tokens @ model.text_features.T
    assert torch.allclose(model(images).anomaly_map[:, 0, 0], logits[:, 0].softmax(dim=-1)[:, 1], atol=1e-5)
    assert not list(model.adapters.parameters())
    with pytest.raises(RuntimeError, match="projection='clip'"):
        model.save_adapters(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("argument", "value"),
    [("map_stages", (3,)), ("map_stages", (2, 2)), ("map_stages", "2"), ("prompts", "many"), ("projection", "none")],
)
def test_unknown_options_are_refused(make_model: Callable[..., AprilGanModel], argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"`{argument}`"):
        make_model(method=MethodOptions(**{argument: value}))


def test_the_text_features_of_a_limited_number_of_classes_are_kept(
    make_model: Callable[..., AprilGanModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_features, "LARGEST_CACHE", 3)
    model, encoded = make_model(), []
    encode_text = Clip.encode_text
    monkeypatch.setattr(Clip, "encode_text", lambda *args: encoded.append(args[1][0]) or encode_text(*args))
    first = model.encode_class("a")
    for name in "bcabad":  # "a" is used again, so that it stays
        model.encode_class(name)
    assert list(model._text._computed) == ["b", "a", "d"]
    assert len(encoded) == 2 * 4, "each class once"
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda number: (number % 7, model.encode_class(chr(97 + number % 7))), range(40)))
    assert len(model._text._computed) == 3
    assert all(torch.equal(value, first) for number, value in results if number == 0)
    assert pickle.loads(pickle.dumps(model._text)).of_class("a", model.clip).equal(first.cpu())  # noqa: S301


# ---- Text features on disk ------------------------------------------------------------------------------------------


def test_a_second_model_needs_no_text_tower_for_a_known_class(make_model, tmp_path, monkeypatch):
    """Text features must be the same bit by bit. Class names do not appear on disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, second = make_model(), make_model()
    first.setup("secret part")
    second.setup("secret part")
    assert first.clip.text.is_loaded
    assert not second.clip.text.is_loaded
    assert torch.equal(first.text_features, second.text_features)
    second.setup("another part")
    assert second.clip.text.is_loaded
    stored = list((tmp_path / "anomalib-aprilgan/text").rglob("*.safetensors"))
    assert len(stored) == 2
    assert all(b"secret" not in path.read_bytes() and "secret" not in path.name for path in stored)
    assert sum(path.stat().st_size for path in stored) < 10_000


def test_stored_text_features_belong_to_weights_activation_and_sentences(make_model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def is_known(**overrides: Any) -> bool:
        model = make_model(adapter=None, **overrides)
        model.setup("cable")
        return not model.clip.text.is_loaded

    assert not is_known()
    assert is_known()
    assert is_known(image_size=64)
    assert not is_known(quick_gelu=True)
    assert not is_known(pretrained=None)
    assert not is_known(method=MethodOptions(prompts="single"))
    for path in (tmp_path / "anomalib-aprilgan/text").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert not is_known()
    assert is_known()


def test_text_features_need_no_place_on_disk(make_model, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # nothing can be written below a file
    model = make_model()
    model.setup("cable")
    assert model.text_features.norm() > 0
    assert caplog.text == ""
