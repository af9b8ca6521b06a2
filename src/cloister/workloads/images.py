"""Batches of images and labels, with the usual augmentation.

Crop, flip and per-image standardisation are those of TensorFlow's CIFAR-10 tutorial,
which the reference systems use (`tf.image.per_image_standardization`). All of it works
on a whole batch at once and draws only from the generator it is given.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cloister.storage.records import Records
from cloister.workloads.options import switch, whole_number


class ImageBatches:
    """Batches of standardised images and their labels.

    Args:
        records: Records with the fields ``image``, uint8 (channels, height, width),
            and ``label``, an integer.
        crop_padding: Black pixels put around an image before a crop of its own size is
            cut out at random; 0 for no cropping.
        flip: Whether half of the images, at random, are mirrored left to right.

    Raises:
        ConfigError: If `crop_padding` is no whole number or `flip` no bool.
    """

    def __init__(
        self, records: Records, *, crop_padding: int = 0, flip: bool = False
    ) -> None:
        self._records = records
        self._crop_padding = whole_number("crop_padding", crop_padding, least=0)
        self._flip = switch("flip", flip)

    def __len__(self) -> int:
        return len(self._records)

    def batch(
        self, indices: NDArray[np.int64], generator: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the images and labels at `indices`.

        Args:
            indices: Which records.
            generator: Source of the crops and flips.

        Returns:
            Images, float32 (len(indices), channels, height, width), and labels, int64
            (len(indices),).
        """
        record = self._records.read(indices)
        images: NDArray[np.uint8] = np.asarray(record["image"], np.uint8)
        if self._crop_padding:
            images = random_crop(images, self._crop_padding, generator)
        if self._flip:
            images = random_flip(images, generator)
        labels = torch.from_numpy(np.asarray(record["label"], np.int64))
        return standardise(torch.from_numpy(images)), labels


def random_crop(
    images: NDArray[np.uint8], padding: int, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """Returns each image shifted at random by up to `padding` pixels each way.

    Args:
        images: (count, channels, height, width).
        padding: Largest shift; black comes in from outside.
        generator: Source of the shifts.
    """
    count, _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    top, left = generator.integers(0, 2 * padding + 1, (2, count))
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, (height, width), axis=(2, 3)
    )
    return np.ascontiguousarray(windows[np.arange(count), :, top, left])


def random_flip(
    images: NDArray[np.uint8], generator: np.random.Generator
) -> NDArray[np.uint8]:
    """Returns the images, each mirrored left to right with probability one half."""
    mirrored = generator.random(len(images)) < 0.5
    return np.where(mirrored[:, None, None, None], images[..., ::-1], images)


def standardise(images: torch.Tensor) -> torch.Tensor:
    """Returns the images scaled each to mean 0 and deviation 1, float32.

    As `tf.image.per_image_standardization`: the deviation is taken as no less than one
    over the root of the number of values, so a uniform image becomes zeros.
    """
    values = images.float()
    count = values[0].numel() if len(values) else 1
    deviation, mean = torch.std_mean(values, dim=(1, 2, 3), correction=0, keepdim=True)
    scaled = (values - mean) / deviation.clamp_min(count**-0.5)
    # Convolutions on a CPU are a fifth faster with the channels innermost (measured).
    return scaled.contiguous(memory_format=torch.channels_last)
