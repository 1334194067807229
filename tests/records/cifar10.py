# SPDX-License-Identifier: Apache-2.0
"""A dozen random images under CIFAR-10's name, features and splits.

tensorflow-datasets finds a builder's files through its package, hence a module of its own.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SIZES = {"train": 12, "test": 5}


def arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) uint8 and labels (n,)."""
    rng = np.random.default_rng(SIZES[split])
    images = rng.integers(0, 256, (SIZES[split], 32, 32, 3), dtype=np.uint8)
    return images, rng.integers(0, 10, SIZES[split])


class Cifar10(tfds.core.GeneratorBasedBuilder):
    """The same features as tensorflow-datasets' own builder."""

    VERSION = tfds.core.Version("3.0.2")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(*arrays(split), strict=True)):
            yield (
                index,
                {
                    "id": f"{split}_{index:05d}",
                    "image": Image.fromarray(image),
                    "label": int(label),
                },
            )
