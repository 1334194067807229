# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits as a tensorflow-datasets builder that downloads nothing.

Digits(data_dir=..., file_format="array_record").download_and_prepare()
"""

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from scorejax.data.images import SPLITS, digits


class Digits(tfds.core.GeneratorBasedBuilder):
    """1797 digits written by 43 people, 8 x 8 pixels of 17 grey levels, in two fixed halves."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # The images are part of scikit-learn.
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        images = digits(split)
        for index, (image, label) in enumerate(zip(images.image, images.label, strict=True)):
            # The encoder needs TensorFlow for an array, but not for a Pillow image.
            yield index, {"image": Image.fromarray(image[..., 0]), "label": int(label)}
