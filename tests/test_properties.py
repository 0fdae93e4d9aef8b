# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Properties that hold for whatever a user passes: images of any kind, names in any script, plain data, paths."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from anomalib_aprilgan import AprilGan, AprilGanModel, Product
from anomalib_aprilgan.comparison.folder import safe_name
from anomalib_aprilgan.files.adapter_origin import AdapterOrigin
from anomalib_aprilgan.files.paths import checked_path
from anomalib_aprilgan.integration.output_files import OutputFolder
from anomalib_aprilgan.integration.predictions import PredictionFiles, PredictionTable
from anomalib_aprilgan.method.options import MethodOptions
from anomalib_aprilgan.method.prompts import LONGEST_NAME
from anomalib_aprilgan.method.setup import Setup

MakeModel = Callable[..., AprilGan]

FEW = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
"""For the usual run: the same examples each time."""

MANY = settings(FEW, max_examples=1000, derandomize=False)

RUNS = pytest.mark.parametrize("run", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])

DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool, torch.complex64),
]


@pytest.fixture(scope="module")
def models(make_lightning_model: MakeModel, sample_root: Path) -> list[AprilGan]:
    """Make a zero-shot and a few-shot model."""
    source = sample_root / "coins" / "train" / "good"
    few_shot = {"k_shot": 1, "few_shot_source": source}
    made = [make_lightning_model(class_name="coin", **arguments) for arguments in ({}, few_shot)]
    for model in made:
        model.prepare()
    return [model.eval() for model in made]


# ---- Images ---------------------------------------------------------------------------------------------------------


