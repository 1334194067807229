# SPDX-License-Identifier: Apache-2.0
"""MoNuSeg's annotations: XML files of Aperio ImageScope with a polygon for each nucleus."""

import os
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Int32


def load_polygons(path: str | os.PathLike, shape: tuple[int, int]) -> Int32[np.ndarray, "h w"]:
    """Instances of an XML file, on a picture of this (height, width), numbered as in the file.

    A vertex (X, Y) is column X and row Y, pixel centres being whole numbers. A pixel inside several
    polygons belongs to the first; polygons that cover no pixel of their own have no number.
    Raises: ValueError, one line, for a file that is damaged or has no region.
    """
    from skimage.draw import polygon  # Half a second that other data sets need not pay.

    instances, count = np.zeros(shape, np.int32), 0
    for vertices in _regions(path):
        rows, columns = polygon(vertices[:, 1], vertices[:, 0], shape)
        free = instances[rows, columns] == 0
        if free.any():
            count += 1
            instances[rows[free], columns[free]] = count
    return instances


def _regions(path: str | os.PathLike) -> list[np.ndarray]:
    """The vertices (n, 2) of each region, as (X, Y); a region of under 3 vertices is no polygon."""
    try:
        tree = ElementTree.parse(path)
        regions = [
            np.array([[vertex.attrib["X"], vertex.attrib["Y"]] for vertex in region.iter("Vertex")])
            for region in tree.iter("Region")
        ]
        polygons = [region.astype(float) for region in regions if len(region) > 2]
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no XML file of polygons: {reason}") from None
    if not regions:
        raise ValueError(f"{path} needs at least one Region with vertices; got none.")
    if not all(np.isfinite(region).all() for region in polygons):
        raise ValueError(f"{path} needs finite vertices; some are not.")
    return polygons
