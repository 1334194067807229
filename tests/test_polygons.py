# SPDX-License-Identifier: Apache-2.0
"""Polygons of ImageScope cover the pixels that they outline, or are refused in one line."""

import numpy as np
import pytest
from PIL import Image

from scorejax.data import polygons, segmentation_folders
from tests.imagescope import annotations, region


def test_polygons_of_known_area_cover_as_many_pixels(tmp_path):
    # No pixel's centre lies on a side, and rectangles of whole sides hold as many as their area.
    box = region((1.5, 2.5), (11.5, 2.5), (11.5, 8.5), (1.5, 8.5))
    triangle = [(20.3, 3.1), (70.2, 30.7), (31.6, 77.9)]
    path = annotations(tmp_path / "a.xml", box, region(*triangle))
    instances = polygons.load_polygons(path, (80, 90))
    assert (instances == 1).sum() == 60 and instances[3, 2] == instances[8, 11] == 1
    (x1, y1), (x2, y2), (x3, y3) = triangle
    area = abs((x2 - x1) * (y3 - y1) - (x3 - x1) * (y2 - y1)) / 2
    # Lattice points in a convex figure: area to within half the perimeter, here 0.8 % is found.
    assert (instances == 2).sum() == pytest.approx(area, rel=0.02)
    row, column = np.mgrid[:80, :90]
    side = lambda a, b: (b[0] - a[0]) * (row - a[1]) - (b[1] - a[1]) * (column - a[0])
    corners = zip(triangle, triangle[1:] + triangle[:1], strict=True)
    exact = np.all([side(a, b) > 0 for a, b in corners], axis=0)
    np.testing.assert_array_equal(instances == 2, exact)


def test_negative_regions_are_cut_out_of_their_layer(tmp_path):
    square = lambda a, b: region((a, a), (b, a), (b, b), (a, b))
    negative = lambda text: text.replace("<Region", '<Region NegativeROA="1"')
    layers = lambda *layer: "".join(
        f"<Annotation><Regions>{''.join(regions)}</Regions></Annotation>" for regions in layer
    )
    body = lambda *layer: f"<Annotations>{layers(*layer)}</Annotations>"
    hole = [square(4.5, 40.5), negative(square(14.5, 30.5))]
    for name, layer, areas in (
        ("hole", [hole], [1296 - 256]),
        ("before", [hole[::-1]], [1296 - 256]),
        ("alone", [[hole[1], square(34.5, 44.5)]], [100]),
        ("other layer", [[square(4.5, 40.5)], [negative(square(14.5, 30.5))]], [1296]),
        ("edge", [[square(4.5, 24.5), negative(square(14.5, 30.5))]], [400 - 100]),
        ("gone", [[square(16.5, 20.5), negative(square(14.5, 30.5)), square(2.5, 4.5)]], [4]),
    ):
        (tmp_path / f"{name}.xml").write_text(body(*layer))
        instances = polygons.load_polygons(tmp_path / f"{name}.xml", (48, 48))
        assert np.bincount(instances.ravel())[1:].tolist() == areas, name


def test_ellipses_and_rectangles_are_given_by_two_corners(tmp_path):
    of_type = lambda number, *vertices: region(*vertices).replace(
        "<Region", f'<Region Type="{number}"'
    )
    path = annotations(
        tmp_path / "a.xml",
        of_type(1, (11.5, 8.5), (1.5, 2.5)),
        of_type(2, (20.5, 10.5), (60.5, 40.5)),
        of_type(1, (3, 60), (13, 50), (23, 60), (13, 70)),  # a turned rectangle: its own corners
        of_type(4, (0, 0), (70, 0), (70, 70)),  # a ruler
        of_type(2, (5, 5), (5, 9)),
    )
    instances = polygons.load_polygons(path, (80, 90))
    assert instances.max() == 3
    assert (instances == 1).sum() == 60 and instances[3, 2] == instances[8, 11] == 1
    row, column = np.mgrid[:80, :90]
    words = path.read_text().replace("Vertex", "V")
    for number, word in (("1", "Rectangle"), ("2", "Ellipse"), ("4", "Ruler")):
        words = words.replace(f'Type="{number}"', f'Type="{word}"')
    path.write_text(words)
    np.testing.assert_array_equal(polygons.load_polygons(path, (80, 90)), instances)
    inside = ((row - 25.5) / 15) ** 2 + ((column - 40.5) / 20) ** 2 < 1
    np.testing.assert_array_equal(instances == 2, inside)
    # A square of side sqrt(200) on its corner: lattice points on its sides may count or not.
    assert 180 < (instances == 3).sum() < 222 and not instances[51, 4]


def test_a_picture_without_nuclei_is_one(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (10, 12)).save(tmp_path / f"{name}.png")
    annotations(tmp_path / "a.xml")
    annotations(tmp_path / "b.xml", region((1.5, 2.5), (7.5, 2.5), (7.5, 8.5), (1.5, 8.5)))
    first, second = segmentation_folders.read(tmp_path, "monuseg").annotated
    assert first.instances.shape == (12, 10) and first.instances.max() == 0
    assert second.instances.max() == 1
    (tmp_path / "a.xml").write_text("<annotation><object/></annotation>")  # of Pascal VOC
    with pytest.raises(ValueError, match=r"a\.xml is not .* its root is 'annotation', that of Im"):
        segmentation_folders.read(tmp_path, "monuseg")


def test_a_pixel_of_two_polygons_belongs_to_the_first_and_lost_ones_have_no_number(tmp_path):
    first = region((-3, -3), (5.5, -3), (5.5, 5.5), (-3, 5.5))
    second = region((2.5, 2.5), (8.5, 2.5), (8.5, 8.5), (2.5, 8.5))
    hidden, line = region((1, 1), (3, 1), (3, 3), (1, 3)), region((0, 0), (9, 9))
    outside = region((50, 50), (60, 50), (60, 60))
    path = annotations(tmp_path / "a.xml", first, hidden, line, outside, second)
    instances = polygons.load_polygons(path, (10, 10))
    assert (instances == 1).sum() == 36 and (instances == 2).sum() == 36 - 9
    assert instances.max() == 2


def test_damaged_polygons_are_one_line(tmp_path):
    broken = tmp_path / "a.xml"
    broken.write_text("<Annotations><Region>")
    missing = annotations(tmp_path / "b.xml", '<Region><Vertex X="1"/></Region>')
    words = annotations(tmp_path / "c.xml", region(("one", 2), (3, 4), (5, 6)))
    endless = annotations(tmp_path / "d.xml", region(("inf", 2), (3, 4), (5, 6)))
    for path, message in (
        (broken, "not an XML file of polygons"), (missing, "not an XML file of polygons"),
        (words, "not an XML file of polygons"), (endless, "finite vertices"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message) as raised:
            polygons.load_polygons(path, (9, 9))
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)
