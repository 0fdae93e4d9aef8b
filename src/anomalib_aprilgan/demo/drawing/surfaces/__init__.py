# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Kinds of surfaces.

Each function draws one picture. What all pictures of a category share, such as colours and scale, comes from ``look``;
pass a generator in the same state for each of them. What differs between them comes from ``rng``.
"""

from anomalib_aprilgan.demo.drawing.surfaces.mineral import (
    asphalt,
    bricks,
    concrete,
    granite,
    marble,
    roof_tiles,
    terrazzo,
    tiles,
)
from anomalib_aprilgan.demo.drawing.surfaces.plant import cork, paper, parquet, wallpaper, wickerwork, wood
from anomalib_aprilgan.demo.drawing.surfaces.technical import (
    brushed_metal,
    honeycomb,
    mesh,
    perforated_plate,
    ribbed_rubber,
)
from anomalib_aprilgan.demo.drawing.surfaces.textile import (
    camouflage,
    carpet,
    corduroy,
    denim,
    fabric,
    knitwear,
    leather,
    plaid,
)
from anomalib_aprilgan.demo.drawing.surfaces.texture import Surface

__all__ = ["SURFACES"]

SURFACES: dict[str, Surface] = {
    kind.__name__: kind
    for kind in (
        leather, wood, fabric, carpet, granite, bricks, tiles, brushed_metal, mesh, perforated_plate, ribbed_rubber,
        paper, asphalt, roof_tiles, plaid, cork, denim, parquet, concrete, knitwear, camouflage, wallpaper,
        marble, honeycomb, corduroy, terrazzo, wickerwork,
    )
}  # fmt: skip
"""Surfaces by name."""
