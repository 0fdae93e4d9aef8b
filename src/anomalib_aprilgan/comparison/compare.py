# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Compare models: find the missing runs, do them, and write the report.

anomalib is imported when a comparison starts, so that the command's help is quick.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from anomalib_aprilgan.comparison.folder import TRACEBACKS, prepare_folder
from anomalib_aprilgan.comparison.grid import Component, Run, Shots, checked_numbers, make_grid, shard_of
from anomalib_aprilgan.comparison.results import DONE, FAILED, KEY, read_runs, refuse_other_table
from anomalib_aprilgan.files.paths import checked_path

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
    features: str | None = "cache",
    scheduler: str | None = None,
) -> Path:
    """Test models side by side, and write a table with one row per run and a report.

    Runs that the folder already holds are not repeated. With the same seed and number of shots, all models get the same
    reference images; models that need training are trained on these images alone.

    Args:
        models: anomalib's classes with their arguments, by names of your own.
        data: One of anomalib's image datamodules with its arguments; on the command line for instance
            --data Folder --data.root path/to/images.
        categories: Categories of the data; all by default.
        shots: Numbers of normal reference images. 0: only models that work without any; full: models that are trained,
            on the whole training split.
        seeds: Seeds of training and of the choice of reference images. Zero-shot, only the first one is used, unless
            the models or the images may be random.
        output: Folder of the table (results.csv), the report (report.html, report.md) and the example images.
        shard: Do only a part of the runs, for instance 2/4 on the second of four machines that share the folder.
        retry_failed: Repeat runs that have failed. With other settings, they are repeated in any case.
        processes: Number of processes; by default one per GPU.
        examples: Number of anomalous test images per category that the report shows.
        trainer: Arguments of anomalib's Engine, for instance accelerator or max_epochs.
        features: Folder where AprilGan stores what CLIP returns for an image, in half precision, so that all shots and
            seeds encode it once. cache: the folder of the environment variable ANOMALIB_APRILGAN_FEATURES, else a
            cache. null: nothing is stored.
        scheduler: Address of a running dask scheduler whose workers do the runs, for instance tcp://127.0.0.1:8786.
            Default: this machine does them.

    Returns:
        The report.

    Raises:
        ValueError: If an argument is out of its range, data are missing, or the folder holds results of the same runs
            with other settings.
        OSError: If the folder cannot be written to, or no scheduler answers.
        RuntimeError: If a model gives wrong numbers with the installed versions or cannot be made, for instance
            because its weights cannot be downloaded, if workers of a cluster cannot be used, or if runs have failed. In
            the last case, the report has been written.
    """
    if scheduler is not None and (shard, processes) != (None, None):
        msg = (
            "Expected arguments `shard` and `processes` to be None with `scheduler`, whose workers share all runs, but "
            f"got {shard!r} and {processes!r}."
        )
        raise ValueError(msg)
    shots, seeds = checked_numbers(shots, seeds, processes)
    from anomalib_aprilgan.comparison import checks, components, environment, report  # noqa: PLC0415
    from anomalib_aprilgan.comparison.execution import do_runs, surroundings  # noqa: PLC0415
    from anomalib_aprilgan.comparison.job import ComparisonOptions  # noqa: PLC0415
    from anomalib_aprilgan.comparison.scheduler import check_cluster  # noqa: PLC0415
    from anomalib_aprilgan.comparison.zero_shot_seeds import zero_shot_seeds  # noqa: PLC0415
    from anomalib_aprilgan.integration.features import checked_features  # noqa: PLC0415

    models, data = components.checked_components(models, data)
    environment.check_environment(str(model["class_path"]) for model in models.values())
    output = checked_path(output, "output")
    zero_shot = [name for name, model in models.items() if components.is_zero_shot(model)]
    checks.check_trainer(trainer or {})
    with surroundings():
        categories = checks.find_categories(data, categories)
        of_zero_shot = zero_shot_seeds({name: models[name] for name in zero_shot}, data, categories, shots, seeds)
        grid = make_grid(models, data, categories, shots, seeds, zero_shot, of_zero_shot)
        part = shard_of(grid, shard)
        runs = _missing(part, output, retry_failed=retry_failed)
        refuse_other_table(output)
        if scheduler is not None and runs:
            check_cluster(scheduler)
        checks.check_data(runs)
        checks.check_models(runs)
        prepare_folder(output)
        print(f"{len(runs)} of {len(grid)} runs are to be done{f' here (shard {shard})' if shard else ''}.")  # noqa: T201
        if runs:
            options = ComparisonOptions(output, dict(trainer or {}), examples, checked_features(features))
            do_runs(runs, options, processes, scheduler)
    written = report.write_report(output)
    rows = _rows_by_key(read_runs(output))
    failed = [run for run in part if rows.get(run.key, {}).get("status") == FAILED]
    if failed:
        msg = (
            f"{len(failed)} of {len(part)} runs failed, the first of them {failed[0]}. Their tracebacks are in "
            f"{output / TRACEBACKS}. All results are in {written}. To repeat the failed runs, add --retry_failed true."
        )
        raise RuntimeError(msg)
    return written


def _missing(runs: Sequence[Run], output: Path, *, retry_failed: bool) -> list[Run]:
    """Leave out the runs that the folder already holds: results, and failures with the same settings.

    Raises:
        ValueError: If it holds results of a run of the same key with other settings.
    """
    rows = _rows_by_key(read_runs(output))
    is_same = {run.key: rows[run.key]["settings"] == run.settings for run in runs if run.key in rows}
    others = [run for run in runs if not is_same.get(run.key, True) and rows[run.key]["status"] == DONE]
    if others:
        msg = (
            f"Expected argument `output` to be a folder for these settings, but {output} holds {len(others)} of these "
            f"runs with other settings, the first of them {others[0]}. Give the model another name, or use another "
            "folder."
        )
        raise ValueError(msg)
    finished = {DONE} if retry_failed else {DONE, FAILED}
    return [run for run in runs if not is_same.get(run.key) or rows[run.key]["status"] not in finished]


def _rows_by_key(table: pd.DataFrame) -> dict[tuple[str, ...], dict[str, Any]]:
    return {tuple(row[name] for name in KEY): row for row in table.to_dict("records")}
