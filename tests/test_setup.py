# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""What a model is set up for: explicit argument, then checkpoint, then datamodule, then default. No model is made."""

import json
from dataclasses import replace

import pytest

from anomalib_aprilgan.integration.setup import Arguments, Data, overlap, resolve
from anomalib_aprilgan.method.setup import References, Setup

GRAVEL = Data("MVTecAD", "gravel", lambda: [f"gravel/{number}.png" for number in range(6)])
COINS = Data("MVTecAD", "coins", lambda: [f"coins/{number}.png" for number in range(6)])
VISA = Data("Visa", "pcb1", lambda: [f"pcb1/{number}.png" for number in range(6)])
FOLDER = Data("bolts", "", lambda: [f"bolts/{number}.png" for number in range(6)])
SOURCES = {"good": [f"good/{number}.png" for number in range(8)], "few": ["few/0.png"]}

NEW = Setup()


def decide(arguments: Arguments, current: Setup, data: Data | None, seed: int = 0, backbone: str = "any") -> Setup:
    return resolve(arguments, current, data, seed, backbone, SOURCES.__getitem__)


def after(*runs: tuple[Arguments, Data | None], start: Setup = NEW) -> Setup:
    """Set up for one run after the other."""
    for arguments, data in runs:
        start = decide(arguments, start, data)
    return start


A = Arguments
TRAINED = replace(NEW, adapter_origin="call", trained_on=("MVTecAD/brick",)).restored()
OF_GRAVEL = after((A(k_shot=2), GRAVEL))
CHECKPOINT = OF_GRAVEL.restored()
PLAIN = after((A(), None)).restored()  # of a model that nobody told a class

CLASSES = [
    # arguments, current, datamodule, class name, origin
    (A(), NEW, None, "object", "default"),
    (A(), NEW, GRAVEL, "gravel", "datamodule"),
    (A(), NEW, FOLDER, "object", "default"),
    (A(class_name="stone"), NEW, GRAVEL, "stone", "argument"),
    (A(class_name="stone"), CHECKPOINT, GRAVEL, "stone", "argument"),
    (A(), CHECKPOINT, COINS, "gravel", "checkpoint"),
    (A(), CHECKPOINT, None, "gravel", "checkpoint"),
    (A(), PLAIN, COINS, "coins", "datamodule"),
    (A(), TRAINED, COINS, "coins", "datamodule"),
    (A(), OF_GRAVEL, COINS, "coins", "datamodule"),
    (A(), OF_GRAVEL, None, "gravel", "datamodule"),
    (A(), OF_GRAVEL, FOLDER, "object", "default"),
    (A(), replace(NEW, class_name="bolt", class_origin="call"), GRAVEL, "bolt", "call"),
]


@pytest.mark.parametrize(("arguments", "current", "data", "class_name", "origin"), CLASSES)
def test_class_name(arguments: Arguments, current: Setup, data: Data | None, class_name: str, origin: str) -> None:
    found = decide(replace(arguments, k_shot=0), current, data)
    assert (found.class_name, found.class_origin) == (class_name, origin)


LOADED = replace(NEW, adapter="mine.safetensors", adapter_origin="call")
ADAPTERS = [
    # arguments, current, datamodule, backbone, adapter, origin
    (A(), NEW, None, "any", "visa", "default"),
    (A(), NEW, GRAVEL, "any", "visa", "datamodule"),
    (A(), NEW, VISA, "any", "mvtec", "datamodule"),
    (A(), NEW, VISA, "ViT-builtin", "builtin", "datamodule"),
    (A(), after((A(), GRAVEL)), VISA, "any", "mvtec", "datamodule"),
    (A(), after((A(), VISA)), None, "any", "mvtec", "datamodule"),
    (A(), after((A(), None)), VISA, "any", "mvtec", "datamodule"),
    (A(adapter="mine"), NEW, VISA, "any", "mine", "argument"),
    (A(adapter="mine"), CHECKPOINT, VISA, "any", "mine", "argument"),
    (A(), CHECKPOINT, VISA, "any", "visa", "checkpoint"),
    (A(), TRAINED, VISA, "any", None, "checkpoint"),
    (A(adapter=None), NEW, VISA, "any", None, "default"),
    (A(adapter=None), TRAINED, VISA, "any", None, "checkpoint"),
    (A(), LOADED, VISA, "any", "mine.safetensors", "call"),
]


@pytest.mark.parametrize(("arguments", "current", "data", "backbone", "adapter", "origin"), ADAPTERS)
def test_adapters(
    arguments: Arguments, current: Setup, data: Data | None, backbone: str, adapter: str | None, origin: str
) -> None:
    found = decide(replace(arguments, k_shot=0), current, data, backbone=backbone)
    assert (found.adapter, found.adapter_origin) == (adapter, origin)


