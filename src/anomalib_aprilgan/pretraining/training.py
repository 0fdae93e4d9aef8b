# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Pre-training of the embedded CLIP on pairs of images with captions."""

import copy
import math
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import default_rng
from rich.progress import track
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from anomalib_aprilgan.files.adapter_files import find_adapters
from anomalib_aprilgan.files.adapter_origin import AdapterOrigin
from anomalib_aprilgan.files.embedded import ADAPTED, BACKBONE
from anomalib_aprilgan.files.weight_files import read_weight_file
from anomalib_aprilgan.files.whole_files import write_file
from anomalib_aprilgan.method.adapters import StageAdapters
from anomalib_aprilgan.method.clip_weights import fingerprint
from anomalib_aprilgan.method.towers import Towers, build_towers, native_image_size, tokenizer_of
from anomalib_aprilgan.pretraining.losses import (
    distance_loss,
    encode,
    encode_images,
    encode_references,
    image_losses,
    kept_losses,
    patch_loss,
)
from anomalib_aprilgan.pretraining.pairs import Pairs

__all__ = ["GREATEST_TEMPERATURE", "Schedule", "Start", "Trained", "train"]

LOSS_WEIGHTS = {
    "contrast": 0.5,
    "twins": 2.0,
    "patches": 1.5,
    "distances": 1.0,
    "embedding": 100.0,
    "state": 5.0,
}
"""Weights of the losses."""

CHECKPOINT_EVERY = 50
"""Steps between checkpoints."""

WARM_UP = 100
"""Steps in which the learning rate rises to its maximum; then it falls as half a cosine."""

LEAST_TEMPERATURE, GREATEST_TEMPERATURE = 14.0, 100.0
"""Factor of the cosine similarities at the start and from half of the training on. CLIP learns it, starting from 14
(arXiv 2103.00020); at the end it is 100, which is also APRIL-GAN's factor."""


class Schedule(NamedTuple):
    """How long and on what a training runs.

    Attributes:
        steps: Number of steps.
        batch_size: Pairs per step.
        learning_rate: Maximum learning rate of AdamW.
        image_sizes: Heights and widths of the images in pixels; each step takes one at random.
        seed: Seed of initial weights, batches and image sizes.
    """

    steps: int
    batch_size: int
    learning_rate: float
    image_sizes: tuple[int, ...]
    seed: int


class Start(NamedTuple):
    """Files that a training starts from: weights and adapters, by path or as ``"builtin"``."""

    weights: Path | str
    adapters: Path | str


class Trained(NamedTuple):
    """Result of a training: the CLIP, and the adapters that read its stages during the training."""

    towers: Towers
    adapters: StageAdapters


