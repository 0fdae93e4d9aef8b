# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Metrics and thresholds of raw values below and above 1, compared with scikit-learn."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.metrics import AUROC
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score

from anomalib_aprilgan.comparison.authors_protocol import AuthorsProtocol
from anomalib_aprilgan.integration.metrics import paper_evaluator, sort_values
from anomalib_aprilgan.integration.post_processing import AprilGanPostProcessor


def batches(lowest: float = -2.0) -> list[Any]:
    """Make raw predictions: batches within [0, 1], above 1, and below 0, as other models give them."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for low, high in ((0.0, 0.9), (0.4, 3.0), (lowest, 0.5), (5.0, 40.0)):
        labels = torch.rand(8, generator=generator) > 0.5
        masks = (torch.rand(8, 12, 12, generator=generator) > 0.8) & labels[:, None, None]
        scores = low + (high - low) * torch.rand(8, generator=generator) * (0.5 + 0.5 * labels)
        maps = low + (high - low) * torch.rand(8, 12, 12, generator=generator) * (0.6 + 0.4 * masks)
        made.append(
            SimpleNamespace(pred_score=scores, gt_label=labels, anomaly_map=maps, gt_mask=masks.int(), mask_path=None)
        )
    return made


def best_f1(truth: np.ndarray, values: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(truth, values)
    return float((2 * precision * recall / (precision + recall).clip(1e-12)).max())


REFERENCE: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "AUROC": roc_auc_score,
    "F1Max": best_f1,
    "AUPR": average_precision_score,
}


def values(level: str, lowest: float = -2.0) -> tuple[np.ndarray, np.ndarray]:
    """Return all labels and values of a level: image or pixel."""
    names = ("gt_label", "pred_score") if level == "image" else ("gt_mask", "anomaly_map")
    truth, value = (torch.cat([getattr(batch, name).flatten() for batch in batches(lowest)]).numpy() for name in names)
    return truth.astype(int), value


@pytest.mark.parametrize("source", ["evaluator", "authors' protocol"])
def test_raw_values_keep_their_order_between_batches(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if source == "evaluator":
        metrics, prefix = list(paper_evaluator().test_metrics), ""
        for metric in metrics:
            for batch in batches():
                metric.update(batch)
        found = {metric.name: float(metric.compute()) for metric in metrics}
    else:
        protocol, prefix = AuthorsProtocol(), "authors_"
        protocol_masks = lambda batch, size: batch.gt_mask  # noqa: E731
        monkeypatch.setattr("anomalib_aprilgan.comparison.authors_protocol.authors_masks", protocol_masks)
        for number, batch in enumerate(batches()):
            protocol.on_test_batch_end(None, None, None, batch, number)
        found = protocol.values
    for level in ("image", "pixel"):
        for name, reference in REFERENCE.items():
            assert found[f"{prefix}{level}_{name}"] == pytest.approx(reference(*values(level)), abs=1e-6)


def test_metrics_of_the_same_values_sort_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, metrics = list(paper_evaluator().test_metrics), list(paper_evaluator().test_metrics)
    for metric in (*expected, *metrics):
        for batch in batches():
            batch.anomaly_map = batch.anomaly_map.round(decimals=1)  # many ties
            if metric.name != "image_AUPR":  # it has no values
                metric.update(batch)
    sorts = []
    with monkeypatch.context() as patch:
        argsort = torch.Tensor.argsort
        patch.setattr(torch.Tensor, "argsort", lambda self, **options: sorts.append(self) or argsort(self, **options))
        sort_values(metrics)
    assert [len(one) for one in sorts] == [32, 32 * 144], "one for scores, one for maps"
    for metric, other in zip(metrics, expected, strict=True):
        if other.update_called:
            assert float(metric.compute()) == pytest.approx(float(other.compute()), abs=1e-7), metric.name
    for batch in batches():
        metrics[2].update(batch)
        expected[2].update(batch)
    assert metrics[2].name == "pixel_AUROC"
    torch.testing.assert_close(metrics[2].compute(), expected[2].compute(), msg="more values may follow")


def test_metrics_of_other_values_keep_their_own() -> None:
    binned = AUROC(fields=["anomaly_map", "gt_mask"], thresholds=5, normalization=None)
    metrics = [*paper_evaluator().test_metrics, binned]
    first, *others = batches()
    for metric in metrics:
        metric.update(first)
    expected = binned.compute()
    metrics[2].update(others[1])
    sort_values(metrics)
    assert [len(torch.cat(metrics[number].preds)) for number in (2, 5)] == [16 * 144, 8 * 144]
    assert binned.compute() == expected


def test_thresholds_of_raw_values_are_the_best_ones() -> None:
    post_processor = AprilGanPostProcessor()
    for batch in batches(lowest=0.0):  # our scores are never negative
        post_processor.on_validation_batch_end(None, None, batch)
    post_processor.on_validation_epoch_end(None, None)
    truth, value = values("image", lowest=0.0)
    labels = value > float(post_processor.image_threshold)
    assert f1_score(truth, labels) == pytest.approx(best_f1(truth, value), abs=1e-6)
    truth, value = values("pixel", lowest=0.0)
    mask = value >= float(post_processor.pixel_threshold)  # anomalib's threshold equals a value
    assert f1_score(truth, mask) == pytest.approx(best_f1(truth, value), abs=1e-6)