FROM_GOOD = after((A(k_shot=2, few_shot_source="good"), None))
ADDED = replace(OF_GRAVEL, references=replace(OF_GRAVEL.references, files=("a.png", "b.png", "c.png"), origin="call"))
ADDED_TO_NONE = replace(NEW, references=References(("a.png", "b.png", "c.png"), origin="call"))
REFERENCES = [
    # arguments, current, datamodule, folder of the files, their number, origin
    (A(), NEW, GRAVEL, "", 0, "default"),
    (A(k_shot=2), NEW, GRAVEL, "gravel", 2, "datamodule"),
    (A(k_shot=2), OF_GRAVEL, COINS, "coins", 2, "datamodule"),
    (A(k_shot=3), OF_GRAVEL, GRAVEL, "gravel", 3, "datamodule"),
    (A(k_shot=2), OF_GRAVEL, None, "gravel", 2, "datamodule"),
    (A(k_shot=2), TRAINED, GRAVEL, "gravel", 2, "datamodule"),
    (A(k_shot=2), CHECKPOINT, COINS, "gravel", 2, "checkpoint"),
    (A(), CHECKPOINT, COINS, "gravel", 2, "checkpoint"),
    (A(k_shot=4), CHECKPOINT, COINS, "coins", 4, "datamodule"),
    (A(k_shot=0), CHECKPOINT, COINS, "", 0, "default"),
    (A(k_shot=4, few_shot_source="good"), CHECKPOINT, COINS, "good", 4, "argument"),
    (A(k_shot=2, few_shot_source="good"), CHECKPOINT, COINS, "good", 2, "argument"),
    (A(k_shot=2, few_shot_source="good"), NEW, GRAVEL, "good", 2, "argument"),
    (A(k_shot=1, few_shot_source="few"), FROM_GOOD, None, "few", 1, "argument"),
    (A(k_shot=2), ADDED, COINS, "", 3, "call"),
    (A(), ADDED, COINS, "", 3, "call"),
    (A(k_shot=0), ADDED, COINS, "", 0, "default"),
    (A(k_shot=0), ADDED_TO_NONE, COINS, "", 3, "call"),
    (A(k_shot=0), ADDED_TO_NONE.restored(), COINS, "", 3, "checkpoint"),
    (A(k_shot=3), ADDED_TO_NONE.restored(), None, "", 3, "checkpoint"),
    (A(), OF_GRAVEL, COINS, "", 0, "default"),  # k_shot was given before, and no longer is
    (A(), FROM_GOOD, COINS, "", 0, "default"),
    (A(k_shot=2), FROM_GOOD, COINS, "coins", 2, "datamodule"),
]


@pytest.mark.parametrize(("arguments", "current", "data", "folder", "number", "origin"), REFERENCES)
def test_references(
    arguments: Arguments, current: Setup, data: Data | None, folder: str, number: int, origin: str
) -> None:
    found = decide(arguments, current, data).references
    assert len(set(found.files)) == number
    assert {file.rpartition("/")[0] for file in found.files} == ({folder} if number else set())
    assert found.origin == origin


def test_references_of_a_source_stay_with_another_seed_and_where_the_source_is_gone() -> None:
    arguments = A(k_shot=2, few_shot_source="good")
    for current in (FROM_GOOD, FROM_GOOD.restored()):
        for data in (None, GRAVEL):
            found = resolve(arguments, current, data, 99, "any", {}.__getitem__)
            assert found.references == current.references


def test_references_of_a_datamodule_follow_the_seed() -> None:
    draws = {decide(A(k_shot=2), OF_GRAVEL, GRAVEL, seed).references.files for seed in range(10)}
    assert len(draws) > 3
    assert decide(A(k_shot=2), OF_GRAVEL, GRAVEL, 0) == OF_GRAVEL


def test_there_must_be_something_to_draw_from() -> None:
    for current in (NEW, TRAINED, CHECKPOINT):
        with pytest.raises(RuntimeError, match=r"k_shot=4 asks for 4 reference images, but the model holds [02]"):
            decide(A(k_shot=4), current, None)
    with pytest.raises(ValueError, match=r"k_shot=7.*there are 6"):
        decide(A(k_shot=7), NEW, GRAVEL)


def test_a_second_time_changes_nothing() -> None:
    for arguments, current, data, *_ in (*CLASSES, *REFERENCES):
        once = decide(arguments, current, data)
        assert decide(arguments, once, data) == once
        assert decide(arguments, once, None) == once


def test_a_record_is_plain_data_and_equal_by_value() -> None:
    setup = replace(OF_GRAVEL, post_processor={"image_sensitivity": 0.7}, trained_on=("Visa",))
    assert Setup.from_dict(json.loads(json.dumps(setup.to_dict()))) == setup
    assert Setup.from_dict({"unknown": 1}) == Setup()
    for broken in (
        {"class_name": 3},
        {"adapter": ["a"]},
        {"class_origin": "elsewhere"},
        {"references": {"files": "a.png"}},
        {"trained_on": [1]},
    ):
        with pytest.raises((TypeError, ValueError), match="expected"):
            Setup.from_dict(broken)


def test_restored_records_keep_what_was_set() -> None:
    assert (CHECKPOINT.class_origin, CHECKPOINT.adapter_origin, CHECKPOINT.references.origin) == ("checkpoint",) * 3
    assert PLAIN.class_origin == "default"
    assert PLAIN.references == References()


@pytest.mark.parametrize(
    ("trained_on", "data", "expected"),
    [
        (("Visa",), VISA, ("Visa",)),
        (("Visa",), GRAVEL, ()),
        (("MVTecAD/brick", "MVTecAD/gravel"), GRAVEL, ("MVTecAD/gravel",)),
        (("MVTecAD/brick",), GRAVEL, ()),
        (("bolts/bolts",), FOLDER, ("bolts/bolts",)),
        (("brick", "gravel"), GRAVEL, ()),  # kinds of drawn images, not MVTecAD's
        ((), GRAVEL, ()),
    ],
)
def test_overlap(trained_on: tuple[str, ...], data: Data, expected: tuple[str, ...]) -> None:
    assert overlap(trained_on, data) == expected
