# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The table of a prediction: one row per image, written as it goes, and a line on the screen that sums it up."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

import cv2
import numpy as np
import torch
from anomalib.post_processing import PostProcessor
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from anomalib_aprilgan.integration import run_images
from anomalib_aprilgan.integration.output_files import OutputFolder, named_items, write_output, write_picture
from anomalib_aprilgan.integration.post_processing import AprilGanPostProcessor
from anomalib_aprilgan.integration.visualizer import AprilGanVisualizer, photograph_size

__all__ = ["PredictionFiles", "PredictionTable"]

Format = Literal["csv", "jsonl"]
Maps = Literal["npy", "tiff"]

Row = dict[str, Any]

SCORE_DIGITS = 9
"""Significant digits that determine a 32-bit float."""


@dataclass(frozen=True)
class PredictionFiles:
    """Files that a prediction writes beside the pictures.

    The table ``predictions.csv`` has one row per image, with these columns: ``file``; ``score``; ``label``, which is
    ``normal`` or ``anomalous``; ``threshold``, above which a score is anomalous; ``heatmap``, the path of the picture.
    What the model does not compute is left empty.

    Args:
        format: ``"csv"``, or ``"jsonl"`` for JSON lines in ``predictions.jsonl``.
        maps: Also write each anomaly map with 32 bits per pixel, as ``"npy"`` (NumPy) or ``"tiff"``, into the folder
            ``maps``; the column ``map`` has the path. A map has the size of the model's input. Its values are those
            that the Engine returns, in [0, 1] unless the post-processor does not normalise.
        boxes: Also write the column ``boxes``: for each region above the threshold left, top, right and bottom in
            pixels of the photograph, as JSON.

    Raises:
        ValueError: If an option has another value.
    """

    format: Format = "csv"
    maps: Maps | None = None
    boxes: bool = False

    def __post_init__(self) -> None:
        for name, values in (("format", get_args(Format)), ("maps", (None, *get_args(Maps)))):
            if getattr(self, name) not in values:
                expected = ", ".join("null" if value is None else value for value in values)
                msg = f"Expected argument `{name}` to be one of {expected}, but got {getattr(self, name)!r}."
                raise ValueError(msg)


