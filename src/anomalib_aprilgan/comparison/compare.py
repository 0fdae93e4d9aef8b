# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Compare models: find the missing runs, do them, and write the report."""

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from anomalib.pipelines.components.runners import ParallelRunner, SerialRunner
from anomalib.pipelines.components.runners.parallel import ParallelExecutionError

from anomalib_aprilgan.comparison.environment import check_environment
from anomalib_aprilgan.comparison.folder import TRACEBACKS, prepare_folder
from anomalib_aprilgan.comparison.grid import (
    Component,
    Run,
    Shots,
    checked_components,
    is_zero_shot,
    make_datamodule,
    make_grid,
    shard_of,
)
from anomalib_aprilgan.comparison.job import ComparisonJobs, ComparisonOptions, RunNotSavedError
from anomalib_aprilgan.comparison.report import write_report
from anomalib_aprilgan.comparison.results import DONE, FAILED, KEY, read_runs, refuse_other_table
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
    """Test models side by side, and write a table with one row per run and a report.

    Runs that the folder already holds are not repeated. With the same seed and number of shots, all models get the same
    reference images; models that need training are trained on these images alone.

    Args:
        models: anomalib's classes with their arguments, by names of your own.
        data: One of anomalib's image datamodules with its arguments.
        categories: Categories of the data; all by default.
        shots: Numbers of normal reference images. 0: only models that work without any; full: models that are trained,
            on the whole training split.
        seeds: Seeds of training and of the choice of reference images.
        output: Folder of the table (results.csv), the report (report.html, report.md) and the example images.
        shard: Do only a part of the runs, for instance 2/4 on the second of four machines that share the folder.
        retry_failed: Repeat runs that have failed.
        processes: Number of processes; by default one per GPU.
        examples: Number of anomalous test images per category that the report shows.
        trainer: Arguments of anomalib's Engine, for instance accelerator or max_epochs.

    Returns:
        The report.

    Raises:
        ValueError: If an argument is out of its range, or the folder holds the same runs with other settings.
        OSError: If the folder cannot be written to.
        RuntimeError: If a model gives wrong numbers with the installed versions, or runs have failed. In the second
            case, the report has been written.
    """
    models, data = checked_components(models, data)
    check_environment(str(model["class_path"]) for model in models.values())
    output = Path(output).expanduser()
    zero_shot = [name for name, model in models.items() if is_zero_shot(model)]
    grid = make_grid(models, data, _find_categories(data, categories), shots, seeds, zero_shot)
    part = shard_of(grid, shard)
    runs = _missing(part, output, retry_failed=retry_failed)
    refuse_other_table(output)
    prepare_folder(output)
    print(f"{len(runs)} of {len(grid)} runs are to be done{f' here (shard {shard})' if shard else ''}.")  # noqa: T201
    _do(runs, ComparisonOptions(output, dict(trainer or {}), examples), processes)
    report = write_report(output)
    rows = _rows_by_key(read_runs(output))
    failed = [run for run in part if rows.get(run.key, {}).get("status") == FAILED]
    if failed:
        msg = (
            f"{len(failed)} of {len(part)} runs failed, the first of them {failed[0]}. Their tracebacks are in "
            f"{output / TRACEBACKS}. All results are in {report}. To repeat the failed runs, add --retry_failed true."
        )
        raise RuntimeError(msg)
    return report


def _find_categories(data: Component, wanted: Sequence[str] | None) -> list[str]:
    """List the categories to test on."""
    datamodule = make_datamodule(data, "")
    if not datamodule.category:
        if wanted:
            msg = f"Expected argument `categories` to be None for {datamodule.name}, which has none, but got {wanted}."
            raise ValueError(msg)
        return [""]
    if not Path(getattr(datamodule, "root", ".")).is_dir():
        datamodule.prepare_data()  # downloads the data sets that anomalib has addresses of
    found = category_names(datamodule)
    missing = sorted(set(wanted or ()) - set(found))
    if missing:
        msg = f"Expected argument `categories` to hold names from {found}, but got {missing}."
        raise ValueError(msg)
    return list(wanted or found)


def _missing(runs: Sequence[Run], output: Path, *, retry_failed: bool) -> list[Run]:
    """Leave out the runs that the folder already holds.

    Raises:
        ValueError: If it holds a run of the same key with other settings.
    """
    rows = _rows_by_key(read_runs(output))
    others = [run for run in runs if run.key in rows and rows[run.key]["settings"] != run.settings]
    if others:
        msg = (
            f"Expected argument `output` to be a folder for these settings, but {output} holds {len(others)} of these "
            f"runs with other settings, the first of them {others[0]}. Give the model another name, or use another "
            "folder."
        )
        raise ValueError(msg)
    finished = {DONE} if retry_failed else {DONE, FAILED}
    return [run for run in runs if run.key not in rows or rows[run.key]["status"] not in finished]


def _rows_by_key(table: pd.DataFrame) -> dict[tuple[str, ...], dict[str, Any]]:
    return {tuple(row[name] for name in KEY): row for row in table.to_dict("records")}


def _do(runs: list[Run], options: ComparisonOptions, processes: int | None) -> None:
    """Do the runs with anomalib's runners.

    Raises:
        OSError: If the file of a run could not be written.
        RuntimeError: If a process was killed.
    """
    if not runs:
        return
    count = processes or max(torch.cuda.device_count(), 1)
    jobs = ComparisonJobs(runs, options, shows_progress=count > 1)  # anomalib's serial runner has its own progress bar
    kept = f"Finished runs are kept in {options.output}; run the same command again to continue."
    try:
        (ParallelRunner(jobs, count) if count > 1 else SerialRunner(jobs)).run({})
    except RunNotSavedError as error:
        msg = f"The comparison stopped because a run could not be saved. {error} {kept}"
        raise OSError(msg) from error
    except (BrokenProcessPool, ParallelExecutionError) as error:
        msg = f"A process of the comparison was killed, perhaps because memory ran out. {kept}"
        raise RuntimeError(msg) from error
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
        sys.exit(f"Interrupted. {kept}")
