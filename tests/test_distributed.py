"""Two processes give what one process gives: weights, thresholds, ranges, metrics and reference images."""

import json
import multiprocessing
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from anomalib.data import ImageBatch, MVTecAD
from anomalib.metrics import AUROC, Evaluator, F1Score
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, DistributedSampler

from anomalib_aprilgan.demo.sample_data import write_sample_data
from anomalib_aprilgan.integration import image_files
from anomalib_aprilgan.integration.metrics import accept_no_images, paper_evaluator
from anomalib_aprilgan.integration.processes import drop_repeated_images, refuse_idle_processes
from anomalib_aprilgan.integration.run_images import check_files
from anomalib_aprilgan.integration.runs import evaluated_loaders

SCRIPT = """
import json, os, sys, warnings
warnings.filterwarnings("ignore")
import open_clip, torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning import seed_everything
from anomalib_aprilgan import AprilGan, AuxiliaryDataModule

golden, weights, adapter, root, odd, output, processes = sys.argv[1:]
open_clip.add_model_config(golden)


def make_model(**arguments):
    return AprilGan(backbone="golden-vit", pretrained=weights, image_size=64, layers=(2, 4), **arguments)


def make_engine(**arguments):
    return Engine(
        accelerator="cpu", devices=int(processes), strategy="ddp" if processes == "2" else "auto", logger=False,
        default_root_dir=f"{output}/{os.environ.get('LOCAL_RANK', 0)}",  # anomalib numbers folders in each process
        enable_progress_bar=False, enable_model_summary=False, **arguments,
    )


def describe(model, engine):
    metrics = {name: float(value) for name, value in engine.trainer.callback_metrics.items() if "AU" in name}
    statistics = {name: value.tolist() for name, value in model.post_processor.named_buffers()}
    return metrics | statistics | {"range": model.model.map_range.tolist(), "references": model.reference_files}


data = MVTecAD(odd, category="coins", eval_batch_size=5, num_workers=0)
model, engine = make_model(adapter=adapter, k_shot=2), make_engine()
engine.test(model, datamodule=data, verbose=False)
results = {"2-shot": describe(model, engine)}

seed_everything(3)
model = make_model(adapter=None)
datamodule = AuxiliaryDataModule(
    source=MVTecAD(root, category="coins"), train_batch_size=4 // int(processes), num_workers=0,
    validation=data, eval_batch_size=5, categories=["brick", "coins"], mosaic_probability=0.3,
)
engine = make_engine(max_epochs=2)
engine.fit(model, datamodule=datamodule)
results["training"] = describe(model, engine)
rank = engine.trainer.global_rank
with open(f"{output}/results{processes}-{rank}.json", "w", encoding="utf-8") as file:
    json.dump(results, file)
if rank == 0:
    torch.save(model.model.adapters.state_dict(), f"{output}/adapters{processes}.pt")
"""


@pytest.mark.slow  # three processes that import torch and anomalib
def test_two_processes_give_the_same_as_one(
    clip_weights: Path, official_adapter: Path, sample_root: Path, tmp_path: Path
) -> None:
    """The 11 images make batches of 5 and 1 in each process. The last batch of the second one is a repetition."""
    odd = write_sample_data(tmp_path / "odd", ("coins",), size=64, train=6, test=3)
    (odd / "coins/test/good/002.png").unlink()
    script = tmp_path / "run.py"
    script.write_text(SCRIPT, encoding="utf-8")
    config = Path(__file__).parent / "golden" / "golden-vit.json"
    for processes in ("1", "2"):
        command = [sys.executable, script, config, clip_weights, official_adapter, sample_root, odd, tmp_path]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}
        process = subprocess.run(
            [*map(str, command), processes], capture_output=True, text=True, check=False, env=environment, timeout=300
        )
        assert process.returncode == 0, process.stderr[:6000] + process.stderr[-6000:]

    one, *two = [json.loads((tmp_path / f"results{name}.json").read_text("utf-8")) for name in ("1-0", "2-0", "2-1")]
    assert one["2-shot"]["counts"][:2] == one["training"]["counts"][:2] == [2, 9]
    assert one["training"].keys() >= {"val_image_AUROC", "val_pixel_AUPR", "_image_threshold"}
    assert len(one["2-shot"]["references"]) == 2
    for results in two:
        assert results.keys() == one.keys()
        for name, values in one.items():
            expected = {key: pytest.approx(value, abs=1e-5) if value else value for key, value in values.items()}
            assert expected == results[name], name
    weights, shared = (torch.load(tmp_path / f"adapters{name}.pt", weights_only=True) for name in "12")
    for name, value in weights.items():
        assert torch.allclose(value, shared[name], atol=1e-5), name


# ---- Files that are checked -----------------------------------------------------------------------------------------


def check_in_a_process(rank: int, folder: Path, loader: object, machine: str) -> None:
    """Check the files of a dataloader, as one of two processes. Save the names of the files it read, and its error.

    The process group is left to the end of the process: in torch 2.6, deleting one hangs now and then.
    """
    torch.set_num_threads(1)
    read: list[str] = []
    original = image_files._size_or_problem

    def counted(path: Path, **options: Any) -> Any:
        read.append(path.name)
        return original(path, **options)

    image_files._size_or_problem = counted
    platform.node = lambda: machine
    store = f"file://{folder / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    error = ""
    try:
        check_files(loader)
    except ValueError as raised:
        error = str(raised)
    (folder / f"{rank}.json").write_text(json.dumps([read, error]), encoding="utf-8")


Check = Callable[..., list[tuple[list[str], str]]]


