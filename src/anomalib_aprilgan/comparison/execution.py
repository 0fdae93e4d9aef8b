# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Does the runs of a comparison with anomalib's runners."""

import gc
import os
import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import torch
from anomalib.pipelines.components.runners import ParallelRunner, SerialRunner
from anomalib.pipelines.components.runners.parallel import ParallelExecutionError
from lightning.pytorch.utilities.seed import isolate_rng

from anomalib_aprilgan.comparison.grid import Run
from anomalib_aprilgan.comparison.job import ComparisonJobs, ComparisonOptions, RunNotSavedError
from anomalib_aprilgan.comparison.kept_model import release
from anomalib_aprilgan.comparison.scheduler import ClusterError, ClusterRunner

__all__ = ["do_runs", "surroundings"]

SAFE_PATH = "PYTHONSAFEPATH"
"""Variable with which Python (from 3.11 on) starts processes that import nothing from the current folder."""


@contextmanager
def surroundings() -> Iterator[None]:
    """Start processes that import nothing from the current folder, and leave random states and variables as they were.

    Runs seed the random generators and set variables with the seed, by which models later draw their references.
    """
    before = {name: os.environ.get(name) for name in (SAFE_PATH, "PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    os.environ[SAFE_PATH] = "1"
    try:
        with isolate_rng():
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def do_runs(runs: list[Run], options: ComparisonOptions, processes: int | None, scheduler: str | None = None) -> None:
    """Do the runs. A run that fails does not stop the others.

    Args:
        runs: The runs; at least one.
        options: Options that they share.
        processes: Number of processes; ``None``: one per GPU, or one.
        scheduler: Address of a dask scheduler whose workers do the runs; ``None``: processes of this machine do them.

    Raises:
        OSError: If the file of a run could not be written.
        RuntimeError: If a process was killed, or a cluster could not do a run.
    """
    count = processes or max(torch.cuda.device_count(), 1)
    is_parallel = count > 1 and scheduler is None
    jobs = ComparisonJobs(runs, options, shows_progress=is_parallel)  # the other runners have their own progress bars
    if is_parallel or scheduler:  # each process makes a model of its own
        release()
    gc.freeze()  # the garbage collection after each run skips imported modules, which took a third of a second
    kept = f"Finished runs are kept in {options.output}; run the same command again to continue."
    try:
        if scheduler:
            ClusterRunner(jobs, scheduler).run()
        else:
            (ParallelRunner(jobs, count) if is_parallel else SerialRunner(jobs)).run({})
    except RunNotSavedError as error:
        msg = f"The comparison stopped because a run could not be saved. {error} {kept}"
        raise OSError(msg) from error
    except (BrokenProcessPool, ParallelExecutionError) as error:
        msg = f"A process of the comparison was killed, perhaps because memory ran out. {kept}"
        raise RuntimeError(msg) from error
    except ClusterError as error:
        msg = f"{error} {kept}"
        raise RuntimeError(msg) from error
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
        sys.exit(f"Interrupted. {kept}")
    finally:
        gc.unfreeze()
        release()
