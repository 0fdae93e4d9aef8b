# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The prompts: sentences about a class in its normal and its abnormal state (arXiv 2305.17382, section 3.1).

The published adapters were trained with exactly these sentences in this order.
"""

from collections.abc import Callable

__all__ = ["ABNORMAL_STATES", "NORMAL_STATES", "PROMPTS", "TEMPLATES", "prompt_ensemble", "single_prompts"]

NORMAL_STATES = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)

ABNORMAL_STATES = (
    "damaged {}",
    "broken {}",
    "{} with flaw",
    "{} with defect",
    "{} with damage",
)

TEMPLATES = (
    "a bad photo of a {}.",
    "a low resolution photo of the {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a bright photo of a {}.",
    "a dark photo of the {}.",
    "a photo of my {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a photo of one {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "a low resolution photo of a {}.",
    "a photo of a large {}.",
    "a blurry photo of a {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a photo of the small {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "a dark photo of a {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)


def prompt_ensemble(class_name: str) -> tuple[list[str], list[str]]:
    """Return the prompt ensemble of a class: each state phrase in each template.

    Args:
        class_name: Name of the object or surface. It is used unchanged: ``metal_nut`` stays ``metal_nut``.

    Returns:
        7 x 35 sentences about the normal state and 5 x 35 sentences about the abnormal state.

    Raises:
        ValueError: If the class name is empty, longer than 500 characters, or not valid UTF-8.

    Examples:
        >>> normal, abnormal = prompt_ensemble("bottle")
        >>> len(normal), len(abnormal), normal[35]
        (245, 175, 'a bad photo of a flawless bottle.')
    """
    _require_name(class_name)
    normal, abnormal = (
        [template.format(state.format(class_name)) for state in states for template in TEMPLATES]
        for states in (NORMAL_STATES, ABNORMAL_STATES)
    )
    return normal, abnormal


def single_prompts(class_name: str) -> tuple[list[str], list[str]]:
    """Return one sentence per state, for ablation studies of the prompt ensemble.

    Args:
        class_name: Name of the object or surface.

    Returns:
        One sentence about the normal state and one about the abnormal state. Both are part of the ensemble.

    Raises:
        ValueError: If the class name is empty, longer than 500 characters, or not valid UTF-8.

    Examples:
        >>> single_prompts("bottle")
        (['a photo of a flawless bottle.'], ['a photo of a damaged bottle.'])
    """
    _require_name(class_name)
    return [f"a photo of a flawless {class_name}."], [f"a photo of a damaged {class_name}."]


PROMPTS: dict[str, Callable[[str], tuple[list[str], list[str]]]] = {
    "ensemble": prompt_ensemble,
    "single": single_prompts,
}
"""Functions that return the prompts of a class, by the value of the argument ``prompts``."""


LONGEST_NAME = 500
"""Characters of the longest class name. CLIP's text tower reads the first 77 tokens of a sentence."""


def _require_name(class_name: object) -> None:
    if not isinstance(class_name, str) or not class_name.strip():
        msg = (
            f"Expected argument `class_name` to be a non-empty name such as 'bottle', but got {class_name!r}. "
            "Pass class_name='object' if there is no better name."
        )
        raise ValueError(msg)
    problem = ""
    if len(class_name) > LONGEST_NAME:
        problem = f"{len(class_name)} characters"
    elif class_name.encode("utf-8", "replace").decode("utf-8") != class_name:  # from the name of a file or folder
        problem = "bytes that are not UTF-8"
    if problem:
        msg = (
            f"Expected argument `class_name` to be a text of at most {LONGEST_NAME} characters such as 'bottle', but "
            f"got {problem}: {class_name[:40]!r}. Pass another name."
        )
        raise ValueError(msg)
