"""The authors' protocol against a slow and plain version of its description."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch, MVTecAD
from anomalib.engine import Engine
from anomalib.models import Patchcore
from PIL import Image
from scipy import ndimage

from anomalib_aprilgan.comparison.authors_protocol import AuthorsPRO, AuthorsProtocol, authors_masks


def plain_pro(maps: np.ndarray, masks: np.ndarray) -> float:
    """PRO as it is described, threshold by threshold and region by region."""
    step = (maps.max() - maps.min()) / 200
    rates, overlaps = [], []
    for number in range(200):
        above = maps > maps.min() + number * step
        parts = []
        for one, mask in zip(above, masks, strict=True):
            labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
            parts += [one[labels == region].mean() for region in range(1, count + 1)]
        rates.append(above[masks == 0].mean())
        overlaps.append(np.mean(parts))
    kept = [(rate, overlap) for rate, overlap in zip(rates, overlaps, strict=True) if rate < 0.3][::-1]
    low, high = kept[0][0], kept[-1][0]
    points = [((rate - low) / (high - low), overlap) for rate, overlap in kept]
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))


def example(seed: int, images: int = 6, size: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Maps that follow their masks more or less; regions of all sizes, some touching at a corner, one image without."""
    rng = np.random.default_rng(seed)
    masks = ndimage.gaussian_filter(rng.normal(size=(images, size, size)), (0, 2, 2)) > 0.22
    masks[0] = False
    masks[1, :4, :4] = np.eye(4, dtype=bool)
    maps = ndimage.gaussian_filter(masks + rng.normal(0, 1.5, masks.shape), (0, 1, 1))
    return maps, masks


def pro_of(maps: np.ndarray, masks: np.ndarray, batches: int = 1) -> float:
    metric = AuthorsPRO(fields=["anomaly_map", "gt_mask"])
    for one, other in zip(np.array_split(maps, batches), np.array_split(masks, batches), strict=True):
        metric.update(SimpleNamespace(anomaly_map=torch.tensor(one), gt_mask=torch.tensor(other)))
    return float(metric.compute())


@pytest.mark.parametrize("seed", range(5))
def test_pro_is_what_its_description_says(seed: int) -> None:
    maps, masks = example(seed)
    expected = plain_pro(maps, masks)
    assert 0.05 < expected < 0.95
    assert pro_of(maps, masks) == pytest.approx(expected, abs=1e-9)


def test_pro_of_maps_that_saturate() -> None:
    """Many pixels lie at the ends of the range and on thresholds themselves."""
    maps, masks = example(7)
    maps = np.clip(np.round(maps * 8) / 8, 0, 1)
    assert pro_of(maps, masks) == pytest.approx(plain_pro(maps, masks), abs=1e-9)


def test_pro_does_not_depend_on_batches_and_scale() -> None:
    maps, masks = example(3)
    whole = pro_of(maps, masks)
    assert pro_of(maps, masks, batches=4) == pytest.approx(whole, abs=1e-12)
    assert pro_of(maps[:, None].repeat(1, axis=1), masks[:, None]) == pytest.approx(whole, abs=1e-12)
    assert pro_of(3 * maps - 5, masks) == pytest.approx(whole, abs=1e-6)
    assert pro_of(np.exp(3 * maps), masks) != pytest.approx(whole, abs=1e-3), "values count, not their order alone"


def test_pro_at_its_ends() -> None:
    masks = np.zeros((2, 8, 8), bool)
    masks[:, :3, :3] = True
    assert pro_of(masks.astype(float), masks) == pytest.approx(1), "nothing but the regions is found"
    assert pro_of(np.ones((2, 8, 8)), masks) == 0, "a map that tells nothing"
    assert np.isnan(pro_of(np.random.default_rng(0).random((2, 8, 8)), np.zeros((2, 8, 8), bool)))


def test_masks_are_resized_as_the_authors_do(golden: dict[str, Any], tmp_path: Path) -> None:
    paths = []
    for number, mask in enumerate(golden["masks"]):
        paths.append(str(tmp_path / f"{number}.png") if mask.any() else None)
        if paths[-1]:
            Image.fromarray(mask.numpy()).save(paths[-1])
    size = golden["size"]
    batch = ImageBatch(
        image=torch.zeros(len(paths), 3, size, size),
        gt_mask=torch.zeros(len(paths), size, size),
        gt_label=torch.tensor([path is not None for path in paths]),
        mask_path=paths,
    )
    assert torch.equal(authors_masks(batch, size), golden["gt"].bool().reshape(-1, size, size))


def test_masks_that_are_not_in_files_stay() -> None:
    masks = torch.rand(2, 8, 8) > 0.5
    batch = ImageBatch(image=torch.zeros(2, 3, 8, 8), gt_mask=masks, gt_label=torch.tensor([True, True]))
    assert torch.equal(authors_masks(batch, 8), masks)
    assert authors_masks(ImageBatch(image=torch.zeros(2, 3, 8, 8), gt_label=torch.tensor([0, 1])), 8) is None


def test_both_protocols_in_one_pass(sample_root: Path, tmp_path: Path) -> None:
    """Raw maps, before anomalib's post-processor clips them, and masks of their own."""
    protocol = AuthorsProtocol()
    seen = []

    class Watch(AuthorsProtocol):
        def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append(args[3].anomaly_map.clone())

    model = Patchcore(backbone="resnet18", layers=["layer3"], pre_trained=False, visualizer=False)
    engine = Engine(
        callbacks=[protocol, Watch()], default_root_dir=tmp_path, accelerator="cpu", logger=False, max_epochs=1
    )
    datamodule = MVTecAD(root=sample_root, category="gravel", num_workers=0, eval_batch_size=5)
    engine.fit(model, datamodule=datamodule)
    engine.test(model, datamodule=datamodule)
    maps = torch.cat(seen)
    masks = np.stack(
        [
            np.asarray(Image.open(path).resize((256, 256), Image.Resampling.BILINEAR)) > 127.5
            if label
            else np.zeros((256, 256), bool)
            for path, label in datamodule.test_data.samples[["mask_path", "label_index"]].to_numpy()
        ]
    )
    assert maps.max() > 1, "raw distances"
    assert protocol.values["authors_pixel_PRO"] == pytest.approx(plain_pro(maps.double().numpy(), masks), abs=0.02)
    assert set(protocol.values) == {
        *(f"authors_image_{name}" for name in ("AUROC", "F1Max", "AUPR")),
        *(f"authors_pixel_{name}" for name in ("AUROC", "F1Max", "AUPR", "PRO")),
    }
