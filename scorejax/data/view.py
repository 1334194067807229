# SPDX-License-Identifier: Apache-2.0
"""A data set of images as a model sees it: image size, value range, dequantisation."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Array, Float, Float32, Real, UInt8

from scorejax.choices import require_known
from scorejax.data import images, picture_folder, transforms
from scorejax.data.own_pictures import read_pictures
from scorejax.data.picture_files import DAMAGED
from scorejax.data.source import memory_source, padded_batches, record_source
from scorejax.typing import OfflineSource, Shape


class DataView(Protocol):
    """A data set as a model sees it: images (h, w, c), or vectors (d,)."""

    field: str
    """Name of the examples in a batch."""
    paths: tuple[str, ...]
    """Keys of a config that say where the data are."""

    @property
    def shape(self) -> Shape:
        """Shape of one example."""
        ...

    def training_source(self, batch_size: int) -> OfflineSource:
        """Batches {field: (b, *shape)} of the training split."""
        ...

    def held_out_batches(
        self, rng: np.random.Generator, num: int, batch_size: int
    ) -> list[dict[str, np.ndarray]]:
        """The first `num` test examples as in training, padded and masked by "mask" (b,)."""
        ...

    def density_examples(
        self, rng: np.random.Generator, num: int, split: str = "test"
    ) -> np.ndarray:
        """The first `num` examples of a split as densities are measured."""
        ...

    def to_data(self, x: Array | np.ndarray) -> Array | np.ndarray:
        """From the model's units to those of the data."""
        ...


@dataclasses.dataclass(frozen=True)
class ImageView:
    """A data set by name, and the preprocessing between its stored images and the model.

    Raises: ValueError if the data set or `damaged` is unknown, or image_size is below 1.
    """

    dataset: str
    image_size: int
    data_dir: str = ""
    centered: bool = True
    """Whether values lie in [-1, 1] rather than [0, 1]."""
    random_flip: bool = False
    """Whether training images are mirrored at random."""
    uniform_dequantization: bool = False
    """Whether training images are dequantised. Densities always use dequantised images."""
    damaged: str = "raise"
    """Whether pictures of a folder that cannot be used are an error, or left out: "skip"."""

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "ImageView":
        """Builds a view from the options named as its fields; other options are ignored."""
        required = {name: options[name] for name in VIEW_OPTIONS}
        return cls(**required, damaged=options.get("damaged", "raise"))

    def __post_init__(self) -> None:
        images.image_set(self.dataset)
        require_known("way with damaged files", self.damaged, DAMAGED)
        if self.image_size < 1:
            raise ValueError(f"image_size needs to be at least 1; got {self.image_size}")

    field: ClassVar[str] = "image"
    paths: ClassVar[tuple[str, ...]] = ("data_dir",)

    @property
    def shape(self) -> Shape:
        """(height, width, channels)."""
        return self.image_size, self.image_size, images.image_set(self.dataset).channels

    @property
    def levels(self) -> int:
        """Grey levels per channel of the stored images."""
        return images.image_set(self.dataset).levels

    @property
    def rounded(self) -> bool:
        """Whether stored images have whole grey levels only."""
        return images.image_set(self.dataset).rounded

    @property
    def data_range(self) -> tuple[float, float]:
        """Model values of black and white."""
        return (-1.0, 1.0) if self.centered else (0.0, 1.0)

    def stored(self, split: str, limit: int | None = None) -> images.Images:
        """The grey levels of a split, or of the first `limit` of them. Raises: as `images.load`."""
        return images.load(self.dataset, split, limit=limit, **self._place)

    def pictures(
        self, folder: str | os.PathLike, limit: int | None = None
    ) -> UInt8[np.ndarray, "n h w c"]:
        """The pictures of a folder, or the first `limit`, in the form of this data set.

        The data set itself need not be there. Raises: as `read_pictures`.
        """
        return read_pictures(folder, self.dataset, self.image_size, limit)

    def streamed(self, split: str) -> np.ndarray | images.Streamed:
        """The grey levels of a split; sets too large for memory are read when indexed.

        Raises: as `images.load`.
        """
        if images.image_set(self.dataset).in_memory:
            return self.stored(split).image
        return images.Streamed(self._records(split))

    def training_source(self, batch_size: int) -> OfflineSource:
        """Batches of the training split. Raises: as `images.load`."""
        if images.image_set(self.dataset).in_memory:
            return self.batches_of(self.stored("train"), batch_size)
        transform = self._transform(self.random_flip, self.uniform_dequantization)
        records, notes = self._records("train"), ()
        if self.dataset == "folder":
            # Also test pictures: a bad one would be missed until the first evaluation reads it.
            folders = records.rows, self._records("test").rows
            if self.damaged == "raise":
                picture_folder.require_readable(*folders)
            notes = picture_folder.notes(*folders)
        return record_source(records, batch_size, transform)._replace(notes=notes)

    def batches_of(self, stored: images.Images, batch_size: int) -> OfflineSource:
        """Batches of these images of the data set, as in training."""
        transform = self._transform(self.random_flip, self.uniform_dequantization)
        return memory_source(stored, batch_size, transform)

    def as_trained(
        self, rng: np.random.Generator, stored: Real[np.ndarray, "b h w c"]
    ) -> Float32[np.ndarray, "b h w c"]:
        """Preprocesses stored images as in training, but without random flips."""
        return self._transform(False, self.uniform_dequantization)(rng, stored)

    def dequantized(
        self, rng: np.random.Generator, stored: Real[np.ndarray, "b h w c"]
    ) -> Float32[np.ndarray, "b h w c"]:
        """Preprocesses stored images with uniform dequantisation, as densities need them."""
        return self._transform(False, True)(rng, stored)

    def held_out_batches(
        self, rng: np.random.Generator, num: int, batch_size: int
    ) -> list[dict[str, np.ndarray]]:
        """The first `num` test images as in training, padded to batches of one size and masked."""
        return [
            batch | {"image": self.as_trained(rng, batch["image"])}
            for batch in padded_batches(self.stored("test", num), batch_size)
        ]

    def density_examples(
        self, rng: np.random.Generator, num: int, split: str = "test"
    ) -> Float32[np.ndarray, "b h w c"]:
        """The first `num` images of a split, dequantised."""
        return self.dequantized(rng, self.stored(split, num).image)

    def to_data(self, x: Float[Array | np.ndarray, "*d"]) -> Float[Array | np.ndarray, "*d"]:
        """Images in [0, 1], not clipped: see `to_unit`."""
        return self.to_unit(x)

    def to_unit(self, x: Float[Array | np.ndarray, "*d"]) -> Float[Array | np.ndarray, "*d"]:
        """Maps an array of any shape from the model's range to [0, 1] without clipping."""
        return transforms.uncentre(x) if self.centered else x

    def _records(self, split: str) -> images.Records:
        return images.records(self.dataset, split, **self._place)

    @property
    def _place(self) -> dict[str, Any]:
        names = ("image_size", "data_dir", "damaged")
        return {name: getattr(self, name) for name in names}

    def _transform(self, random_flip: bool, dequantize: bool) -> transforms.Transform:
        return transforms.make_transform(
            levels=self.levels,
            random_flip=random_flip,
            uniform_dequantization=dequantize,
            centered=self.centered,
        )


VIEW_OPTIONS = tuple(f.name for f in dataclasses.fields(ImageView) if f.name != "damaged")
"""Keys of a config that an `ImageView` needs."""
VIEW_DEFAULTS = ("damaged",)
"""Keys that a config may have for it."""
