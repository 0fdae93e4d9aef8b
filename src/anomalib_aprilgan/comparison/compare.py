# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The comparison: which runs are missing, who does them, and the report at the end."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from anomalib.pipelines.components.runners import ParallelRunner, SerialRunner

from anomalib_aprilgan.comparison.components import checked_components, is_zero_shot, make_datamodule
from anomalib_aprilgan.comparison.grid import Component, Run, Shots, make_grid, shard_of
from anomalib_aprilgan.comparison.job import ComparisonJobs, Manner
from anomalib_aprilgan.comparison.report import write_report
from anomalib_aprilgan.comparison.results import DONE, FAILED, KEY, drop_torn_line, read_results, results_file
from anomalib_aprilgan.comparison.surroundings import refuse_unfit_surroundings
from anomalib_aprilgan.datamodule import category_names

__all__ = ["compare"]


def compare(
    models: Mapping[str, Component],
    data: Component,
    categories: Sequence[str] | None = None,
    shots: Sequence[Shots] = (0, 1, 2, 4),
    seeds: Sequence[int] = (0,),
    output: str | Path = "results/comparison",
    shard: str | None = None,
    retry_failed: bool = False,
    processes: int | None = None,
    examples: int = 2,
    trainer: Mapping[str, Any] | None = None,
) -> Path:
    """Test models side by side, one row per run, and write a report.

    The same call finishes what is missing. With the same seed and number of shots, all models get the same reference
    images; those that are trained are trained on them alone.

    Args:
        models: anomalib's classes with their arguments, by names of your own.
        data: One of anomalib's image datamodules with its arguments.
        categories: Categories of the data; all by default.
        shots: Numbers of normal reference images. 0: only models that can do without; full: models that are trained, on
            the whole training split.
        seeds: Seeds of training and of the choice of reference images.
        output: Folder of the table (results.csv), the report (report.html, report.md) and the example pictures.
        shard: Do only a part of the runs, for instance 2/4 on the second of four machines that share the folder.
        retry_failed: Repeat runs that have failed.
        processes: Processes at once; by default one per GPU.
        examples: Test images per category that are shown in the report.
        trainer: Arguments of anomalib's Engine, for instance accelerator or max_epochs.

    Returns:
        The report.

    Raises:
        ValueError: If an argument is out of its range, or the folder holds rows that were made with other settings.
        RuntimeError: If a model would give wrong numbers with what is installed.
    """
    models, data = checked_components(models, data)
    refuse_unfit_surroundings(str(model["class_path"]) for model in models.values())
    output, part = Path(output).expanduser(), _parse_shard(shard)
    zero_shot = [name for name, model in models.items() if is_zero_shot(model)]
    grid = make_grid(models, data, _find_categories(data, categories), shots, seeds, zero_shot)
    table = results_file(output, part)
    drop_torn_line(table)
    runs = _missing(shard_of(grid, part), output, retry_failed=retry_failed)
    print(f"{len(runs)} of {len(grid)} runs are to be done{f' here (shard {shard})' if shard else ''}.")  # noqa: T201
    if runs:
        output.mkdir(parents=True, exist_ok=True)
        count = processes or max(torch.cuda.device_count(), 1)
        manner = Manner(output, table, dict(trainer or {}), examples)
        jobs = ComparisonJobs(runs, manner, shows_progress=count > 1)  # anomalib's serial runner does it by itself
        runner = ParallelRunner(jobs, count) if count > 1 else SerialRunner(jobs)
        try:
            runner.run({})
        except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
            sys.exit(f"Interrupted. What is finished stays in {output}; the same command goes on.")
    return write_report(output)


def _parse_shard(shard: str | None) -> tuple[int, int] | None:
    if shard is None:
        return None
    number, _, shards = shard.partition("/")
    if not (number.isdecimal() and shards.isdecimal() and 1 <= int(number) <= int(shards)):
        msg = f"Expected argument `shard` to be for instance 2/4, the second of four parts, but got {shard!r}."
        raise ValueError(msg)
    return int(number), int(shards)


def _find_categories(data: Component, wanted: Sequence[str] | None) -> list[str]:
    """List the categories to test on."""
    datamodule = make_datamodule(data, "")
    if not datamodule.category:
        if wanted:
            msg = f"Expected argument `categories` to be None for {datamodule.name}, which has none, but got {wanted}."
            raise ValueError(msg)
        return [""]
    if not Path(getattr(datamodule, "root", ".")).is_dir():
        datamodule.prepare_data()  # downloads data sets that anomalib knows where to find
    found = category_names(datamodule)
    missing = sorted(set(wanted or ()) - set(found))
    if missing:
        msg = f"Expected argument `categories` to hold names from {found}, but got {missing}."
        raise ValueError(msg)
    return list(wanted or found)


def _missing(runs: Sequence[Run], output: Path, *, retry_failed: bool) -> list[Run]:
    """Leave out what the folder has a row for.

    Raises:
        ValueError: If it has one of a run by the same name with other settings.
    """
    rows = {tuple(row[name] for name in KEY): row for row in read_results(output).to_dict("records")}
    others = [run for run in runs if run.key in rows and rows[run.key]["settings"] != run.digest]
    if others:
        msg = (
            f"Expected argument `output` to be a folder for these settings, but {output} holds {len(others)} rows that "
            f"were made with others, the first of {others[0]}. Name the model differently, take another folder, or "
            "move its results*.csv elsewhere."
        )
        raise ValueError(msg)
    over = {DONE} if retry_failed else {DONE, FAILED}
    return [run for run in runs if run.key not in rows or rows[run.key]["status"] not in over]
