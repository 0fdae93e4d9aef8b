# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Runs as jobs of anomalib's pipelines. Each run ends with a file in the comparison's folder, also if it fails."""

import errno
import gc
import signal
import threading
import time
import traceback
from collections.abc import Generator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import datetime, timezone
from io import StringIO
from pathlib import Path
from typing import Any, cast

import torch
from anomalib import LearningType
from anomalib.pipelines.components import Job, JobGenerator
from lightning.pytorch import seed_everything
from tqdm import tqdm

from anomalib_aprilgan.comparison import kept_model
from anomalib_aprilgan.comparison.authors_protocol import AuthorsProtocol
from anomalib_aprilgan.comparison.callbacks import ExampleWriter, References, Stopwatch
from anomalib_aprilgan.comparison.components import make_datamodule
from anomalib_aprilgan.comparison.environment import PeakMemory, describe_environment, device_of_run
from anomalib_aprilgan.comparison.folder import EXAMPLES
from anomalib_aprilgan.comparison.grid import Run
from anomalib_aprilgan.comparison.results import DONE, FAILED, KEY, METRICS, traceback_file, write_run
from anomalib_aprilgan.files.whole_files import unfinished_folder, write_file
from anomalib_aprilgan.integration.features import CACHED_FEATURES
from anomalib_aprilgan.integration.quiet import quietly
from anomalib_aprilgan.integration.quiet_engine import quiet_engine
from anomalib_aprilgan.lightning_model import AprilGan

__all__ = ["ComparisonJob", "ComparisonJobs", "ComparisonOptions", "RunNotSavedError"]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors that stop the comparison: no other run could be saved either."""


class RunNotSavedError(SystemExit):
    """The results of a run could not be written.

    It is not an ``Exception``, because anomalib's runners continue after an exception.
    """


@dataclass(frozen=True)
class ComparisonOptions:
    """Options that all runs of a comparison share.

    Attributes:
        output: Folder of the comparison.
        trainer: Arguments of anomalib's Engine.
        examples: Number of anomalous images per category for the report.
        features: Where ``AprilGan`` stores the features of images, as its argument of that name.
    """

    output: Path
    trainer: Mapping[str, Any] = field(default_factory=dict)
    examples: int = 2
    features: str | Path | None = CACHED_FEATURES


@dataclass(frozen=True)
class ComparisonJob(Job):
    """One run.

    Attributes:
        planned: The run.
        options: Options of the comparison.
        number: Its number among the runs to be done, for the progress message.
        total: Number of the runs to be done.
    """

    name = "compare"

    planned: Run
    options: ComparisonOptions
    number: int
    total: int

    def run(self, task_id: int | None = None) -> dict[str, Any]:
        """Do the run, and write its file.

        Args:
            task_id: Number of the process if there are several.

        Returns:
            The row of the table of results.

        Raises:
            RunNotSavedError: If the file could not be written, or the disk is full.
        """
        device = device_of_run(self.options.trainer.get("accelerator", "auto"), task_id or 0)
        row: dict[str, Any] = {
            **dict(zip(KEY, self.planned.key, strict=True)),
            "class_path": str(self.planned.component["class_path"]),
            "settings": self.planned.settings,
            "arguments": self.planned.arguments,
            "started": datetime.now(tz=timezone.utc).isoformat(timespec="milliseconds"),
            **describe_environment(device),
        }
        start = time.perf_counter()
        trace = ""
        try:  # some models print progress bars of their own
            with quietly(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                row |= {"status": DONE, **self._measure(device, row["started"])}
        except Exception as error:  # of any kind: the other runs are done all the same
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise self._not_saved(error) from error
            row |= {"status": FAILED, "error": f"{type(error).__name__}: {error}"}
            trace = traceback.format_exc()
        try:
            if trace:
                write_file(traceback_file(self.options.output, self.planned.key), trace)
            write_run(self.options.output, row)
        except (OSError, ValueError) as error:
            raise self._not_saved(error) from error
        tqdm.write(self.report(row, time.perf_counter() - start))
        if row["status"] == FAILED:
            kept_model.release()
        _free_memory()
        return row

    def report(self, row: Mapping[str, Any], seconds: float) -> str:
        """Report the end of the run in one line.

        Args:
            row: The row of the table of results.
            seconds: Duration of the run.
        """
        return f"[{self.number}/{self.total}] {self.planned}: {_summary(row)} ({seconds:.0f} s)"

    def _not_saved(self, error: Exception) -> RunNotSavedError:
        return RunNotSavedError(f"{self.planned}: {error}")

    def _measure(self, device: torch.device, started: str) -> dict[str, Any]:
        """Train or set up the model, and test it."""
        planned = self.planned
        kept_model.release(except_of=planned.component)
        memory = PeakMemory(device)
        k_shot = None if planned.shots in (0, "full") else cast("int", planned.shots)
        references, stopwatch, protocol = References(k_shot, planned.seed), Stopwatch(), AuthorsProtocol()
        seed_everything(planned.seed, workers=True, verbose=False)
        model = kept_model.model_of(planned.component, k_shot or 0)
        if isinstance(model, AprilGan):
            model.features = self.options.features
        model.evaluator = AprilGan.configure_evaluator()
        writer = ExampleWriter(self.options.output / EXAMPLES, planned, started, self.options.examples)
        model.visualizer = cast("Any", writer)
        datamodule = make_datamodule(planned.datamodule, planned.category)
        arguments = {
            "accelerator": "auto",
            **self.options.trainer,
            "devices": 1 if device.index is None else [device.index],
        }
        with unfinished_folder(self.options.output) as folder:
            engine = quiet_engine(folder, callbacks=[references, stopwatch, protocol], **arguments)
            seed_everything(planned.seed, workers=True, verbose=False)  # so that splits do not depend on the model
            if model.learning_type not in {LearningType.ZERO_SHOT, LearningType.FEW_SHOT}:
                engine.fit(model, datamodule=datamodule)  # the others are validated by `test` itself
            (found,) = engine.test(model, datamodule=datamodule, verbose=False)
        return {
            **{name: float(found[name]) for name in METRICS if found.get(name) is not None},
            **protocol.values,
            "images": stopwatch.images,
            "fit_seconds": round(stopwatch.fit_seconds, 3),
            "test_seconds": round(stopwatch.test_seconds, 3),
            "seconds_per_image": round(stopwatch.image_seconds / max(stopwatch.images, 1), 5),
            "peak_memory_mb": round(memory.megabytes, 1),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "references": ";".join(references.files),
        }

    @staticmethod
    def collect(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows as they are."""
        return results

    @staticmethod
    def save(results: object) -> None:
        """Do nothing: each run has written its own file."""


