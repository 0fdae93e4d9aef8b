# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Captions of the pairs of images that the embedded CLIP is pre-trained on."""

from numpy.random import Generator

from anomalib_aprilgan.demo.drawing.scenes import AUXILIARY_DEFECTS, AUXILIARY_KINDS, INVENTIONS
from anomalib_aprilgan.method.prompts import ABNORMAL_STATES, NORMAL_STATES, TEMPLATES
from anomalib_aprilgan.pretraining.scenes import UNNAMED

__all__ = ["NAMED_KINDS", "UNKNOWN", "captions", "vocabulary_sentences"]

NAMED_KINDS = tuple(kind for kind in AUXILIARY_KINDS if kind not in INVENTIONS)
"""Kinds that captions may name."""

UNKNOWN = UNNAMED
"""Placeholder for a name. In the trained model, every word that occurs in no caption of a drawn pair has its
embedding."""

PLACEHOLDERS = (UNKNOWN, f"{UNKNOWN} {UNKNOWN}", f"{UNKNOWN} {UNKNOWN} {UNKNOWN}", "object", "surface")
"""What captions say in place of a kind's name; repeated, because a name may have several tokens."""


def captions(kind: str, defect: str, rng: Generator) -> tuple[str, str, bool]:
    """Write the captions of a pair of images without and with a defect.

    Both captions differ in the state only. Names are written with or without underscore. Some captions have a
    placeholder instead of the name, so that the model also works for names that it was not trained with. Invented
    kinds, and scenes that mix drawings and photographs, are never named.

    Args:
        kind: Name of the kind in both images.
        defect: Name of the defect in the second image.
        rng: Random generator.

    Returns:
        The caption of the normal image, the caption of the abnormal image, and whether both name the kind.
    """
    is_named = bool(rng.random() < 0.7 and kind not in (*INVENTIONS, UNNAMED))  # noqa: PLR2004
    kind = kind if rng.random() < 0.3 else kind.replace("_", " ")  # noqa: PLR2004
    name = kind if is_named else str(rng.choice(PLACEHOLDERS))
    template = str(rng.choice(TEMPLATES))
    abnormal = str(rng.choice([*ABNORMAL_STATES, *ABNORMAL_STATES, _state_with(defect)]))
    return (
        template.format(str(rng.choice(NORMAL_STATES)).format(name)),
        template.format(abnormal.format(name)),
        is_named,
    )


def vocabulary_sentences() -> list[str]:
    """Sentences that together contain every word that a caption of a drawn pair can contain."""
    kinds = {name for kind in NAMED_KINDS for name in (kind, kind.replace("_", " "))}
    states = [*NORMAL_STATES, *ABNORMAL_STATES, *map(_state_with, AUXILIARY_DEFECTS)]
    sentences = [state.format(name) for state in states for name in (*kinds, *PLACEHOLDERS)]
    return [*sentences, *(template.format(UNKNOWN) for template in TEMPLATES)]


def _state_with(defect: str) -> str:
    """Name a defect, as in "{} with a scratch"."""
    return "{} with a " + defect.replace("_", " ")
