"""Comparisons on a cluster of dask: lost workers, full disks, other versions, unreachable schedulers.

The workers of the quick tests are forks of the test's process, so that they start at once. Their runs only write rows.
"""

import asyncio
import contextlib
import errno
import multiprocessing
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from anomalib_aprilgan.cli import main
from anomalib_aprilgan.comparison import scheduler as scheduler_module
from anomalib_aprilgan.comparison.compare import compare
from anomalib_aprilgan.comparison.execution import do_runs
from anomalib_aprilgan.comparison.folder import RUNS
from anomalib_aprilgan.comparison.grid import Run
from anomalib_aprilgan.comparison.job import ComparisonJob, ComparisonJobs, ComparisonOptions, RunNotSavedError
from anomalib_aprilgan.comparison.results import DONE, KEY, read_runs, write_run
from anomalib_aprilgan.comparison.scheduler import ClusterRunner, check_cluster

distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
if sys.platform == "win32":
    pytest.skip("Windows has neither fork nor SIGKILL", allow_module_level=True)

ROOT = Path(__file__).parents[1]
FORK = multiprocessing.get_context("fork")
DEATHS = 2
"""The scheduler gives up a run after so many lost workers, unless a test says otherwise."""


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


def be_scheduler(address: str, deaths: int) -> None:
    async def run() -> None:
        port = int(address.rpartition(":")[2])
        node = distributed.Scheduler(host="127.0.0.1", port=port, dashboard_address=":0", allowed_failures=deaths - 1)
        async with node:
            await node.finished()

    asyncio.run(run())


def be_worker(address: str, threads: int) -> None:
    async def run() -> None:
        async with distributed.Worker(address, nthreads=threads, memory_limit=0, dashboard_address=":0") as node:
            await node.finished()

    asyncio.run(run())


@pytest.fixture
def cluster() -> Iterator[Callable[..., str]]:
    """Start a scheduler and workers, and return the scheduler's address."""
    processes = []

    def start(workers: int, threads: int = 1, deaths: int = DEATHS) -> str:
        address = free_address()
        processes.append(FORK.Process(target=be_scheduler, args=(address, deaths), name=address))
        processes.extend(FORK.Process(target=be_worker, args=(address, threads)) for _ in range(workers))
        for process in processes:
            process.start()
        return address

    yield start
    for process in processes:
        process.kill()
        process.join()


class FakeJob(ComparisonJob):
    """A run that writes its row, and does what the name of its model says."""

    def run(self, task_id: int | None = None) -> dict[str, Any]:
        model, folder = self.planned.model, self.options.output
        with (folder / "attempts").open("a") as file:
            file.write(f"{model}\n")
        first = (folder / "attempts").read_text(encoding="utf-8").splitlines().count(model) == 1
        time.sleep(0.5 if model.startswith("slow") else 0)
        if "killer" in model or (model == "killed once" and first):
            os.kill(os.getpid(), signal.SIGKILL)
        if model == "full disk":
            msg = f"{self.planned}: {os.strerror(errno.ENOSPC)}"
            raise RunNotSavedError(msg)
        row = {
            **dict(zip(KEY, self.planned.key, strict=True)),
            "status": DONE,
            "settings": self.planned.settings,
            "started": str(time.time()),
        }
        write_run(folder, row)
        if model == "killed at the end":
            os.kill(os.getpid(), signal.SIGKILL)
        return row


class FakeJobs(ComparisonJobs):
    def generate_jobs(self, args: object = None, prev_stage_result: object = None) -> Any:
        return [FakeJob(**vars(job)) for job in super().generate_jobs()]


def fake_jobs(models: list[str], output: Path) -> FakeJobs:
    component = {"class_path": "Nothing", "init_args": {}}
    runs = [Run(model, component, component, "tile", 0, 0) for model in models]
    return FakeJobs(runs, ComparisonOptions(output), shows_progress=False)


def attempts(folder: Path) -> list[str]:
    return (folder / "attempts").read_text(encoding="utf-8").splitlines()


# ---- Lost workers ---------------------------------------------------------------------------------------------------


