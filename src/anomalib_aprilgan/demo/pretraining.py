# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The recipe of the embedded CLIP: ``anomalib-aprilgan pretrain FOLDER``.

Pairs of the same picture without and with a defect, and captions that differ in the state alone, so that each batch
holds hard negatives. Three losses, all of them CLIP's comparison of images with sentences at a temperature:

- contrast: of all images with all captions of the batch; what shows the same kind in the same state belongs together;
- twins: of each image with its caption and that of its twin, and the other way round;
- patches: of each patch with the same two captions; a patch belongs to the abnormal one as far as the defect covers it.
  The last block's go through CLIP's own final norm and projection, those of the stages that APRIL-GAN will read through
  linear adapters, which are thrown away afterwards: so each of the stages is worth reading.

Everything depends on the seed alone. Drawing and training can be interrupted; the same command goes on where it was.
``weights/README.md`` has time and figures.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.random import default_rng
from rich.progress import track
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, normalize
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from anomalib_aprilgan.adapters import StageAdapters
from anomalib_aprilgan.clip import encode_causal, encode_image
from anomalib_aprilgan.demo.drawing.defects import DEFECTS, HELD_OUT_DEFECTS
from anomalib_aprilgan.demo.drawing.scenes import HELD_OUT_KINDS
from anomalib_aprilgan.demo.experiment import measure_category, train_adapters
from anomalib_aprilgan.demo.findings import METRICS
from anomalib_aprilgan.demo.pairs import UNKNOWN, Batch, Pairs, draw_pairs, words_of_captions
from anomalib_aprilgan.demo.sample_data import DATA_SETS, write_sample_data
from anomalib_aprilgan.embedded import ADAPTERS, BACKBONE, CONFIG, IMAGE_SIZE, LAYERS, TAG, WEIGHTS
from anomalib_aprilgan.quiet import quietly
from anomalib_aprilgan.towers import Towers, build_towers, tokenizer_of

__all__ = ["pretrain"]

ADAPTER_LOOKS, ADAPTER_EPOCHS = 4, 2
"""The adapters see each kind in so many looks, each of them so often."""

WEIGHTS_OF_LOSSES = torch.tensor([0.5, 2.0, 1.5])
"""Contrast, twins, patches."""

SHOTS = (0, 1, 2, 4, 8)
CHECKPOINT_EVERY = 100
BLOCKS = int(json.loads(CONFIG.read_text(encoding="utf-8"))["vision_cfg"]["layers"])
LEAST_TEMPERATURE, GREATEST_TEMPERATURE = 14.0, 100.0
"""CLIP's factor of similarities: where it starts in the original (arXiv 2103.00020), and where it ends and APRIL-GAN
uses it."""


def pretrain(
    folder: Path,
    pairs: int = 60_000,
    steps: int = 4400,
    batch_size: int = 64,
    learning_rate: float = 1.5e-3,
    seed: int = 0,
) -> None:
    """Draw pairs, pre-train the CLIP on them, train its adapters, and report on what was held out.

    Args:
        folder: Where pairs and checkpoints are kept, and the weights written.
        pairs: Pairs to draw.
        steps: Steps of pre-training.
        batch_size: Pairs in a batch.
        learning_rate: Of AdamW, at its height.
        seed: Seed of everything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = Pairs(draw_pairs(folder, pairs, seed))
    towers = _train(folder, drawn, steps, batch_size, learning_rate, seed)
    weights = folder / WEIGHTS.name
    _write_weights(towers, weights)
    with quietly():
        _train_and_test_adapters(folder, weights, seed)


# ---- Training -------------------------------------------------------------------------------------------------------


def losses(
    towers: Towers,
    adapters: StageAdapters,
    tokenizer: Callable[[list[str]], Tensor],
    batch: Batch,
    temperature: float,
) -> Tensor:
    """Compute contrast, twins and patches, shape ``(3,)``.

    Args:
        towers: CLIP.
        adapters: Of its stages ``LAYERS``.
        tokenizer: Its tokenizer.
        batch: Pairs.
        temperature: Factor of similarities.

    Returns:
        The losses.
    """
    visual = towers.visual
    with torch.autocast("cpu", torch.bfloat16):
        embedding, tokens = encode_image(visual, batch.images.flatten(0, 1).contiguous(), range(1, BLOCKS + 1))
        read = [visual.ln_post(tokens[BLOCKS]) @ visual.proj, *adapters([tokens[stage] for stage in LAYERS])]
    images = _in_pairs(embedding)  # (B, 2, D)
    captions = _in_pairs(encode_causal(towers, tokenizer(batch.captions)))  # (B, 2, D)

    description = 2 * batch.kinds[:, None] + torch.tensor([0, 1])  # (B, 2)
    named_images, named_captions, named = (x[batch.is_named].flatten(0, 1) for x in (images, captions, description))
    contrast = _contrast(named_images, named_captions, named, temperature)

    twins = temperature * images @ captions.mT  # (B, state of the image, state of the caption)
    states = torch.tensor([0, 1]).repeat(len(twins))
    of_captions, of_images = (
        cross_entropy(logits.flatten(0, 1), states, label_smoothing=0.05) for logits in (twins, twins.mT)
    )

    patches = [_patches(_in_pairs(tokens), captions, batch.covered, temperature) for tokens in read]
    return torch.stack([contrast, (of_captions + of_images) / 2, torch.stack(patches).mean()])


def _in_pairs(embeddings: Tensor) -> Tensor:
    """Normalise embeddings of shape ``(2 B, ..., D)`` and sort them into pairs, shape ``(B, 2, ..., D)``."""
    return normalize(embeddings.float(), dim=-1).reshape(-1, 2, *embeddings.shape[1:])


def _contrast(images: Tensor, captions: Tensor, description: Tensor, temperature: float) -> Tensor:
    """CLIP's loss, shape (); images and captions of the same description belong together."""
    same = (description[:, None] == description).float()
    target = same / same.sum(dim=1, keepdim=True)
    logits = temperature * images @ captions.T
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def _patches(patches: Tensor, captions: Tensor, covered: Tensor, temperature: float) -> Tensor:
    """Compare patches, shape ``(B, 2, P, D)``, with both captions of their pair; covered ones and others apart."""
    belongs = log_softmax(temperature * patches @ captions[:, None].mT, dim=-1)  # (B, 2, P, state)
    covered = torch.stack([torch.zeros_like(covered), covered], dim=1).clamp(0.02, 0.98)
    each = -(1 - covered) * belongs[..., 0] - covered * belongs[..., 1]
    is_covered = covered > 0.3  # noqa: PLR2004
    return each[is_covered].mean() / 2 + each[~is_covered].mean()


