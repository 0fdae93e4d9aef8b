# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Reduced memory banks: the selection of tokens, and models whose banks are bounded."""

import copy
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.deploy import TorchInferencer
from anomalib.engine import Engine
from torch import Tensor
from torch.nn.functional import normalize

from anomalib_aprilgan import AprilGan, AprilGanModel, Product
from anomalib_aprilgan.coreset import select_coreset
from anomalib_aprilgan.integration.calibration import score_normal_images
from anomalib_aprilgan.integration.references import read_references
from anomalib_aprilgan.method.memory_bank import MemoryBank
from anomalib_aprilgan.method.options import MethodOptions

LIMIT = 100
"""Tokens of a reduced bank. An image has 64 tokens."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bounded(limit: int = LIMIT) -> MethodOptions:
    return MethodOptions(largest_bank=limit)


# ---- Selection ------------------------------------------------------------------------------------------------------


def test_a_coreset_has_a_token_of_each_group() -> None:
    """A random choice of 8 of 200 tokens would miss some of the 8 groups."""
    centers = torch.eye(64)[:8]
    groups = torch.arange(200) % 50 % 8
    tokens = normalize(centers[groups] + 0.01 * noise(200, 64), dim=-1)
    selected = select_coreset(tokens, 8)
    assert selected.shape == (8, 64)
    assert sorted((selected @ centers.T).argmax(dim=1).tolist()) == list(range(8))


@pytest.mark.parametrize("size", [1, 7, 99, 100])
def test_a_coreset_consists_of_as_many_distinct_tokens(size: int) -> None:
    tokens = normalize(noise(101, 6), dim=-1)
    selected = select_coreset(tokens, size)
    assert len(selected.unique(dim=0)) == len(selected) == size
    assert all((tokens == token).all(dim=1).any() for token in selected)


@pytest.mark.parametrize("size", [5, 6])
def test_few_tokens_are_all_kept(size: int) -> None:
    tokens = normalize(noise(5, 6), dim=-1)
    assert select_coreset(tokens, size) is tokens


def test_a_coreset_neither_uses_nor_changes_random_states() -> None:
    tokens, found = normalize(noise(100, 64), dim=-1), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        found.append(select_coreset(tokens, 20))
        after = torch.rand(1), np.random.rand()  # noqa: NPY002
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        assert after == (torch.rand(1), np.random.rand())  # noqa: NPY002
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tokens_keep_their_precision(dtype: torch.dtype) -> None:
    selected = select_coreset(normalize(noise(50, 6), dim=-1).to(dtype), 10)
    assert (selected.dtype, len(selected)) == (dtype, 10)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "10000"])
def test_wrong_limits_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"`largest_bank` to be a positive number of tokens such as 10000, or None"):
        MethodOptions(largest_bank=value)


# ---- Plain model ----------------------------------------------------------------------------------------------------


@pytest.fixture
def make_bounded(make_model: Callable[..., AprilGanModel]) -> Callable[..., AprilGanModel]:
    """Make a model with bounded banks and a class."""

    def make(limit: int = LIMIT) -> AprilGanModel:
        model = make_model(method=bounded(limit), image_size=64)
        model.state.replace(replace(model.state.record, class_name="coin"), normalize(noise(2, 32), dim=-1))
        return model

    return make


def references(number: int) -> Tensor:
    return noise(number, 3, 64, 64, seed=number)


def map_of(model: AprilGanModel) -> Tensor:
    return model(noise(2, 3, 64, 64)).anomaly_map


def test_banks_are_reduced_above_the_limit_only(make_bounded: Callable[..., AprilGanModel]) -> None:
    model, unbounded = make_bounded(), make_bounded(10000)
    for number, size, is_reduced in ((1, 64, False), (3, LIMIT, True)):
        model.setup(reference_images=references(number))
        unbounded.setup(reference_images=references(number))
        assert (model.k_shot, model.bank_size, model.has_reduced_banks) == (number, size, is_reduced)
        assert torch.equal(map_of(model), map_of(unbounded)) is not is_reduced
        assert (map_of(model) >= map_of(unbounded) - 1e-6).all(), "fewer tokens are farther away"
    for bank, complete in zip(model.state.banks, unbounded.state.banks, strict=True):
        assert torch.equal(bank.tokens, select_coreset(complete.tokens, LIMIT))


def test_added_references_count_although_the_bank_does_not_grow(make_bounded: Callable[..., AprilGanModel]) -> None:
    model = make_bounded()
    for added, number, size in ((1, 1, 64), (2, 3, LIMIT), (2, 5, LIMIT)):
        model.add_references(references(added))
        assert (model.k_shot, {len(bank) for bank in model.state.banks}) == (number, {size})
    model.setup(reference_images=references(1))
    assert (model.k_shot, model.bank_size) == (1, 64)


def test_states_copies_and_pickles_keep_reduced_banks(
    make_bounded: Callable[..., AprilGanModel], tmp_path: Path
) -> None:
    model = make_bounded()
    model.setup(reference_images=references(3))
    restored, unbounded = make_bounded(), make_bounded(10000)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    for other in (restored, unbounded):
        other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    torch.save(unbounded.state_dict(), tmp_path / "again.pt")
    unbounded.load_state_dict(torch.load(tmp_path / "again.pt", weights_only=True))
    for other in (restored, unbounded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        assert (other.k_shot, other.bank_size) == (3, LIMIT)
        assert torch.equal(map_of(other), map_of(model))
    for other in (restored, copy.deepcopy(model)):
        other.add_references(references(1))
        assert (other.k_shot, other.bank_size) == (4, LIMIT)


def test_a_state_with_larger_banks_is_reduced(make_bounded: Callable[..., AprilGanModel]) -> None:
    complete, model, expected = make_bounded(10000), make_bounded(), make_bounded()
    complete.setup(reference_images=references(3))
    expected.setup(reference_images=references(3))
    model.load_state_dict(complete.state_dict())
    assert (model.k_shot, model.bank_size) == (3, LIMIT)
    assert torch.equal(map_of(model), map_of(expected))


@pytest.mark.parametrize("changed", [{"k_shot": 1}, {"k_shot": 0}, {"has_reduced_banks": False}])
def test_a_wrong_number_of_tokens_is_refused(
    make_bounded: Callable[..., AprilGanModel], changed: dict[str, int]
) -> None:
    model = make_bounded()
    model.setup(reference_images=references(3))
    state = model.state_dict()
    state["_extra_state"] = {**state["_extra_state"], **changed}
    with pytest.raises(ValueError, match="memory banks"):
        model.load_state_dict(state)
    assert (model.k_shot, model.bank_size) == (3, LIMIT)


def test_a_bank_without_a_limit_keeps_all_tokens() -> None:
    bank = MemoryBank(6)
    bank.add(noise(30, 10, 6))
    assert len(bank) == 300


# ---- As a model of anomalib -----------------------------------------------------------------------------------------


@pytest.fixture
def few_shot(make_lightning_model: Callable[..., AprilGan], sample_root: Path) -> Callable[..., AprilGan]:
    """Make a prepared model with four references."""

    def make(method: MethodOptions | None = None, **overrides: object) -> AprilGan:
        good = sample_root / "gravel" / "train" / "good"
        arguments = {"class_name": "gravel", "k_shot": 4, "few_shot_source": good} | overrides
        model = make_lightning_model(method=method, visualizer=False, **arguments)
        model.ensure_prepared()
        return model.eval()

    return make


def scores_of(model: AprilGan) -> Tensor:
    with torch.no_grad():
        return model(torch.rand(3, 3, 70, 80, generator=torch.Generator().manual_seed(0))).pred_score


def test_a_checkpoint_brings_the_limit(
    few_shot: Callable[..., AprilGan], sample_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = few_shot(bounded())
    engine = Engine(accelerator="cpu", devices=1, default_root_dir=tmp_path, logger=False, enable_progress_bar=False)
    engine.fit(model, datamodule=MVTecAD(sample_root, category="gravel", num_workers=0))
    restored = AprilGan.load_from_checkpoint(engine.best_model_path).eval()
    assert restored.model.method == bounded()
    assert (restored.model.k_shot, restored.model.bank_size) == (4, LIMIT)
    assert torch.equal(scores_of(restored), scores_of(model))
    caplog.clear()
    smaller = AprilGan.load_from_checkpoint(engine.best_model_path, method=bounded(50))
    assert (smaller.model.k_shot, smaller.model.bank_size) == (4, 50)
    assert "thresholds and ranges are reset" in caplog.text


def test_a_product_keeps_reduced_banks_and_belongs_to_its_limit(
    few_shot: Callable[..., AprilGan], tmp_path: Path
) -> None:
    model, other = few_shot(bounded()), few_shot(bounded(), k_shot=0, few_shot_source=None)
    product = Product.load(model.product.save(tmp_path / "gravel.safetensors"))
    other.switch_to(product)
    assert (other.model.k_shot, other.model.bank_size) == (4, LIMIT)
    assert torch.equal(scores_of(other), scores_of(model))
    with pytest.raises(ValueError, match="largest_bank 100 against None"):
        few_shot().switch_to(product)
    damaged = replace(product, facts={**product.facts, "has_reduced_banks": False})
    with pytest.raises(ValueError, match="memory banks of 4 images have"):
        other.switch_to(damaged)


def test_references_are_left_out_before_the_reduction(few_shot: Callable[..., AprilGan], sample_root: Path) -> None:
    """Held-out images are scored with the reduced banks."""
    model, complete = few_shot(bounded()), few_shot()

    def scores(module: AprilGan, held_out: list[str], left_out: tuple[str, ...]) -> Tensor:
        transform = module.pre_processor.transform

        def read(files: Sequence[str]) -> Tensor:
            return read_references(map(Path, files), transform)

        return score_normal_images(module.model, held_out, left_out, read).map_maxima

    files, new = model.reference_files, [str(sample_root / "gravel/test/good/000.png")]
    torch.testing.assert_close(scores(model, [], files), scores(complete, [], files), atol=1e-5, rtol=0)
    assert scores(model, new, ())[0] > scores(complete, new, ())[0]
    with torch.no_grad():
        raw = model.model.predict_raw(
            read_references(map(Path, new), model.pre_processor.transform), model.model.state.tensors()
        )
    torch.testing.assert_close(scores(model, new, ()), raw.map_max)


def test_an_export_holds_the_reduced_banks(
    few_shot: Callable[..., AprilGan], sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    model, complete = few_shot(bounded()), few_shot()
    assert json.loads(model.metadata["k_shot"]) == 4
    exported = model.to_torch(tmp_path)
    saved = sum(bank.tokens.numel() * 4 for bank in complete.model.state.banks)
    saved -= sum(bank.tokens.numel() * 4 for bank in model.model.state.banks)
    assert complete.to_torch(tmp_path / "complete").stat().st_size - exported.stat().st_size > 0.9 * saved
    image = sample_root / "gravel/test/good/000.png"
    found = TorchInferencer(exported, device="cpu").predict(image)
    (expected,) = Engine(logger=False, default_root_dir=tmp_path).predict(model, data_path=image)
    torch.testing.assert_close(found.anomaly_map.squeeze(), expected.anomaly_map.squeeze(), atol=1e-5, rtol=0)
