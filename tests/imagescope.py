# SPDX-License-Identifier: Apache-2.0
"""XML files of polygons, as ImageScope writes them."""


def region(*vertices):
    """A region with these vertices (x, y)."""
    inside = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in vertices)
    return f"<Region><Vertices>{inside}</Vertices></Region>"


def annotations(path, *regions):
    """Writes a file of one layer of regions; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "<Annotations><Annotation><Regions>{}</Regions></Annotation></Annotations>"
    path.write_text(body.format("".join(regions)))
    return path