def test_killed_workers_lose_nothing(
    cluster: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ["killer", "a", "killed once", "killed at the end", *(f"slow {number}" for number in range(4))]
    address = cluster(workers=2 * DEATHS + 4)
    monkeypatch.chdir(tmp_path)  # the workers stay elsewhere
    with pytest.raises(
        RuntimeError, match=r"^1 of 8 runs ended every worker .* killer, Nothing/tile, 0-shot, seed 0\. "
    ):
        ClusterRunner(fake_jobs(models, Path()), address).run()
    table = read_runs(tmp_path)
    assert sorted(table.model) == sorted(set(models) - {"killer"}), "one row each, in the folder of the command"
    done = attempts(tmp_path)
    assert done.count("killer") <= 2 * DEATHS
    assert done.count("killed once") == 2
    assert done.count("killed at the end") == 1, "its row was there already"
    assert not list((tmp_path / RUNS).glob(".*"))


def test_a_run_that_waits_behind_a_killer_is_done(cluster: Callable[..., str], tmp_path: Path) -> None:
    """dask holds a run responsible for the loss of each worker on which it waited."""
    address = cluster(workers=3, threads=4, deaths=1)
    with pytest.raises(RuntimeError, match=r"^1 of 9 runs .* slow killer, "):
        ClusterRunner(fake_jobs(["slow killer", *"abcdefgh"], tmp_path), address).run()
    assert sorted(read_runs(tmp_path).model) == [*"abcdefgh"]


def test_a_worker_does_one_run_at_a_time(cluster: Callable[..., str], tmp_path: Path) -> None:
    start = time.monotonic()
    ClusterRunner(fake_jobs(["slow 1", "slow 2", "slow 3"], tmp_path), cluster(workers=1, threads=3)).run()
    assert time.monotonic() - start > 1.5
    assert len(read_runs(tmp_path)) == 3


def test_a_lost_scheduler_ends_the_comparison(cluster: Callable[..., str], tmp_path: Path) -> None:
    address = cluster(workers=1)
    (scheduler,) = (process for process in multiprocessing.active_children() if process.name == address)
    threading.Timer(2, scheduler.kill).start()
    with pytest.raises(RuntimeError, match=f"was not done by {address}"):
        ClusterRunner(fake_jobs([f"slow {number}" for number in range(20)], tmp_path), address).run()
    assert 0 < len(read_runs(tmp_path)) < 20


# ---- Refusals -------------------------------------------------------------------------------------------------------


def test_a_full_disk_of_a_worker_is_that_of_the_command(
    cluster: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomalib_aprilgan.comparison.execution.ComparisonJobs", FakeJobs)
    jobs = fake_jobs(["a", "full disk", *(f"slow {number}" for number in range(9))], tmp_path)
    with pytest.raises(
        OSError, match=r"could not be saved\. full disk, Nothing/tile, .*: No space left .* are kept in"
    ):
        do_runs(jobs.runs, jobs.options, None, cluster(workers=1))
    assert attempts(tmp_path).count("full disk") == 1
    assert read_runs(tmp_path).model[0] == "a"
    assert len(read_runs(tmp_path)) < 4, "no other run begins"


def test_other_versions_are_refused(
    cluster: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = cluster(workers=1)
    ClusterRunner(fake_jobs(["a"], tmp_path), address).run()  # the worker has started
    check_cluster(address)
    real = scheduler_module._versions()
    monkeypatch.setattr(
        scheduler_module, "_versions", lambda: real | {"torch": f"{real['torch']}.gpu", "anomalib": "1"}
    )
    expected = rf"has anomalib {real['anomalib']} in place of 1, torch .* in place of .*gpu\."
    with pytest.raises(RuntimeError, match=rf"^Expected the worker tcp://127.* {expected}"):
        check_cluster(address)
    with pytest.raises(RuntimeError, match=rf"^b, Nothing/tile, .*: Expected a worker on .* {expected}"):
        ClusterRunner(fake_jobs(["b"], tmp_path), address).run()
    assert attempts(tmp_path) == ["a"]


def test_a_folder_that_is_not_shared_is_refused(
    cluster: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "write_file", lambda path, _: path)  # as if it were written elsewhere
    with pytest.raises(RuntimeError, match=rf"to share the folders {Path.cwd()} and {tmp_path} with"):
        ClusterRunner(fake_jobs(["a"], tmp_path), cluster(workers=1)).run()
    assert not (tmp_path / "attempts").exists()


@pytest.mark.parametrize("address", ["", "127.0.0.1", "http://127.0.0.1:1", "{free}"])
def test_an_unreachable_scheduler_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "SECONDS_TO_CONNECT", 1)
    address = address.format(free=free_address())
    with pytest.raises(ConnectionError, match=rf"`scheduler` to be the address .* none answers at '{address}' \("):
        check_cluster(address)


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match=r'needs distributed: run pip install "\.\[cluster\]" in a checkout'):
        check_cluster("tcp://127.0.0.1:1")


@pytest.mark.parametrize("other", [{"shard": "1/2"}, {"processes": 2}])
def test_other_ways_to_share_runs_are_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`shard` and `processes` to be None with `scheduler`"):
        compare({}, {}, scheduler="tcp://127.0.0.1:1", **other)


def test_workers_that_cannot_start_processes_load_images_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = fake_jobs(["a"], tmp_path).generate_jobs()
    data = {"class_path": "Data", "init_args": {"num_workers": 8, "root": "here"}}
    job = replace(job, planned=replace(job.planned, datamodule=data))
    assert scheduler_module._without_processes(job) is job
    monkeypatch.setattr(multiprocessing, "current_process", lambda: SimpleNamespace(daemon=True))
    without = scheduler_module._without_processes(job)
    assert without.planned.datamodule["init_args"] == {"num_workers": 0, "root": "here"}
    assert without.planned.settings == job.planned.settings


# ---- Real runs and real workers -------------------------------------------------------------------------------------


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start programs in a folder, each in a session of its own, and end them with all that they have started."""
    started = []

    def start(*command: str, folder: Path = tmp_path) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["workers", "command"])
def test_real_runs_with_killed_workers_and_commands(
    killed: str, processes: Callable[..., Any], sample_root: Path, tmp_path: Path
) -> None:
    """With workers that `dask worker` starts, and starts anew, in another folder than the command's."""
    psutil = pytest.importorskip("psutil")
    content = {
        "models": {"aprilgan": {"class_path": "AprilGan", "init_args": {"backbone": "ViT-builtin", "image_size": 96}}},
        "data": {"class_path": "MVTecAD", "init_args": {"root": "data"}},
        "categories": ["gravel"],
        "shots": [0, 1],
        "seeds": [0, 1, 2, 3],
        "output": "results/comparison",
        "trainer": {"accelerator": "cpu"},
    }
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (tmp_path / "data").symlink_to(sample_root)
    (tmp_path / "elsewhere").mkdir()
    address, folder = free_address(), tmp_path / "results/comparison"
    dask = ["-m", "dask"]
    processes(*dask, "scheduler", "--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-dashboard")
    options = [address, "--nthreads", "1", "--memory-limit", "0", "--no-dashboard"]
    nannies = [processes(*dask, "worker", *options, folder=tmp_path / "elsewhere") for _ in range(2)]
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "from anomalib_aprilgan.cli import main; main()"
    command = ["-c", program, "compare", "--config", "compare.yaml", "--scheduler", address]
    process = processes(*command)
    deadline = time.monotonic() + 200
    while not list(folder.glob("runs/*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if killed == "workers":
        for worker in [child for nanny in nannies for child in psutil.Process(nanny.pid).children()]:
            if "spawn_main" in " ".join(worker.cmdline()):
                worker.kill()
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
    else:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert "Interrupted. Finished runs are kept in results/comparison" in output
        assert 1 <= len(before := read_runs(folder)) < 8
        output, _ = processes(*command).communicate(timeout=200)
        after = read_runs(folder).set_index("settings")
        assert set(before.started) <= set(after.started)
    table = read_runs(folder)
    assert (len(table), set(table.status)) == (8, {"done"}), output
    assert "aprilgan, MVTecAD/gravel, 1-shot, seed 3: image AUROC" in output
    assert "Report: results/comparison/report.html" in output
    assert not list(tmp_path.glob("elsewhere/results"))
    assert not list((folder / RUNS).glob(".*"))


def test_the_commands_of_the_documentation_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed.cli import dask_scheduler, dask_worker  # noqa: PLC0415

    page = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")
    (block,) = (block for block in re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL) if "dask worker" in block)
    commands = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    assert [words[:2] for words in commands] == [
        *(["pip", "install"], ["dask", "scheduler"], ["dask", "worker"], ["anomalib-aprilgan", "compare"])
    ]
    _, scheduler, worker, comparison = commands
    dask_scheduler.main.make_context("dask scheduler", scheduler[2:])  # parses, but starts nothing
    options = dask_worker.main.make_context("dask worker", worker[2:]).params
    assert options["nthreads"] == 1
    assert options["scheduler"] == comparison[-1]
    assert comparison[-2] == "--scheduler"
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        main([*comparison[1:], "--print_config"])
    assert stopped.value.code == 0
