"""The generator of pictures: categories that hold together, defects that can be seen where the mask says."""

import numpy as np
import pytest
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_s_pictures_are_pictures(kind: str) -> None:
    first, again, other = render(kind, 1, 0, SIZE), render(kind, 1, 0, SIZE), render(kind, 1, 1, SIZE)
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8
    assert first.std() > 2, "something is to be seen"
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("kind", [*SURFACES, *OBJECTS, *INVENTIONS])
def test_a_category_s_pictures_share_their_look(kind: str) -> None:
    """Before the camera, mean colours differ less within a category than between two looks of the same kind."""

    def mean(look: int, number: int) -> np.ndarray:
        return scenes._draw(kind, default_rng(look), default_rng(number), SIZE).picture.mean((0, 1))

    means = np.array([[mean(look, number) for number in range(3)] for look in range(6)])
    assert means.std(axis=1).mean() < means.mean(axis=1).std(axis=0).mean()


@pytest.mark.parametrize("painter", OBJECTS.values(), ids=OBJECTS.keys())
def test_a_silhouette_is_where_the_object_is(painter) -> None:
    scene = draw_object(painter, default_rng(3), default_rng(4), SIZE)
    assert 0.03 < scene.silhouette.mean() < 0.6
    change = np.abs(scene.picture - scene.bare).max(-1)
    assert change[scene.silhouette > 0.9].mean() > 0.1
    assert change[scene.silhouette < 0.1].mean() < 0.05, "a shadow at most"


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_changes_what_its_mask_marks(defect: str) -> None:
    """Beyond the mask there are at most a soft rim and a shadow."""
    for number, kind in enumerate(("tiles", "paper", "washer", "egg")):
        scene = scenes._draw(kind, default_rng(1), default_rng(2), SIZE)
        before = scene.picture.copy()
        picture, mask = add_defect(defect, scene, default_rng(number))
        assert np.array_equal(scene.picture, before), "the scene must stay as it is"
        assert set(np.unique(mask)) == {0, 1}
        change = np.abs(np.clip(picture, 0, 1) - np.clip(before, 0, 1)).max(-1)
        assert change[mask > 0].mean() > 0.1
        assert change[mask == 0].mean() < 0.15 * change[mask > 0].mean()


@pytest.mark.parametrize("defect", DEFECTS)
def test_pairs_differ_in_the_defect_alone(defect: str) -> None:
    for kind in ("tiles", "paper", "washer", "brick"):
        normal, abnormal, mask = render_pair(kind, defect, 5, 6, SIZE)
        change = np.abs(normal.astype(int) - abnormal).max(-1)
        assert set(np.unique(mask)) == {0, 255}
        assert change[mask > 0].mean() > 4 * change[mask == 0].mean() > 0, "noise of its own, and the defect"


@pytest.mark.parametrize("look", range(20))
def test_an_invented_object_s_parts_are_the_same_in_each_picture(look: int) -> None:
    """But for pose, light and grain: so silhouettes cover about as much."""
    silhouettes = [
        draw_object(INVENTED_OBJECTS["gadget"], default_rng(look), default_rng(number), SIZE).silhouette.mean()
        for number in range(3)
    ]
    assert 0.01 < min(silhouettes) < max(silhouettes) < 0.7
    assert max(silhouettes) < 1.2 * min(silhouettes)


def test_what_is_held_out_stays_out() -> None:
    assert set(AUXILIARY_KINDS).isdisjoint(HELD_OUT_KINDS)
    assert set(AUXILIARY_DEFECTS) == set(DEFECTS) - set(HELD_OUT_DEFECTS)
    assert set(HELD_OUT_KINDS) < set(KINDS)
    assert set(HELD_OUT_KINDS) & set(SURFACES)
    assert set(HELD_OUT_KINDS) & set(OBJECTS)
