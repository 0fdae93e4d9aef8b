# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Pre-training of the embedded CLIP on pairs of images with captions."""

import math
from pathlib import Path

import torch
from numpy.random import default_rng
from rich.progress import track
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from anomalib_aprilgan.files.embedded import BACKBONE, IMAGE_SIZE, LAYERS
from anomalib_aprilgan.method.adapters import StageAdapters
from anomalib_aprilgan.method.towers import Towers, build_towers, tokenizer_of
from anomalib_aprilgan.pretraining.losses import losses
from anomalib_aprilgan.pretraining.pairs import Pairs

__all__ = ["GREATEST_TEMPERATURE", "train"]

LOSS_WEIGHTS = torch.tensor([0.5, 2.0, 1.5])
"""Weights of contrast, twins and patches."""

CHECKPOINT_EVERY = 100
"""Steps between checkpoints."""

WARM_UP = 100
"""Steps in which the learning rate rises to its maximum; then it falls as half a cosine."""

LEAST_TEMPERATURE, GREATEST_TEMPERATURE = 14.0, 100.0
"""Factor of the cosine similarities at the start and from half of the training on. CLIP learns it, starting from 14
(arXiv 2103.00020); at the end it is 100, which is also APRIL-GAN's factor."""


def train(folder: Path, pairs: Pairs, steps: int, batch_size: int, learning_rate: float, seed: int) -> Towers:
    """Train a CLIP from random weights, or continue from the checkpoint in the folder.

    Args:
        folder: Folder of the checkpoint.
        pairs: Training data.
        steps: Number of steps.
        batch_size: Pairs per step.
        learning_rate: Maximum learning rate of AdamW.
        seed: Seed of initial weights and batches.

    Returns:
        The trained CLIP.

    Raises:
        ValueError: If the folder holds the checkpoint of a training with other settings.
    """
    towers = build_towers(BACKBONE, None, IMAGE_SIZE, quick_gelu=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapters = StageAdapters(len(LAYERS), towers.visual.conv1.out_channels, towers.visual.output_dim)
    tokenizer = tokenizer_of(BACKBONE)
    trained = nn.ModuleList([towers, adapters])
    parameters = [weight for name, weight in trained.named_parameters() if name != "0.logit_scale"]
    optimizer = AdamW(
        [
            {"params": [weight for weight in parameters if weight.ndim > 1], "weight_decay": 0.05},
            {"params": [weight for weight in parameters if weight.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )
    settings = f"{len(pairs)} pairs, {steps} steps of {batch_size}, learning rate {learning_rate}, seed {seed}"
    checkpoint = folder / "checkpoint.pt"
    first = _resume(checkpoint, settings, trained, optimizer)
    recent = torch.zeros(3)
    for step in track(range(first, steps), "Pre-training", total=steps, completed=first):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        rise = min(1.0, 2 * step / steps)
        temperature = LEAST_TEMPERATURE * (GREATEST_TEMPERATURE / LEAST_TEMPERATURE) ** rise
        batch = pairs.batch(batch_size, default_rng([seed, 1, step]))
        values = losses(towers, adapters, tokenizer, batch, temperature)
        optimizer.zero_grad()
        torch.autograd.backward((values * LOSS_WEIGHTS).sum())
        clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        recent += values.detach()
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            contrast, twins, patches = (recent / ((step - first) % CHECKPOINT_EVERY + 1)).tolist()
            print(f"step {step + 1}: contrast {contrast:.3f}, twins {twins:.3f}, patches {patches:.3f}")
            recent = torch.zeros(3)
            _save(checkpoint, settings, step + 1, trained, optimizer)
    return towers


def _save(checkpoint: Path, settings: str, steps: int, trained: nn.ModuleList, optimizer: AdamW) -> None:
    """Write a checkpoint; an interruption leaves the previous one as it is."""
    unfinished = checkpoint.with_suffix(".part")
    states = {"trained": trained.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**states, "steps": steps, "settings": settings}, unfinished)
    unfinished.replace(checkpoint)


def _resume(checkpoint: Path, settings: str, trained: nn.ModuleList, optimizer: AdamW) -> int:
    """Load the checkpoint if there is one.

    Returns:
        The number of steps done.

    Raises:
        ValueError: If it was written by a training with other settings.
    """
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    if state["settings"] != settings:
        msg = (
            f"Expected {checkpoint} to belong to this training ({settings}), but it belongs to another one "
            f"({state['settings']}). Use another folder, or delete the file."
        )
        raise ValueError(msg)
    trained.load_state_dict(state["trained"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["steps"])