class PredictionTable(Callback):
    """Writes the files of predictions, and prints how many images are anomalous and where the files are.

    Several processes write a part of the table each; the first process merges them at the end.

    Args:
        options: What to write.
    """

    def __init__(self, options: PredictionFiles) -> None:
        self._options = options
        self._files: list[str] = []
        self._total = self._anomalous = 0
        self._replaces = False
        self._summary = ""

    def begin(self, trainer: Trainer) -> None:
        """Remove the table and the maps of an earlier prediction, before anything that the table names is removed.

        Args:
            trainer: The trainer of the prediction.
        """
        root = Path(trainer.default_root_dir)
        self._files = run_images.image_files(trainer.predict_dataloaders)
        self._total = self._anomalous = 0
        self._table_folder = OutputFolder(root, self._files)
        self._maps = OutputFolder(root / "maps", self._files)
        self._replaces = self._table_folder.clear(trainer)
        self._maps.clear(trainer)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a row, and a map if asked for, for each image of a batch."""
        del outputs
        threshold, visualizer = _threshold(pl_module), getattr(pl_module, "visualizer", None)
        rows: list[Row] = []
        for file, item in named_items(batch, trainer, batch_idx, dataloader_idx):
            picture = visualizer.picture_of(file) if isinstance(visualizer, AprilGanVisualizer) else None
            row: Row = {
                "file": file,
                "score": None if item.pred_score is None else float(f"{float(item.pred_score):.{SCORE_DIGITS}g}"),
                "label": None if item.pred_label is None else ("anomalous" if item.pred_label else "normal"),
                "threshold": threshold,
                "heatmap": None if picture is None else str(picture.absolute()),
            }
            if self._options.maps:
                row["map"] = str(self._write_map(file, item.anomaly_map).absolute())
            if self._options.boxes:
                row["boxes"] = _boxes(item)
            rows.append(row)
        as_json = self._options.format == "jsonl" or trainer.world_size > 1
        self._write(self._part(trainer, trainer.global_rank), rows, is_first=self._total == 0, as_json=as_json)
        self._total += len(rows)
        self._anomalous += sum(row["label"] == "anomalous" for row in rows)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the parts of several processes, and sum up."""
        counts = torch.tensor([self._total, self._anomalous], device=pl_module.device)
        total, anomalous = trainer.strategy.reduce(counts, reduce_op="sum").tolist()  # waits for all processes
        if not trainer.is_global_zero or not total:
            return
        if trainer.world_size > 1:
            self._merge(trainer)
        visualizer = getattr(pl_module, "visualizer", None)
        folder = visualizer.folder if isinstance(visualizer, AprilGanVisualizer) else None
        pictures = "" if folder is None else f" Pictures: {_shortest(folder)}"
        replaced = " (replaces that of an earlier prediction)" if self._replaces else ""
        verdict = ""
        if _threshold(pl_module) is not None:
            verdict = f"{anomalous} of {total} images are anomalous{_origin_of_threshold(pl_module)}. "
        self._summary = f"{verdict}Table of scores: {_shortest(self._part(trainer, None))}{replaced}.{pictures}"

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the summary as the last line, below the progress bar."""
        del pl_module, stage
        if self._summary:
            trainer.print(self._summary)
        self._summary = ""

    def _part(self, trainer: Trainer, rank: int | None) -> Path:
        """Return the file of a process, or of all together."""
        whole = Path(trainer.default_root_dir) / f"predictions.{self._options.format}"
        is_part = rank is not None and trainer.world_size > 1
        return whole.with_name(f"{whole.name}.part{rank}") if is_part else whole

    def _write(self, path: Path, rows: Iterable[Row], *, is_first: bool, as_json: bool) -> None:
        """Write rows: the first ones replace a file that exists, others are appended. Rows are written as a whole.

        Raises:
            OSError: If the disk is full.
        """
        if is_first:
            self._table_folder.add(path)
        text = StringIO(newline="")
        if as_json:
            text.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        else:
            _write_csv(text, list(rows), has_heading=is_first)
        content = text.getvalue().encode("utf-8", "surrogateescape")
        with path.open("wb" if is_first else "ab", buffering=0) as table:
            before, rest = table.tell(), memoryview(content)
            try:
                while rest:  # the first write to a full disk is cut short, the next one raises an error
                    rest = rest[table.write(rest) :]
            except OSError as error:
                table.truncate(before)
                msg = f"{error.strerror}, so that the last scores were not written"
                raise OSError(error.errno, msg, str(path)) from error

    def _merge(self, trainer: Trainer) -> None:
        """Merge the parts of all processes, in the order of the images.

        Raises:
            RuntimeError: If parts are missing.
        """
        order = {file: number for number, file in enumerate(self._files)}
        parts = [self._part(trainer, rank) for rank in range(trainer.world_size)]
        missing = [part.name for part in parts if not part.is_file()]  # each process has an image
        if missing:
            msg = (
                f"Expected a part of the table from each process in {parts[0].parent}, but these are missing: "
                f"{', '.join(missing)}. All machines need the same folder: pass one on a shared file system as "
                "`default_root_dir`."
            )
            raise RuntimeError(msg)
        rows: list[Row] = []
        for part in parts:
            with part.open(encoding="utf-8", errors="surrogateescape") as table:
                rows += map(json.loads, table)
        rows.sort(key=lambda row: order.get(row["file"], len(order)))
        self._write(self._part(trainer, None), rows, is_first=True, as_json=self._options.format == "jsonl")
        for part in parts:
            part.unlink()

    def _write_map(self, file: str, anomaly_map: torch.Tensor) -> Path:
        path = self._maps.add(self._maps.path_for(file, f".{self._options.maps}"))
        values = anomaly_map.squeeze().float().cpu().numpy()
        if self._options.maps == "tiff":
            write_picture(path, Image.fromarray(values))
        else:
            np.save(content := BytesIO(), values)
            write_output(path, content.getvalue())
        return path


def _write_csv(table: TextIO, rows: Sequence[Row], *, has_heading: bool) -> None:
    """Write rows as CSV. No path begins like a formula, which a spreadsheet would run."""
    writer = csv.DictWriter(table, rows[0])
    if has_heading:
        writer.writeheader()
    for row in rows:
        values = {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}
        if row["file"].startswith(("=", "+", "-", "@", "\t", "\r")):
            values["file"] = f"./{row['file']}"
        writer.writerow(values)


def _shortest(path: Path) -> Path:
    """Return a path relative to the current folder if it lies in it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _threshold(module: LightningModule) -> float | None:
    """Return the score above which the post-processor labels an image anomalous; ``None`` if it does not label."""
    post_processor = getattr(module, "post_processor", None)
    if not isinstance(post_processor, PostProcessor) or not post_processor.enable_thresholding:
        return None
    return float(f"{float(post_processor.normalized_image_threshold):.{SCORE_DIGITS}g}")


def _origin_of_threshold(module: LightningModule) -> str:
    """Say where the threshold comes from, in brackets; nothing if the post-processor does not know."""
    post_processor = getattr(module, "post_processor", None)
    if not isinstance(post_processor, AprilGanPostProcessor):
        return ""
    calibration = post_processor.calibration
    origin = "a probability of 0.5, not calibrated" if calibration is None else f"from {calibration.summary}"
    return f" (threshold: {origin})"


def _boxes(item: Any) -> list[list[int]]:  # noqa: ANN401  # an item of anomalib
    """Return a box around each predicted region: left, top, right and bottom edge in pixels of the photograph."""
    if item.pred_mask is None:
        msg = "Expected the post-processor to compute masks for argument `boxes`, but it does not. Let it label images."
        raise ValueError(msg)
    mask = item.pred_mask.squeeze().cpu().numpy().astype(np.uint8)
    _, _, regions, _ = cv2.connectedComponentsWithStats(mask)
    left, top, width, height = regions[1:, :4].T  # the first one is the background
    edges = np.stack([left, top, left + width, top + height], axis=1)
    scale = np.array(photograph_size(item)) / mask.shape[::-1]
    boxes: list[list[int]] = np.rint(edges * np.tile(scale, 2)).astype(int).tolist()
    return boxes