@st.composite
def images(draw: Callable[..., Any]) -> Tensor:
    """Draw a tensor that may be a batch of images, and often is."""
    is_usual = draw(st.booleans())
    number = draw(st.integers(1, 3) if is_usual else st.integers(0, 3))
    channels = 3 if is_usual else draw(st.integers(0, 5))
    size = (draw(st.integers(1, 150)), draw(st.integers(1, 150)))
    shape: tuple[int, ...] = (number, channels, *size)
    if not is_usual:
        shape = draw(st.sampled_from([shape, shape[1:], shape[2:], (*shape, 1), (number, *size, channels)]))
    dtype = draw(st.sampled_from(DTYPES[:5] if is_usual else DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.rand(shape, generator=generator)
    values = (values * 255 if dtype == torch.uint8 else values).to(dtype)
    odd = draw(st.sampled_from([None] * 6 + [math.nan, math.inf, -math.inf, -0.01, 1.01, 255.0, 1e30]))
    if odd is not None and values.is_floating_point() and values.numel():
        values.view(-1)[draw(st.integers(0, values.numel() - 1))] = odd
    return values


def check_images(model: AprilGan, batch: Tensor) -> bool:
    """Check one call of a model, and return whether it gave a prediction."""
    before, refusal = batch.clone(), ""
    try:
        with torch.no_grad():
            prediction = model(batch)
    except ValueError as error:
        refusal = str(error)
    is_float = batch.is_floating_point()
    assert torch.equal(batch.nan_to_num(), before.nan_to_num()) if is_float else batch.equal(before), "it is changed"
    if refusal:
        assert "`batch`" in refusal
        return False
    assert (batch.ndim, batch.shape[1]) == (4, 3)
    assert not is_float or bool(((batch >= -0.01) & (batch <= 1.01)).all())
    for values, shape in ((prediction.pred_score, (len(batch),)), (prediction.anomaly_map, (len(batch), 64, 64))):
        assert tuple(values.shape) == shape
        assert bool(((values >= 0) & (values <= 1)).all())
    single = [model(one[None]) for one in batch]
    for name in ("pred_score", "anomaly_map"):
        one_by_one = torch.cat([getattr(one, name) for one in single])
        torch.testing.assert_close(one_by_one, getattr(prediction, name), atol=1e-4, rtol=0)
    return True


@RUNS
def test_images_are_scored_or_refused_by_name(run: settings, models: list[AprilGan]) -> None:
    scored = []

    @run
    @given(images(), st.sampled_from(models))
    def check(batch: Tensor, model: AprilGan) -> None:
        scored.append(check_images(model, batch))

    check()
    assert len(scored) // 10 < sum(scored) < len(scored), "some of each kind"


# ---- Class names ----------------------------------------------------------------------------------------------------


@RUNS
def test_class_names_of_any_script_are_used_or_refused_by_name(
    run: settings, make_model: Callable[..., AprilGanModel], tmp_path: Path, make_lightning_model: MakeModel
) -> None:
    model = make_model(method=MethodOptions(prompts="single"))
    whole = make_lightning_model(method=MethodOptions(prompts="single"))
    whole.prepare()

    @run
    @given(st.text(min_size=0, max_size=40) | st.text(alphabet="\ud800\udcff\x00\n<|=\u202e", max_size=9))
    @example("金属ナット")
    @example("صامولة معدنية")
    @example("🔩" * 30)
    @example("metal_nut\n{}{0}%s")
    @example("x" * LONGEST_NAME)
    @example("x" * 5_000_000)
    def check(name: str) -> None:
        is_text = name.encode("utf-8", "replace").decode() == name
        if not name.strip() or len(name) > LONGEST_NAME or not is_text:
            with pytest.raises(ValueError, match="`class_name`"):
                model.setup(name)
            return
        model.setup(name)
        assert model.class_name == name
        norms = model.text_features.norm(dim=-1)
        torch.testing.assert_close(norms, torch.ones(2), atol=1e-4, rtol=0)
        whole.model.setup(name)
        assert Product.load(whole.product.save(tmp_path / "product.safetensors")).class_name == name
        assert json.loads(json.dumps(whole.metadata))["class_name"] == name

    check()


# ---- Plain data -----------------------------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=8,
)


@RUNS
def test_records_come_back_or_are_refused(run: settings) -> None:
    @run
    @given(st.sampled_from([Setup, AdapterOrigin]), st.data())
    def check(kind: type[Any], data: st.DataObject) -> None:
        names = list(kind.__dataclass_fields__)
        fields = data.draw(st.dictionaries(st.sampled_from(names), PLAIN, max_size=4))
        try:
            record = kind.from_dict(fields)
        except (TypeError, ValueError):
            return
        plain = json.loads(json.dumps(record.to_dict()))
        assume(plain == plain)  # noqa: PLR0124  # NaN
        assert kind.from_dict(plain).to_dict() == record.to_dict()

    check()


@RUNS
def test_paths_are_usable_or_refused_by_name(run: settings) -> None:
    @run
    @given(PLAIN | st.text(max_size=300) | st.binary(max_size=5) | st.text(alphabet="~/.\0x\ud800", max_size=20))
    def check(value: object) -> None:
        refusal = ""
        try:
            checked_path(value, "argument").is_file()
        except ValueError as error:
            refusal = str(error)
        assert not refusal or "`argument`" in refusal

    check()


@RUNS
def test_names_of_files_are_valid_and_differ(run: settings) -> None:
    parts = st.lists(st.text(max_size=400), min_size=1, max_size=5)

    @run
    @given(parts, parts)
    def check(one: list[str], other: list[str]) -> None:
        names = [safe_name(*one), safe_name(*other)]
        assert (names[0].lower() == names[1].lower()) == (one == other)
        assert all(name.isascii() and "/" not in name and len(name) < 100 and name[0].isalnum() for name in names)

    check()


@RUNS
def test_paths_of_images_come_back_from_the_table(run: settings, tmp_path: Path) -> None:
    letters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
    names = st.lists(st.text(letters, min_size=1, max_size=30), min_size=1, max_size=5)

    @run
    @given(names)
    def check(files: list[str]) -> None:
        table = PredictionTable(PredictionFiles())
        table._table_folder = OutputFolder(tmp_path, [])
        path = table._part(SimpleNamespace(default_root_dir=tmp_path, world_size=1), 0)
        table._write(path, [{"file": name, "score": 0.5} for name in files], is_first=True, as_json=False)
        with path.open(newline="", encoding="utf-8") as file:
            found = [row["file"] for row in csv.DictReader(file)]
        assert [Path(name) for name in found] == [Path(name) for name in files]

    check()
