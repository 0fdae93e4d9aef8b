# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Does the runs of a comparison on a cluster of dask.

Each run is one task. A worker writes the file of its run into the shared folder and returns only the line that reports
it, so a run that was done twice, because its worker was lost, still has one row.

The package distributed is an extra, so it is imported when a cluster is used.
"""

import multiprocessing
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import uuid4

from anomalib.pipelines.components import Runner
from tqdm import tqdm

from anomalib_aprilgan.comparison.environment import DISTRIBUTIONS
from anomalib_aprilgan.comparison.folder import RUNS
from anomalib_aprilgan.comparison.job import ComparisonJob, ComparisonJobs
from anomalib_aprilgan.comparison.kept_model import release
from anomalib_aprilgan.comparison.results import read_run, run_file
from anomalib_aprilgan.files.whole_files import write_file

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["ClusterError", "ClusterRunner", "check_cluster", "do_on_worker"]

SECONDS_TO_CONNECT: Final = 8
"""After this time, a scheduler that does not answer is taken for unreachable."""

_one_run = Lock()
"""Held during a run: seeds, the current folder and the output stream belong to the whole process."""


class ClusterError(RuntimeError):
    """A worker could not begin a run, or each worker that did it was lost."""


def check_cluster(address: str) -> None:
    """Check that a scheduler answers, and that its workers have the versions of this machine.

    Args:
        address: The scheduler's address.

    Raises:
        ConnectionError: If no scheduler answers within 10 seconds.
        RuntimeError: If the package distributed is missing, or a worker has other versions.
    """
    if find_spec("distributed") is None:
        msg = 'A cluster needs distributed: run pip install ".[cluster]" in a checkout of anomalib-aprilgan.'
        raise RuntimeError(msg)
    with _connected(address) as client:
        expected = _versions()
        found: dict[str, dict[str, str]] = {}
        for name in expected:
            for worker, answer in client.run(version, name, on_error="return").items():
                if isinstance(answer, (str, PackageNotFoundError)):  # other errors: the worker has just been lost
                    found.setdefault(worker, {})[name] = str(answer) if isinstance(answer, str) else "nothing"
        for worker, versions in found.items():
            _refuse_other_versions(expected, versions, f"the worker {worker}")
        if not found:
            print(f"The runs wait for workers. To start one: dask worker {address} --nthreads 1")  # noqa: T201


class ClusterRunner(Runner):
    """Does jobs on the workers of a dask scheduler. dask repeats a job elsewhere if its worker is lost.

    Args:
        jobs: The jobs.
        address: The scheduler's address.
    """

    def __init__(self, jobs: ComparisonJobs, address: str) -> None:
        super().__init__(jobs)
        self._address = address

    def run(self, args: object = None, prev_stage_results: object = None) -> None:
        """Do the jobs.

        Raises:
            ClusterError: If each worker that did a run was lost, after the other runs; or, at once, if a worker cannot
                begin a run, or the scheduler is lost.
            ConnectionError: If no scheduler answers.
            SystemExit: What a run raised, for instance ``RunNotSavedError``. No further run begins.
        """
        jobs = cast("list[ComparisonJob]", list(self.generator.generate_jobs(cast("Any", args), prev_stage_results)))
        with (
            _connected(self._address) as client,
            _sign_in(jobs[0].options.output) as sign,
            tqdm(total=len(jobs), desc=ComparisonJob.name) as bar,
        ):
            # dask also gives up a job that merely waited on each of several workers that were lost.
            suspects = self._do(client, jobs, sign, bar)
            killers = [job for suspect in suspects for job in self._do(client, [suspect], sign, bar)]
            client.run(release, on_error="ignore")
        if killers:
            msg = (
                f"{len(killers)} of {len(jobs)} runs ended every worker that did them, perhaps because memory ran out, "
                f"the first of them {killers[0].planned}. The other runs were done."
            )
            raise ClusterError(msg)

    def _do(self, client: "Client", jobs: list[ComparisonJob], sign: Path, bar: "tqdm[Any]") -> list[ComparisonJob]:
        """Do jobs, and return those that dask has given up."""
        from distributed import KilledWorker, as_completed  # noqa: PLC0415

        place = {"folder": Path.cwd(), "sign": sign, "versions": _versions()}
        futures = client.map(do_on_worker, jobs, pure=False, **place)
        job_of = {future.key: job for future, job in zip(futures, jobs, strict=True)}
        given_up = []
        for future in as_completed(futures, loop=client.loop):  # after an error, the client's end cancels the rest
            job = job_of[future.key]
            try:
                result = future.result()
            except KilledWorker:
                given_up.append(job)
                continue
            except Exception as error:
                msg = f"{job.planned} was not done by {self._address}: {type(error).__name__}: {error}"
                raise ClusterError(msg) from error
            if isinstance(result, SystemExit):
                raise result
            bar.write(result)
            bar.update()
        return given_up


def do_on_worker(job: ComparisonJob, folder: Path, sign: Path, versions: Mapping[str, str]) -> str | SystemExit:
    """Do one run on a worker, in the folder in which the command was started: relative paths mean the same there.

    Args:
        job: The run.
        folder: The folder.
        sign: A file that exists as long as the command runs.
        versions: The versions that the worker must have.

    Returns:
        The line that reports the run; or the ``SystemExit`` that it raised, which would end the worker.

    Raises:
        RuntimeError: If the worker has other versions, or does not share the folders.
    """
    with _one_run:
        node = f"a worker on {platform.node()}"
        _refuse_other_versions(versions, _versions(), node)
        if not (folder.is_dir() and (folder / sign).is_file()):
            msg = (
                f"Expected {node} to share the folders {folder} and {(folder / sign).parent.parent} with the machine "
                "of the command, under the same paths, but they are missing there, or the command has ended."
            )
            raise RuntimeError(msg)
        start = perf_counter()
        try:
            with _working_in(folder):
                row = _row_of(job) or _without_processes(job).run()
        except SystemExit as error:
            return error
        return job.report(row, perf_counter() - start)


def _row_of(job: ComparisonJob) -> dict[str, Any] | None:
    """Return the row of a run that a lost worker had done before."""
    output, run = job.options.output, job.planned
    try:
        row = read_run(output, run_file(output, run.key))
    except FileNotFoundError:
        return None
    return row if row.get("settings") == run.settings else None


def _without_processes(job: ComparisonJob) -> ComparisonJob:
    """Let a run load its images itself in workers that may not start processes, as is dask's default."""
    data = job.planned.datamodule
    arguments = dict(data.get("init_args") or {})
    if not (multiprocessing.current_process().daemon and arguments.get("num_workers")):
        return job
    return replace(job, planned=replace(job.planned, datamodule={**data, "init_args": arguments | {"num_workers": 0}}))


