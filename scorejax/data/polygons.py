# SPDX-License-Identifier: Apache-2.0
"""Reads MoNuSeg's annotations: Aperio ImageScope XML files with one polygon per nucleus."""

import os
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Int32


def load_polygons(path: str | os.PathLike, shape: tuple[int, int]) -> Int32[np.ndarray, "h w"]:
    """Draws the polygons of an XML file as instances of shape (height, width), in file order.

    A vertex (X, Y) is column X and row Y; pixel centres have integer coordinates. A pixel inside
    several polygons belongs to the first. A polygon left without any pixel gets no number.
    Raises: ValueError, one line, if the file is damaged or has no region.
    """
    from skimage.draw import polygon  # Imported here: it takes half a second.

    instances, count = np.zeros(shape, np.int32), 0
    for vertices in _regions(path):
        rows, columns = polygon(vertices[:, 1], vertices[:, 0], shape)
        free = instances[rows, columns] == 0
        if free.any():
            count += 1
            instances[rows[free], columns[free]] = count
    return instances


def _regions(path: str | os.PathLike) -> list[np.ndarray]:
    """Vertices (n, 2) of each region as (X, Y); regions with fewer than 3 vertices are dropped."""
    try:
        tree = ElementTree.parse(path)
        regions = [
            np.array([[vertex.attrib["X"], vertex.attrib["Y"]] for vertex in region.iter("Vertex")])
            for region in tree.iter("Region")
        ]
        polygons = [region.astype(float) for region in regions if len(region) > 2]
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not an XML file of polygons: {reason}") from None
    if not regions:
        raise ValueError(f"{path} needs at least one Region with vertices; got none.")
    if not all(np.isfinite(region).all() for region in polygons):
        raise ValueError(f"{path} needs finite vertices; got nan or inf.")
    return polygons
