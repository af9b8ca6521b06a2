from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cloister.errors import ConfigError
from cloister.storage.raw_shard import RawRecords
from cloister.workloads.images import (
    ImageBatches,
    random_crop,
    random_flip,
    standardise,
)

COUNT = 40
LABELS = np.arange(COUNT, dtype=np.uint8) % 10
IMAGES = np.random.default_rng(0).integers(1, 256, (COUNT, 3, 6, 5)).astype(np.uint8)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def batches(*, crop_padding: int = 0, flip: bool = False) -> ImageBatches:
    records = RawRecords({"label": LABELS, "image": IMAGES})
    return ImageBatches(records, crop_padding=crop_padding, flip=flip)


def shifted(image: NDArray[np.uint8], padding: int) -> list[bytes]:
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    _, height, width = image.shape
    return [
        padded[:, top : top + height, left : left + width].tobytes()
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    ]


def test_a_batch_is_standardised_images_and_their_labels() -> None:
    indices = np.array([7, 2])
    images, labels = batches().batch(indices, generator())
    assert (images.dtype, tuple(images.shape)) == (torch.float32, (2, 3, 6, 5))
    assert labels.tolist() == [7, 2]
    expected = IMAGES[7] - IMAGES[7].mean()
    np.testing.assert_allclose(images[0], expected / IMAGES[7].std(), rtol=1e-4)


def test_standardised_images_have_mean_zero_and_deviation_one() -> None:
    values = standardise(torch.from_numpy(IMAGES)).reshape(COUNT, -1)
    torch.testing.assert_close(values.mean(1), torch.zeros(COUNT))
    torch.testing.assert_close(values.std(1, correction=0), torch.ones(COUNT))


def test_a_uniform_image_becomes_zeros() -> None:
    assert not standardise(torch.full((1, 3, 4, 4), 9, dtype=torch.uint8)).any()


def test_a_nearly_uniform_image_is_not_blown_up() -> None:
    image = torch.zeros((1, 1, 16, 16), dtype=torch.uint8)
    image[0, 0, 0, 0] = 1
    # TensorFlow's bound: the deviation counts as 1/16 at least.
    assert standardise(image).max() == pytest.approx((1 - 1 / 256) * 16)


def test_every_crop_is_a_shift_of_its_image_and_all_shifts_occur() -> None:
    cropped = np.concatenate([random_crop(IMAGES, 1, generator(n)) for n in range(3)])
    seen = set()
    for number, image in enumerate(cropped):
        shifts = shifted(IMAGES[number % COUNT], 1)
        assert image.tobytes() in shifts
        seen.add(shifts.index(image.tobytes()))
    assert seen == set(range(9))


def test_half_of_the_images_are_mirrored_and_the_rest_untouched() -> None:
    mirrored = 0
    for before, after in zip(IMAGES, random_flip(IMAGES, generator()), strict=True):
        if not np.array_equal(before, after):
            assert np.array_equal(before[:, :, ::-1], after)
            mirrored += 1
    assert 10 < mirrored < 30


def test_augmentation_depends_on_the_generator_alone() -> None:
    data = batches(crop_padding=2, flip=True)
    indices = np.arange(8)
    first, _ = data.batch(indices, generator(1))
    again, _ = data.batch(indices, generator(1))
    other, _ = data.batch(indices, generator(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("padding", [-1, True, 1.5, "4"])
def test_a_padding_that_is_no_number_of_pixels_is_refused(padding: object) -> None:
    with pytest.raises(ConfigError, match="crop_padding") as caught:
        batches(crop_padding=padding)  # type: ignore[arg-type]
    assert caught.value.code == "option-invalid"


def test_a_flip_that_is_no_switch_is_refused() -> None:
    with pytest.raises(ConfigError, match="flip"):
        batches(flip=1)  # type: ignore[arg-type]
