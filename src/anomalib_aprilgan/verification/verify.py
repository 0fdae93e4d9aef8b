# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Tests the published adapters by the authors' protocol, and compares the results with the published figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from anomalib.data.datasets.image.mvtecad import CATEGORIES as MVTEC_CATEGORIES
from anomalib.data.datasets.image.visa import CATEGORIES as VISA_CATEGORIES

from anomalib_aprilgan.comparison.compare import compare
from anomalib_aprilgan.comparison.environment import describe_environment, device_of_run
from anomalib_aprilgan.comparison.results import read_runs
from anomalib_aprilgan.files.published import PUBLISHED, cached_file, git_object_id
from anomalib_aprilgan.files.whole_files import write_file
from anomalib_aprilgan.method.architecture import AUTO, DEFAULT_BACKBONE
from anomalib_aprilgan.method.pretrained import cached_weights
from anomalib_aprilgan.torch_model import AprilGanModel
from anomalib_aprilgan.verification.figures import describe_figures
from anomalib_aprilgan.verification.text_check import describe_similarities, similarities

__all__ = ["Weights", "verify"]

MODEL: Final[Mapping[str, Any]] = {
    "backbone": DEFAULT_BACKBONE,
    "image_size": 518,
    "layers": [6, 12, 18, 24],
    "quick_gelu": False,
}
"""Settings of the paper (section 4.1). GELU is what the authors' code runs."""

SEEDS: Final = (42, 43, 44)
"""Seeds of the published few-shot figures. Zero-shot figures need only the first."""


class DataSet(NamedTuple):
    """A data set with published figures: datamodule, categories, and the adapters that have not seen it."""

    datamodule: str
    categories: tuple[str, ...]
    adapters: str


DATA_SETS: Final = (DataSet("MVTecAD", MVTEC_CATEGORIES, "visa"), DataSet("Visa", VISA_CATEGORIES, "mvtec"))


class Found(NamedTuple):
    """A data set on this machine: which one, where, and its categories."""

    data_set: DataSet
    root: Path
    categories: list[str]


@dataclass(frozen=True)
class Weights:
    """Where the published weights are.

    Attributes:
        pretrained: File with OpenAI's weights of ViT-L-14-336; ``"auto"``: the file in open_clip's caches.
        adapters: Folder of the authors' files; ``None``: the cache.
        download: Whether missing weights may be downloaded.
    """

    pretrained: str = AUTO
    adapters: Path | None = None
    download: bool = False


def verify(
    roots: Sequence[str | Path],
    output: str | Path,
    shots: Sequence[int],
    weights: Weights,
    accelerator: str = "auto",
    num_workers: int = 8,
) -> bool:
    """Measure the published figures, and print measured and published figures of each category.

    Args:
        roots: Folders of MVTec AD and VisA, as anomalib expects them. Which is which is found by their categories.
        output: Folder of the results, in which an earlier call is continued.
        shots: Numbers of reference images.
        weights: Where the published weights are.
        accelerator: Argument of anomalib's Engine.
        num_workers: Number of processes that load images.

    Returns:
        Whether all measured figures are within the tolerance.

    Raises:
        ValueError: If a folder is none of the data sets, or a weight file is not the published one.
        RuntimeError: If weights are missing and may not be downloaded, or a run failed.
    """
    output = Path(output).expanduser()
    found = [_find(Path(folder).expanduser()) for folder in roots]
    adapters = {data.adapters: _adapters(data.adapters, weights.adapters) for data, *_ in found}
    if not weights.download:
        _refuse_missing(weights.pretrained, adapters)
    texts, verdicts = [], []

    def add(text: str, fits: bool) -> None:
        print(f"\n{text}", flush=True)  # noqa: T201
        texts.append(text)
        verdicts.append(fits)

    device = device_of_run(accelerator, 0)
    add("\n".join(f"{name}: {value}" for name, value in describe_environment(device).items()), fits=True)
    model = AprilGanModel(**MODEL, pretrained=weights.pretrained).to(device).eval()
    add(*describe_similarities(similarities(model, MVTEC_CATEGORIES, output / "text_features.json")))
    del model
    for data_set, folder, categories in found:
        adapter = adapters[data_set.adapters] or data_set.adapters
        arguments = {**MODEL, "pretrained": weights.pretrained, "adapter": str(adapter)}
        for count in shots:
            compare(
                models={"aprilgan": {"class_path": "anomalib_aprilgan.AprilGan", "init_args": arguments}},
                data={
                    "class_path": f"anomalib.data.{data_set.datamodule}",
                    "init_args": {"root": str(folder), "num_workers": num_workers},
                },
                categories=categories,
                shots=[count],
                seeds=SEEDS if count else SEEDS[:1],
                output=output,
                trainer={"accelerator": accelerator},
                features=None,  # they would be rounded to half precision
            )
            add(*describe_figures(read_runs(output), data_set.datamodule, count, data_set.categories))
    fits = all(verdicts)
    add("All figures are within the tolerance." if fits else "Some figures are outside of the tolerance: see !", fits)
    written = write_file(output / "verification.txt", "\n\n".join(texts) + "\n")
    print(f"\nReport: {written}")  # noqa: T201
    return fits


def _find(root: Path) -> Found:
    """Find out which data set is in a folder, and which of its categories. Nothing is downloaded."""
    for data_set in DATA_SETS:
        places = (root / "visa_pytorch", root) if data_set.datamodule == "Visa" else (root,)
        for place in places:
            categories = [name for name in data_set.categories if (place / name).is_dir()]
            if categories:
                return Found(data_set, root, categories)
    msg = (
        f"Expected argument `root` to be a folder of MVTec AD (with bottle/ and so on) or of VisA (with visa_pytorch/, "
        f"or candle/ and so on), but {root} has no category of either. This command does not download data sets."
    )
    raise ValueError(msg)


def _adapters(name: str, folder: Path | None) -> Path | None:
    """Return the authors' file in a folder, after checking it; ``None``: the file in the cache."""
    if folder is None:
        return None
    published = PUBLISHED[name]
    path = folder.expanduser() / published.file_name
    if not path.is_file() or git_object_id(path) != published.git_object_id:
        problem = "has another content" if path.is_file() else "does not exist"
        msg = (
            f"Expected argument `adapters` to be a folder with the authors' file {published.file_name} (git object id "
            f"{published.git_object_id}), but {path} {problem}."
        )
        raise ValueError(msg)
    return path


def _refuse_missing(pretrained: str, adapters: Mapping[str, Path | None]) -> None:
    """Raise an error if weights would have to be downloaded."""
    missing = []
    if pretrained == AUTO and not cached_weights(str(MODEL["backbone"]), "openai"):
        missing.append(f"CLIP's weights ({MODEL['backbone']}, openai): pass --pretrained FILE")
    for name, path in adapters.items():
        if path is None and not cached_file(name).is_file():
            missing.append(
                f"the authors' adapters {name!r}: pass --adapters FOLDER, or put the file at {cached_file(name)}"
            )
    if missing:
        listed = "".join(f"\n- {text}" for text in missing)
        msg = f"These weights are not on this machine:{listed}\nOr add --download true to download them."
        raise RuntimeError(msg)