@pytest.fixture
def check_in_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Check the files of dataloaders in two processes; return the images that each has read, and its error."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    fork = multiprocessing.get_context("fork")

    def check(loaders: list[object], machines: str = "aa") -> list[tuple[list[str], str]]:
        arguments = [(rank, tmp_path, loaders[rank], machines[rank]) for rank in range(2)]
        workers = [fork.Process(target=check_in_a_process, args=one) for one in arguments]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert [worker.exitcode for worker in workers] == [0, 0]
        results = [json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
        return [([name for name in read if "mask" not in name], error) for read, error in results]

    return check


@pytest.fixture
def coins(tmp_path: Path) -> MVTecAD:
    root = write_sample_data(tmp_path / "data", ("coins",), size=64, train=2, test=3)
    data = MVTecAD(root, category="coins", num_workers=0)
    data.setup()
    return data


def images_behind(data: MVTecAD) -> list[str]:
    return sorted(Path(path).name for path in data.test_data.samples.image_path)


@pytest.mark.posix
def test_processes_share_the_check_of_files(check_in_two: Check, coins: MVTecAD) -> None:
    (first, _), (second, _) = results = check_in_two([coins.test_dataloader()] * 2)
    assert sorted(first + second) == images_behind(coins), "each image is read by one process"
    assert abs(len(first) - len(second)) <= 1
    assert [error for _, error in results] == ["", ""]


@pytest.mark.posix
def test_all_processes_name_a_damaged_file(check_in_two: Check, coins: MVTecAD) -> None:
    damaged = Path(coins.test_data.samples.image_path.iloc[0])
    damaged.write_bytes(b"no image")
    assert all(str(damaged) in error for _, error in check_in_two([coins.test_dataloader()] * 2))


@pytest.mark.posix
def test_each_machine_checks_all_of_its_files(check_in_two: Check, coins: MVTecAD) -> None:
    for read, error in check_in_two([coins.test_dataloader()] * 2, machines="ab"):
        assert sorted(read) == images_behind(coins)
        assert not error


@pytest.mark.posix
@pytest.mark.parametrize("machines", ["aa", "ab"])
def test_processes_with_other_images_are_refused(machines: str, check_in_two: Check, coins: MVTecAD) -> None:
    for read, error in check_in_two([coins.test_dataloader(), coins.train_dataloader()], machines):
        assert not read
        assert "same images" in error
        assert "seed" in error


# ---- Images that are repeated ---------------------------------------------------------------------------------------


def trainer_of(loader: object, processes: int = 2, stage: TrainerFn = TrainerFn.TESTING) -> SimpleNamespace:
    """Make what is used of a trainer that tests with a dataloader."""
    combined = SimpleNamespace(flattened=[loader])
    source = SimpleNamespace(instance=loader)
    loop = SimpleNamespace(_combined_loader=combined, _data_source=source)
    fit_loop = SimpleNamespace(_data_source=source, epoch_loop=SimpleNamespace(val_loop=loop))
    loops = {"test_loop": loop, "validate_loop": loop, "predict_loop": loop, "fit_loop": fit_loop}
    return SimpleNamespace(world_size=processes, state=SimpleNamespace(fn=stage), **loops)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
@pytest.mark.parametrize("processes", [2, 3])
def test_each_image_is_counted_once(batch_size: int, processes: int) -> None:
    dataset: Any = list(range(7))
    seen: list[int] = []
    for rank in range(processes):
        sampler: Any = DistributedSampler(dataset, processes, rank, shuffle=True)
        loader: Any = DataLoader(dataset, batch_size=batch_size, sampler=sampler)
        trainer = trainer_of(loader, processes)
        for number, numbers in enumerate(loader):
            images = numbers.view(-1, 1, 1, 1).float().expand(-1, 3, 2, 2)
            batch = ImageBatch(image=images, image_path=[str(one) for one in numbers.tolist()])
            drop_repeated_images(trainer, batch, number)
            assert len(batch.image) == len(batch.image_path)
            seen += map(int, batch.image_path)
    assert sorted(seen) == dataset


def test_a_batch_keeps_an_image_for_metrics_that_need_one() -> None:
    dataset: Any = [0, 1, 2]
    loader: Any = DataLoader(dataset, sampler=DistributedSampler(dataset, 2, 1, shuffle=False))
    batch = ImageBatch(image=torch.zeros(1, 3, 2, 2))
    drop_repeated_images(trainer_of(loader), batch, 1, smallest=1)
    assert len(batch.image) == 1
    drop_repeated_images(trainer_of(loader), batch, 1)
    assert len(batch.image) == 0
    assert accept_no_images(paper_evaluator(watches_training=True))
    fields = ["pred_score", "gt_label"]
    assert not accept_no_images(Evaluator(test_metrics=[AUROC(fields=fields), F1Score(fields=fields)]))


def test_the_dataloaders_of_an_earlier_training_are_not_those_of_a_validation() -> None:
    trainer = trainer_of("present", stage=TrainerFn.VALIDATING)
    trainer.fit_loop.epoch_loop.val_loop = SimpleNamespace(_combined_loader=SimpleNamespace(flattened=["earlier"]))
    assert evaluated_loaders(cast("Any", trainer)) == ["present"]
    trainer.state.fn = TrainerFn.FITTING
    assert evaluated_loaders(cast("Any", trainer)) == ["earlier"]


def test_fewer_images_than_processes_are_refused() -> None:
    loader: Any = DataLoader(cast("Any", [0, 1]))
    refuse_idle_processes(trainer_of(loader))
    refuse_idle_processes(trainer_of(loader, processes=1))
    for stage in (TrainerFn.PREDICTING, TrainerFn.VALIDATING, TrainerFn.TESTING):
        with pytest.raises(ValueError, match=r"each of the 3 processes, but got 2\. Use"):
            refuse_idle_processes(trainer_of(loader, processes=3, stage=stage))
