# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The prompts, with which the published adapters were trained."""

import hashlib

import pytest

from anomalib_aprilgan.method.prompts import ABNORMAL_STATES, NORMAL_STATES, TEMPLATES, prompt_ensemble

DIGESTS = {
    "normal": (245, "c6f43eb8527ef1320129d67986aecbdf9497a61db185bca60c96b9b70175d241"),
    "abnormal": (175, "0a32437cd22bd08de411f626e3c7be569bb7272cb186cb23bc929dd30c09e8d3"),
}
"""SHA-256 of the sentences about a ``metal_nut``, one per line, computed from a separate copy of the words."""


@pytest.mark.parametrize(
    ("phrases", "count"),
    [(NORMAL_STATES, 7), (ABNORMAL_STATES, 5), (TEMPLATES, 35)],
    ids=["normal states", "abnormal states", "templates"],
)
def test_phrases_are_distinct_and_have_one_placeholder(phrases, count):
    assert len(phrases) == count
    assert len(set(phrases)) == count
    assert all(phrase.count("{}") == 1 and phrase == phrase.strip() for phrase in phrases)


def test_no_sentence_belongs_to_both_states():
    normal, abnormal = prompt_ensemble("bottle")
    assert len(set(normal + abnormal)) == (7 + 5) * 35


@pytest.mark.parametrize("state", ["normal", "abnormal"])
def test_sentences_and_their_order_equal_the_recorded_ones(state):
    sentences = dict(zip(("normal", "abnormal"), prompt_ensemble("metal_nut"), strict=True))[state]
    assert (len(sentences), hashlib.sha256("\n".join(sentences).encode()).hexdigest()) == DIGESTS[state]


def test_literal_sentences():
    normal, abnormal = prompt_ensemble("metal_nut")
    assert normal[0] == "a bad photo of a metal_nut."
    assert normal[36] == "a low resolution photo of the flawless metal_nut."
    assert normal[-1] == "this is one metal_nut without damage in the scene."
    assert abnormal[0] == "a bad photo of a damaged metal_nut."
    assert abnormal[35] == "a bad photo of a broken metal_nut."
    assert abnormal[-1] == "this is one metal_nut with damage in the scene."


@pytest.mark.parametrize("class_name", ["", "  \t", None, 3])
def test_an_empty_class_is_refused(class_name):
    with pytest.raises(ValueError, match="class_name") as error:
        prompt_ensemble(class_name)
    assert repr(class_name) in str(error.value)
