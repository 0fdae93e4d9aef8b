# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Runs as jobs of anomalib's pipelines: each one ends in a row of the table, whatever happens."""

import gc
import signal
import time
import traceback
from collections.abc import Generator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import datetime, timezone
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from anomalib import LearningType
from anomalib.pipelines.components import Job, JobGenerator
from lightning.pytorch import seed_everything
from tqdm import tqdm

from anomalib_aprilgan.authors_protocol import AuthorsProtocol
from anomalib_aprilgan.comparison.callbacks import ExampleWriter, References, Stopwatch
from anomalib_aprilgan.comparison.components import make_datamodule, make_model
from anomalib_aprilgan.comparison.grid import Run
from anomalib_aprilgan.comparison.results import DONE, FAILED, METRICS, append_row
from anomalib_aprilgan.comparison.surroundings import describe_surroundings, peak_memory_mb, reset_peak_memory
from anomalib_aprilgan.integration.quiet import quietly
from anomalib_aprilgan.integration.quiet_engine import quiet_engine
from anomalib_aprilgan.lightning_model import AprilGan

__all__ = ["ComparisonJob", "ComparisonJobs", "Manner"]

EXAMPLES, SETTINGS, TRACEBACKS = "examples", "settings", "tracebacks"
"""Folders of the pictures for the report, of the arguments behind each digest, and of what failed runs left."""


@dataclass(frozen=True)
class Manner:
    """How all runs of a comparison are done.

    Attributes:
        output: Folder of the comparison.
        table: File that this process appends its rows to.
        trainer: Arguments of anomalib's Engine.
        examples: Pictures per category for the report.
    """

    output: Path
    table: Path
    trainer: Mapping[str, Any] = field(default_factory=dict)
    examples: int = 2


@dataclass(frozen=True)
class ComparisonJob(Job):
    """One run.

    Attributes:
        planned: The run.
        manner: How it is run.
        number: Its place among all that are still to be done, for those who watch.
        total: Their number.
    """

    name = "compare"

    planned: Run
    manner: Manner
    number: int
    total: int

    def run(self, task_id: int | None = None) -> dict[str, Any]:
        """Do the run, and write its row.

        Args:
            task_id: Number of the process among several.

        Returns:
            The row.
        """
        is_on_gpu = torch.cuda.is_available() and self.manner.trainer.get("accelerator", "auto") in {
            "auto",
            "gpu",
            "cuda",
        }
        device = f"cuda:{task_id or 0}" if is_on_gpu else "cpu"
        row: dict[str, Any] = dict(zip(("model", "data", "category", "shots", "seed"), self.planned.key, strict=True))
        row |= {
            "class_path": self.planned.component["class_path"],
            "settings": self.planned.digest,
            "started": datetime.now(tz=timezone.utc).isoformat(timespec="milliseconds"),
            **describe_surroundings(device),
        }
        start = time.perf_counter()
        self._write(SETTINGS, self.planned.digest, self.planned.settings)
        try:
            with (
                quietly(),
                redirect_stdout(StringIO()),
                redirect_stderr(StringIO()),
            ):  # some models have bars of their own
                row |= {"status": DONE, **self._measure([task_id or 0] if is_on_gpu else 1)}
        except Exception as error:  # of any kind: the next run shall begin all the same
            row |= {"status": FAILED, "error": f"{type(error).__name__}: {error}"}
            self._write(TRACEBACKS, "-".join(self.planned.key), traceback.format_exc())
        append_row(self.manner.table, row)
        tqdm.write(
            f"[{self.number}/{self.total}] {self.planned}: {_summary(row)} ({time.perf_counter() - start:.0f} s)"
        )
        _free_memory()
        return row

    def _measure(self, devices: int | list[int]) -> dict[str, Any]:
        """Train or set up, and test."""
        planned = self.planned
        reset_peak_memory()
        k_shot = None if planned.shots in (0, "full") else cast("int", planned.shots)
        references, stopwatch, protocol = References(k_shot, planned.seed), Stopwatch(), AuthorsProtocol()
        seed_everything(planned.seed, workers=True, verbose=False)
        model = make_model(planned.component, k_shot or 0)
        model.evaluator = AprilGan.configure_evaluator()
        writer = ExampleWriter(self.manner.output / EXAMPLES, planned, self.manner.examples)
        model.visualizer = cast("Any", writer)
        datamodule = make_datamodule(planned.datamodule, planned.category)
        arguments = {"accelerator": "auto", **self.manner.trainer, "devices": devices}
        with TemporaryDirectory(dir=self.manner.output, prefix=".unfinished-") as folder:
            engine = quiet_engine(Path(folder), callbacks=[references, stopwatch, protocol], **arguments)
            seed_everything(planned.seed, workers=True, verbose=False)  # so that splits do not depend on the model
            if model.learning_type not in {LearningType.ZERO_SHOT, LearningType.FEW_SHOT}:
                engine.fit(model, datamodule=datamodule)  # the test validates the others by itself
            (found,) = engine.test(model, datamodule=datamodule, verbose=False)
        return {
            **{name: float(found[name]) for name in METRICS if found.get(name) is not None},
            **protocol.values,
            "images": stopwatch.images,
            "fit_seconds": round(stopwatch.fit_seconds, 3),
            "test_seconds": round(stopwatch.test_seconds, 3),
            "seconds_per_image": round(stopwatch.image_seconds / max(stopwatch.images, 1), 5),
            "peak_memory_mb": round(peak_memory_mb(), 1),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "references": ";".join(references.files),
        }

    def _write(self, folder: str, name: str, text: str) -> None:
        """Keep what the table has no room for."""
        path = self.manner.output / folder / f"{name.replace('/', '_')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    @staticmethod
    def collect(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows as they are."""
        return results

    @staticmethod
    def save(results: object) -> None:
        """Do nothing: each row has been written when its run ended."""


def _free_memory() -> None:
    """Let the run's model and data go. Ctrl-C waits meanwhile: raised in a destructor, it would be passed over."""
    interrupts: list[int] = []
    holds_back = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if holds_back:
        signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    gc.collect()
    if holds_back:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupts:
        raise KeyboardInterrupt


def _summary(row: Mapping[str, Any]) -> str:
    """A row in a few words."""
    if row["status"] == FAILED:
        return f"FAILED, {row['error']}"
    shown = [
        f"{name.replace('_', ' ')} {100 * row[name]:.1f}" for name in ("image_AUROC", "pixel_AUROC") if name in row
    ]
    return ", ".join(shown)


class ComparisonJobs(JobGenerator):
    """The runs that are still to be done, for anomalib's runners.

    Args:
        runs: The runs.
        manner: How they are done.
        shows_progress: Show how many have been handed out, and the time left; for runners that do not.
    """

    def __init__(self, runs: list[Run], manner: Manner, *, shows_progress: bool) -> None:
        self.runs = runs
        self.manner = manner
        self.shows_progress = shows_progress

    @property
    def job_class(self) -> type[Job]:
        """The jobs' class."""
        return ComparisonJob

    def generate_jobs(self, args: object = None, prev_stage_result: object = None) -> Generator[Job, None, None]:
        """List the jobs. A list, not a generator, so that progress bars know how many there are."""
        del args, prev_stage_result
        jobs = [
            ComparisonJob(run, self.manner, number, len(self.runs)) for number, run in enumerate(self.runs, start=1)
        ]
        return cast("Generator[Job, None, None]", tqdm(jobs, ComparisonJob.name) if self.shows_progress else jobs)