def _train(folder: Path, pairs: Pairs, steps: int, batch_size: int, learning_rate: float, seed: int) -> Towers:
    """Train from random weights, or from the checkpoint in the folder."""
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
    checkpoint, first = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["settings"] != settings:
            msg = (
                f"Expected {folder} to hold the beginning of the training that was asked for ({settings}), but its "
                f"checkpoint belongs to another ({state['settings']}). Use another folder, or delete {checkpoint}."
            )
            raise ValueError(msg)
        trained.load_state_dict(state["trained"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["steps"]
    recent = torch.zeros(3)
    for step in track(range(first, steps), "Pre-training", total=steps, completed=first):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        rise = min(1.0, 2 * step / steps)
        temperature = LEAST_TEMPERATURE * (GREATEST_TEMPERATURE / LEAST_TEMPERATURE) ** rise
        found = losses(towers, adapters, tokenizer, pairs.batch(batch_size, default_rng([seed, 1, step])), temperature)
        optimizer.zero_grad()
        torch.autograd.backward((found * WEIGHTS_OF_LOSSES).sum())
        clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        recent += found.detach()
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            contrast, twins, patch = (recent / ((step - first) % CHECKPOINT_EVERY + 1)).tolist()
            print(f"step {step + 1}: contrast {contrast:.3f}, twins {twins:.3f}, patches {patch:.3f}")
            recent = torch.zeros(3)
            state = {"trained": trained.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"steps": step + 1, "settings": settings}
            unfinished = checkpoint.with_suffix(".part")
            torch.save(state, unfinished)
            unfinished.replace(checkpoint)
    return towers


# ---- What ships -----------------------------------------------------------------------------------------------------


def _write_weights(towers: Towers, path: Path) -> None:
    """Write the towers in half precision; every token that is in no caption gets the row of the unknown word.

    Equal rows are why a compressed wheel hardly grows by a vocabulary of 49,408.
    """
    tokenizer = tokenizer_of(BACKBONE)
    known = tokenizer(words_of_captions())
    known = torch.unique(known)
    weights = {name: value.detach().half().contiguous() for name, value in towers.state_dict().items()}
    rows = weights["token_embedding.weight"]
    (unknown,) = tokenizer([UNKNOWN])[0, 1:2]
    weights["token_embedding.weight"] = rows[unknown].repeat(len(rows), 1).index_copy(0, known, rows[known])
    weights["logit_scale"] = torch.tensor(math.log(GREATEST_TEMPERATURE)).half()
    path.write_bytes(save(weights))


def _train_and_test_adapters(folder: Path, weights: Path, seed: int) -> None:
    """Train the adapters that ship on the auxiliary kinds, and print figures of all that was held out."""
    auxiliary = [
        write_sample_data(folder / f"auxiliary-{look}", *DATA_SETS["auxiliary"], train=1, test=1, seed=seed + look)
        for look in range(ADAPTER_LOOKS)
    ]
    model = train_adapters(auxiliary, ADAPTER_EPOCHS, seed, folder / "adapters", pretrained=weights)
    model.model.pretrained = TAG  # as which the weights will be known
    model.model.trained_on = DATA_SETS["auxiliary"][0]
    adapters = model.model.save_adapters(folder / ADAPTERS.name)
    for name, defects in (("all defects", tuple(DEFECTS)), ("held-out defects", HELD_OUT_DEFECTS)):
        root = write_sample_data(folder / name.replace(" ", "_"), HELD_OUT_KINDS, defects, train=16, test=8, seed=seed)
        for k_shot in SHOTS:
            found = [
                measure_category(
                    root, kind, k_shot, seed, folder / "tests", predict=False, pretrained=weights, adapter=adapters
                ).metrics
                for kind in HELD_OUT_KINDS
            ]
            means = ", ".join(f"{metric} {np.mean([row[metric] for row in found]):.3f}" for metric in METRICS)
            print(f"held-out kinds, {name}, {k_shot}-shot: {means}")
