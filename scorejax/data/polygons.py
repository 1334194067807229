# SPDX-License-Identifier: Apache-2.0
"""Reads MoNuSeg's annotations: Aperio ImageScope XML files with one region per nucleus.

A region is a polygon, a rectangle or an ellipse (`Type` 0, 1 and 2, or these words, as in files of
HALO). One with `NegativeROA` is cut out of all regions of its layer, which is an `Annotation`.
Arrows and rulers are no regions.
"""

import os
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float, Int, Int32

_POLYGON, _RECTANGLE, _ELLIPSE, _NO_AREA = "polygon", "rectangle", "ellipse", ""
_SHAPES = {"1": _RECTANGLE, "2": _ELLIPSE, "3": _NO_AREA, "4": _NO_AREA}
_SHAPES |= {"rectangle": _RECTANGLE, "ellipse": _ELLIPSE, "arrow": _NO_AREA, "ruler": _NO_AREA}
_ROOTS = ("Annotations", "Annotation", "Regions")


class _Region(NamedTuple):
    shape: str
    vertices: Float[np.ndarray, "n 2"]
    """X and Y of each."""
    layer: int
    negative: bool


def load_polygons(path: str | os.PathLike, shape: tuple[int, int]) -> Int32[np.ndarray, "h w"]:
    """Draws the regions of an XML file as instances of shape (height, width), in file order.

    A vertex (X, Y) is column X and row Y; pixel centres have integer coordinates. A pixel inside
    several regions belongs to the first. A region left without any pixel gets no number; a file
    without regions has no instance.
    Raises: ValueError, one line, if the file is damaged or no annotation of ImageScope.
    """
    regions = _regions(path)
    cut_out: dict[int, np.ndarray] = {}
    for region in regions:
        if region.negative:
            cut = cut_out.setdefault(region.layer, np.zeros(shape, bool))
            cut[_pixels(region, shape)] = True
    instances, count = np.zeros(shape, np.int32), 0
    for region in regions:
        if region.negative:
            continue
        rows, columns = _pixels(region, shape)
        free = instances[rows, columns] == 0
        if region.layer in cut_out:
            free &= ~cut_out[region.layer][rows, columns]
        if free.any():
            count += 1
            instances[rows[free], columns[free]] = count
    return instances


def _pixels(
    region: _Region, shape: tuple[int, int]
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Rows and columns of the pixels inside a region."""
    from skimage.draw import ellipse, polygon  # Imported here: it takes half a second.

    rows, columns = region.vertices[:, 1], region.vertices[:, 0]
    if region.shape == _POLYGON:
        return polygon(rows, columns, shape)
    (top, left), (bottom, right) = ((f(rows), f(columns)) for f in (np.min, np.max))
    if region.shape == _RECTANGLE:
        return polygon([top, top, bottom, bottom], [left, right, right, left], shape)
    radii = (bottom - top) / 2, (right - left) / 2
    if min(radii) == 0:
        return np.zeros(0, int), np.zeros(0, int)
    return ellipse((top + bottom) / 2, (left + right) / 2, *radii, shape=shape)


def _regions(path: str | os.PathLike) -> list[_Region]:
    """The regions of a file; those with too few vertices for an area are dropped."""
    try:
        root = ElementTree.parse(path).getroot()
        if root.tag not in _ROOTS:
            raise ValueError(f"its root is {root.tag!r}, that of ImageScope Annotations.")
        layer_of = {
            region: layer
            for layer, annotation in enumerate(root.iter("Annotation"))
            for region in annotation.iter("Region")
        }
        found = [_region(element, layer_of.get(element, -1)) for element in root.iter("Region")]
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not an XML file of polygons: {reason}") from None
    regions = [region for region in found if region is not None]
    if not all(np.isfinite(region.vertices).all() for region in regions):
        raise ValueError(f"{path} needs finite vertices; got nan or inf.")
    return regions


def _region(element: ElementTree.Element, layer: int) -> _Region | None:
    """One region, or None if it has no area: too few vertices, an arrow or a ruler."""
    shape = _SHAPES.get(element.get("Type", "").lower(), _POLYGON)
    corners = [*element.iter("Vertex"), *element.iter("V")]
    vertices = [[float(corner.attrib["X"]), float(corner.attrib["Y"])] for corner in corners]
    if shape == _RECTANGLE and len(vertices) > 2:
        shape = _POLYGON  # It may be turned.
    if shape == _NO_AREA or len(vertices) < (3 if shape == _POLYGON else 2):
        return None
    negative = element.get("NegativeROA", "0").lower() in ("1", "true")
    return _Region(shape, np.array(vertices), layer, negative)