def train(folder: Path, pairs: Pairs, schedule: Schedule, start: Start | None = None) -> Trained:
    """Train a CLIP, or continue from the checkpoint in the folder, on a GPU if there is one.

    Args:
        folder: Folder of the checkpoint.
        pairs: Training data.
        schedule: Length and settings of the training.
        start: Weights and adapters to start from. Then the text tower stays as it is, the image embedding stays near
            what it was, and the temperature is 100. ``None``: random ones, and the temperature rises from 14 to 100.

    Returns:
        The trained CLIP and adapters, on the CPU.

    Raises:
        ValueError: If the folder holds the checkpoint of a training with other settings, or a damaged one, or if the
            adapters to start from do not fit the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    towers, adapters = _begin(start, schedule.seed)
    trained = nn.ModuleList([towers, adapters])
    begin = fingerprint(trained)
    settings = f"{len(pairs)} pairs ({pairs.digest}), {schedule}, losses {LOSS_WEIGHTS}, starting from weights {begin}"
    before = None
    if start is not None:
        before = copy.deepcopy(towers.visual).requires_grad_(requires_grad=False).to(device)
        towers.requires_grad_(requires_grad=False)
        towers.visual.requires_grad_(requires_grad=True)
    towers.logit_scale.requires_grad_(requires_grad=False)
    trained.to(device)
    parameters = [weight for weight in trained.parameters() if weight.requires_grad]
    optimizer = AdamW(
        [
            {"params": [weight for weight in parameters if weight.ndim > 1], "weight_decay": 0.05},
            {"params": [weight for weight in parameters if weight.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )
    checkpoint = folder / "checkpoint.pt"
    first = _resume(checkpoint, settings, trained, optimizer)
    patch_size = int(towers.visual.conv1.kernel_size[0])
    tokenizer = tokenizer_of(BACKBONE)
    recent: list[list[float]] = []
    for step in track(range(first, schedule.steps), "Pre-training", total=schedule.steps, completed=first):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * _fraction_of_rate(step, schedule.steps)
        rng = default_rng([schedule.seed, 1, step])
        size = int(rng.choice(schedule.image_sizes)) if len(schedule.image_sizes) > 1 else schedule.image_sizes[0]
        batch = pairs.batch(schedule.batch_size, rng, size, patch_size).to(device)
        encoded = encode(towers, adapters, tokenizer, batch)
        if before is None:
            temperature = _rising_temperature(step / schedule.steps)
            losses = image_losses(encoded, batch, temperature) | patch_loss(encoded, batch, temperature)
            losses |= distance_loss(encoded, encode_references(towers, batch), batch)
        else:
            kept = kept_losses(encoded, encode_images(before, batch), GREATEST_TEMPERATURE)
            losses = patch_loss(encoded, batch, GREATEST_TEMPERATURE) | kept
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack([LOSS_WEIGHTS[name] * loss for name, loss in losses.items()]).sum())
        clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        recent.append([loss.item() for loss in losses.values()])
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == schedule.steps:
            means = np.mean(recent, axis=0).tolist()
            named = ", ".join(f"{name} {mean:.3f}" for name, mean in zip(losses, means, strict=True))
            print(f"step {step + 1}: {named}")
            recent.clear()
            _save(checkpoint, settings, step + 1, trained, optimizer)
    trained.cpu()
    return Trained(towers, adapters)


def _begin(start: Start | None, seed: int) -> Trained:
    """Make the CLIP and its adapters, with random weights or those to start from."""
    towers = build_towers(BACKBONE, start and start.weights, native_image_size(BACKBONE), quick_gelu=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapters = StageAdapters(len(ADAPTED), towers.visual.conv1.out_channels, towers.visual.output_dim)
    if start is not None:
        model = AdapterOrigin(BACKBONE, fingerprint=fingerprint(towers), quick_gelu=False, layers=ADAPTED)
        adapters.load_state_dict(find_adapters(start.adapters, model, adapters.shapes)[0])
    return Trained(towers, adapters)


def _fraction_of_rate(step: int, steps: int) -> float:
    """Learning rate of a step, as a fraction of the greatest one."""
    return min(1, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def _rising_temperature(progress: float) -> float:
    return float(LEAST_TEMPERATURE * (GREATEST_TEMPERATURE / LEAST_TEMPERATURE) ** min(1.0, 2 * progress))


def _save(checkpoint: Path, settings: str, steps: int, trained: nn.ModuleList, optimizer: AdamW) -> None:
    """Write a checkpoint; an interruption leaves the previous one as it is."""
    states: dict[str, Any] = {"trained": trained.state_dict(), "optimizer": optimizer.state_dict()}
    content = BytesIO()  # torch's errors of a full disk would not say so
    torch.save({**states, "steps": steps, "settings": settings}, content)
    write_file(checkpoint, content.getvalue())


def _resume(checkpoint: Path, settings: str, trained: nn.ModuleList, optimizer: AdamW) -> int:
    """Load the checkpoint if there is one.

    Returns:
        The number of steps done.

    Raises:
        ValueError: If it is damaged, or was written by a training with other settings.
    """
    if not checkpoint.exists():
        return 0
    state, _ = read_weight_file(checkpoint, "a checkpoint")
    try:
        if state["settings"] == settings:
            trained.load_state_dict(state["trained"])
            optimizer.load_state_dict(state["optimizer"])
            return int(state["steps"])
        msg = (
            f"Expected {checkpoint} to belong to this training ({settings}), but it belongs to another one "
            f"({state['settings']}). Use another folder, or delete the file."
        )
    except Exception as error:  # torch raises errors of many types for states that do not fit
        msg = f"The checkpoint {checkpoint} is damaged ({type(error).__name__}). Delete it to start the training again."
        raise ValueError(msg) from error
    raise ValueError(msg)
