# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's visualizer with score and label, the photograph's proportions, and a picture of its own per image."""

from pathlib import Path
from typing import Any

import torch
from anomalib.data import ImageBatch, ImageItem, NumpyImageBatch, NumpyImageItem
from anomalib.utils.path import convert_to_title_case
from anomalib.visualization import ImageVisualizer
from anomalib.visualization.image.functional import add_text_to_image, create_image_grid
from anomalib.visualization.image.item_visualizer import visualize_image_item
from lightning.pytorch import LightningModule, Trainer
from PIL import Image, ImageFont

from anomalib_aprilgan.integration import run_images
from anomalib_aprilgan.integration.output_files import OutputFolder, named_items, write_picture

__all__ = ["AprilGanVisualizer", "photograph_size"]

Item = ImageItem | NumpyImageItem

TITLES = {"gt_mask": "Ground truth", "anomaly_map": "Heatmap", "pred_mask": "Predicted region"}
"""Titles of fields that differ from their names."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
"""Formats that every browser shows. A picture of another image is a PNG."""

NARROWEST = 160
"""Smallest width of a panel in pixels, so that its title can be read."""

STRIP = 26
"""Height of the strips with text in pixels."""

FONT_SIZES = range(14, 7, -1)
"""Font sizes in pixels; the largest one that fits is used."""

MARGIN = 6
"""Distance of a text from the left and right edge in pixels."""


class AprilGanVisualizer(ImageVisualizer):
    """anomalib's visualizer with four changes.

    1. The picture's first line shows score and label, and the ground truth if it is known.
    2. Panels have the photograph's proportions. ``field_size`` is the largest width and height.
    3. Titles stand above the panels and are never cut off.
    4. Each image gets a picture of its own, whose path in the folder ``images`` is the image's relative path. Pictures
       of an earlier run in the same folder are removed.

    The arguments are those of anomalib's ``ImageVisualizer``. With ``text_config={"enable": False}`` there is no text.
    """

    _pictures: OutputFolder | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the files of the present run, whose names a copy for somebody else should not contain."""
        return {**self.__dict__, "_pictures": None}

    def visualize(
        self, predictions: Item | ImageBatch | NumpyImageBatch
    ) -> Image.Image | list[Image.Image | None] | None:
        """Draw pictures.

        Args:
            predictions: A prediction, or a batch of them.

        Returns:
            The picture, or a list of pictures if there are several predictions. ``None`` stands for a prediction
            without anything to draw.
        """
        if isinstance(predictions, Item):
            return self._draw(predictions)
        pictures = [self._draw(item) for item in predictions]
        return pictures[0] if len(pictures) == 1 else pictures

    @property
    def folder(self) -> Path | None:
        """Folder of the pictures of the present run; ``None`` before the first run."""
        return None if self._pictures is None else self._pictures.folder

    def picture_of(self, image: str | Path) -> Path | None:
        """Return the file of an image's picture in the present run; ``None`` outside a run.

        Args:
            image: Path of the image.
        """
        if self._pictures is None:
            return None
        suffix = Path(image).suffix.lower()
        return self._pictures.path_for(image, None if suffix in SUFFIXES else ".png")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the pictures of an earlier run."""
        del pl_module
        self._start(trainer, trainer.test_dataloaders)

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the pictures of an earlier run."""
        del pl_module
        self._start(trainer, trainer.predict_dataloaders)

    def _start(self, trainer: Trainer, loaders: object) -> None:
        folder = Path(self.output_dir or Path(trainer.default_root_dir) / "images")
        self._pictures = OutputFolder(folder, run_images.image_files(loaders))
        self._pictures.clear(trainer)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw and save the pictures of a batch; anomalib calls it for predictions as well."""
        del pl_module, outputs
        for name, item in named_items(batch, trainer, batch_idx, dataloader_idx):
            picture, path = self._draw(item), self.picture_of(name)
            if picture is not None and path is not None and self._pictures is not None:
                write_picture(self._pictures.add(path), picture)

    def _draw(self, item: Item) -> Image.Image | None:
        fields = [field for field in self.fields if getattr(item, field, None) is not None]
        overlays = [
            (base, above)
            for base, above in self.overlay_fields
            if any(getattr(item, name, None) is not None for name in above)  # else anomalib would repeat the base
        ]
        row = visualize_image_item(
            item,
            fields=fields,
            overlay_fields=overlays,
            field_size=(size := _fit(photograph_size(item), self.field_size)),
            fields_config=self.fields_config,
            overlay_fields_config=self.overlay_fields_config,
            text_config={"enable": False},
        )
        if row is None:
            return None
        titles = [*map(_title, fields), *(" + ".join(map(_title, above)) for _, above in overlays)]
        panels = [
            _captioned(row.crop((number * size[0], 0, (number + 1) * size[0], size[1])), title, self.text_config)
            for number, title in enumerate(titles)
        ]
        return _captioned(create_image_grid(panels, nrow=len(panels)), _verdict(item), self.text_config)


def _title(field: str) -> str:
    return TITLES.get(field) or str(convert_to_title_case(field))


def _verdict(item: Item) -> str:
    """Describe score and label of a prediction, as in "Score 0.831: anomalous (ground truth: normal)"."""
    score = "" if item.pred_score is None else f"Score {float(item.pred_score):.3f}"
    label = "" if item.pred_label is None else _label(item.pred_label)
    truth = "" if item.gt_label is None else f" (ground truth: {_label(item.gt_label)})"
    return ": ".join(part for part in (score, label) if part) + truth


def _label(value: Any) -> str:  # noqa: ANN401  # tensor or array
    return "anomalous" if bool(value) else "normal"


def photograph_size(item: Item) -> tuple[int, int]:
    """Return width and height of the photograph of a prediction in pixels.

    Args:
        item: The prediction. Without a file, the size of its image is taken, or without any image that of its map.
    """
    if item.image_path:
        with Image.open(item.image_path) as image:
            if image.format == "TIFF":  # PIL turns TIFF files while it loads them
                image.load()
            return image.size
    pixels: Any = item.anomaly_map if item.image is None else item.image
    is_last = isinstance(pixels, torch.Tensor) or pixels.ndim == 2  # noqa: PLR2004  # else channels are last
    height, width = pixels.shape[-2:] if is_last else pixels.shape[:2]
    return width, height


def _fit(size: tuple[int, int], limit: tuple[int, int]) -> tuple[int, int]:
    """Scale a width and height so that they just fit into a limit."""
    scale = min(limit[0] / size[0], limit[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _captioned(image: Image.Image, text: str, config: dict[str, Any]) -> Image.Image:
    """Put a strip with a text above an image, which becomes wider if it is too narrow."""
    if not config.get("enable", True) or not text:
        return image
    canvas = Image.new("RGB", (max(image.width, NARROWEST), STRIP + image.height))
    canvas.paste(image, ((canvas.width - image.width) // 2, STRIP))
    font, size = config.get("font"), config.get("size") or _font_size(text, canvas.width - 2 * MARGIN)
    return add_text_to_image(canvas, text, font, size, config["color"], None, position=(MARGIN, MARGIN))


def _font_size(text: str, width: int) -> int:
    fitting = (size for size in FONT_SIZES if ImageFont.load_default(size).getlength(text) <= width)
    return next(fitting, FONT_SIZES[-1])