def _versions() -> dict[str, str]:
    return {name: version(name) for name in DISTRIBUTIONS.values()}


def _refuse_other_versions(expected: Mapping[str, str], found: Mapping[str, str], where: str) -> None:
    """Raise an error if versions differ. Builds of one version, as of torch for CPU and GPU, may differ."""
    different = [
        f"{name} {other} in place of {expected[name]}"
        for name, other in found.items()
        if other.partition("+")[0] != expected[name].partition("+")[0]
    ]
    if different:
        msg = f"Expected {where} to have the versions of the machine of the command, but it has {', '.join(different)}."
        raise RuntimeError(msg)


@contextmanager
def _connected(address: str) -> "Iterator[Client]":
    from distributed import Client  # noqa: PLC0415

    try:
        client = Client(address, timeout=SECONDS_TO_CONNECT, set_as_default=False)
    except Exception as error:  # of many types, for instance MemoryError if something else answers
        msg = (
            f"Expected argument `scheduler` to be the address of a dask scheduler, for instance tcp://127.0.0.1:8786, "
            f"but none answers at {address!r} ({type(error).__name__}: {error}). To start one: dask scheduler"
        )
        raise ConnectionError(msg) from error
    with client:
        yield client


@contextmanager
def _sign_in(output: Path) -> Iterator[Path]:
    """Provide a file by which workers see that they share the folder of a comparison."""
    sign = write_file(output / RUNS / f".command-{uuid4().hex}", "")
    try:
        yield sign
    finally:
        sign.unlink(missing_ok=True)


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