def _free_memory() -> None:
    """Free the run's model and data. Ctrl-C is delayed meanwhile: Python ignores exceptions raised in destructors."""
    interrupts: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()  # which alone gets and sets signals
    holds_back = is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if holds_back:
        signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    gc.collect()
    if holds_back:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupts:
        raise KeyboardInterrupt


def _summary(row: Mapping[str, Any]) -> str:
    """Summarise a row for the progress message."""
    if row["status"] == FAILED:
        return f"FAILED, {' '.join(row['error'].split())[:200]}"
    shown = [
        f"{name.replace('_', ' ')} {100 * row[name]:.1f}" for name in ("image_AUROC", "pixel_AUROC") if name in row
    ]
    return ", ".join(shown)


class ComparisonJobs(JobGenerator):
    """The runs to be done, for anomalib's runners.

    Args:
        runs: The runs.
        options: Options of the comparison.
        shows_progress: Show a progress bar, for runners that have none.
    """

    def __init__(self, runs: list[Run], options: ComparisonOptions, *, shows_progress: bool) -> None:
        self.runs = runs
        self.options = options
        self.shows_progress = shows_progress

    @property
    def job_class(self) -> type[Job]:
        """The jobs' class."""
        return ComparisonJob

    def generate_jobs(self, args: object = None, prev_stage_result: object = None) -> Generator[Job, None, None]:
        """List the jobs. It is a list, not a generator, so that progress bars know the total."""
        del args, prev_stage_result
        jobs = [
            ComparisonJob(run, self.options, number, len(self.runs)) for number, run in enumerate(self.runs, start=1)
        ]
        return cast("Generator[Job, None, None]", tqdm(jobs, ComparisonJob.name) if self.shows_progress else jobs)
