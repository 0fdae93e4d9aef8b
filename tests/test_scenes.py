"""Generated pictures: consistent categories, and defects that are visible within their masks."""

import numpy as np
from numpy.random import default_rng

from anomalib_aprilgan.demo.drawing import scenes
from anomalib_aprilgan.demo.drawing.defects import DEFECTS, HELD_OUT_DEFECTS, add_defect
from anomalib_aprilgan.demo.drawing.inventions import INVENTED_OBJECTS
from anomalib_aprilgan.demo.drawing.objects import OBJECTS
from anomalib_aprilgan.demo.drawing.scenes import (
    AUXILIARY_DEFECTS,
    AUXILIARY_KINDS,
    HELD_OUT_KINDS,
    INVENTIONS,
    KINDS,
    render,
    render_pair,
)
from anomalib_aprilgan.demo.drawing.sheet import draw_object
from anomalib_aprilgan.demo.drawing.surfaces import SURFACES

SIZE = 64


def test_pictures_are_reproducible_and_differ_by_their_number() -> None:
    for kind in KINDS:
        first, again, other = render(kind, 1, 0, SIZE), render(kind, 1, 0, SIZE), render(kind, 1, 1, SIZE)
        assert first.shape == (SIZE, SIZE, 3), kind
        assert first.dtype == np.uint8, kind
        assert first.std() > 2, f"{kind}: nothing is visible"
        assert np.array_equal(first, again), kind
        assert not np.array_equal(first, other), kind


def test_the_pictures_of_a_category_share_their_look() -> None:
    """Without camera effects, mean colours vary less within a category than between categories of the same kind."""

    def mean(kind: str, look: int, number: int) -> np.ndarray:
        return scenes.draw_scene(kind, default_rng(look), default_rng(number), SIZE).picture.mean((0, 1))

    for kind in (*SURFACES, *OBJECTS, *INVENTIONS):
        means = np.array([[mean(kind, look, number) for number in range(3)] for look in range(6)])
        assert means.std(axis=1).mean() < means.mean(axis=1).std(axis=0).mean(), kind


def test_the_silhouette_covers_the_object() -> None:
    for kind, painter in OBJECTS.items():
        scene = draw_object(painter, default_rng(3), default_rng(4), SIZE)
        assert 0.03 < scene.silhouette.mean() < 0.6, kind
        change = np.abs(scene.picture - scene.bare).max(-1)
        assert change[scene.silhouette > 0.9].mean() > 0.1, kind
        assert change[scene.silhouette < 0.1].mean() < 0.05, f"{kind}: more than a shadow beside the object"


def test_a_defect_changes_the_pixels_of_its_mask() -> None:
    """Outside the mask, only a soft rim and a shadow may change."""
    for defect in DEFECTS:
        for number, kind in enumerate(("tiles", "paper", "washer", "egg")):
            scene = scenes.draw_scene(kind, default_rng(1), default_rng(2), SIZE)
            before = scene.picture.copy()
            picture, mask = add_defect(defect, scene, default_rng(number))
            assert np.array_equal(scene.picture, before), f"{defect} on {kind} changes its input"
            assert set(np.unique(mask)) == {0, 1}, (defect, kind)
            change = np.abs(np.clip(picture, 0, 1) - np.clip(before, 0, 1)).max(-1)
            assert change[mask > 0].mean() > 0.1, (defect, kind)
            assert change[mask == 0].mean() < 0.15 * change[mask > 0].mean(), (defect, kind)


def test_pairs_differ_by_the_defect_and_by_noise_only() -> None:
    for defect in DEFECTS:
        for kind in ("tiles", "paper", "washer", "brick"):
            normal, abnormal, mask = render_pair(kind, defect, 5, 6, SIZE)
            change = np.abs(normal.astype(int) - abnormal).max(-1)
            assert set(np.unique(mask)) == {0, 255}, (defect, kind)
            assert change[mask > 0].mean() > 4 * change[mask == 0].mean() > 0, (defect, kind)


def test_an_invented_object_has_the_same_parts_in_each_picture() -> None:
    """Only pose, light and grain differ, so the silhouettes cover similar areas."""
    for look in range(20):
        areas = [
            draw_object(INVENTED_OBJECTS["gadget"], default_rng(look), default_rng(number), SIZE).silhouette.mean()
            for number in range(3)
        ]
        assert 0.01 < min(areas) < max(areas) < 0.7, look
        assert max(areas) < 1.2 * min(areas), look


def test_held_out_kinds_and_defects_are_not_trained_on() -> None:
    assert set(AUXILIARY_KINDS).isdisjoint(HELD_OUT_KINDS)
    assert set(AUXILIARY_DEFECTS) == set(DEFECTS) - set(HELD_OUT_DEFECTS)
    assert set(HELD_OUT_KINDS) < set(KINDS)
    assert set(HELD_OUT_KINDS) & set(SURFACES)
    assert set(HELD_OUT_KINDS) & set(OBJECTS)
