from __future__ import annotations

import numpy as np
import pytest
import torch

from deploykit.errors import ConfigError
from deploykit.training.models.data_preprocessor import DetDataPreprocessor

MEAN, STD = [103.53, 116.28, 123.675], [57.375, 57.12, 58.395]


@pytest.mark.parametrize("to_rgb", [False, True])
def test_channels_and_normalisation(to_rgb):
    rgb = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    network_order = rgb if to_rgb else rgb[..., ::-1]
    # In float32 and in this order, so that it is bit-equal to the usual implementation.
    expected = (network_order.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    module = DetDataPreprocessor(MEAN, STD, bgr_to_rgb=to_rgb)
    actual = module(torch.from_numpy(rgb))
    assert actual.dtype == torch.float32
    np.testing.assert_array_equal(actual.permute(0, 2, 3, 1).numpy(), expected)


def test_without_mean_only_the_channels_are_swapped():
    images = torch.randint(0, 256, (1, 2, 2, 3), dtype=torch.uint8)
    actual = DetDataPreprocessor()(images)
    assert torch.equal(actual, images.flip(3).permute(0, 3, 1, 2).float())


def test_one_mean_for_all_channels():
    images = torch.full((1, 2, 2, 3), 9, dtype=torch.uint8)
    assert (DetDataPreprocessor([5.0], [2.0])(images) == 2.0).all()


def test_padding_has_its_value_after_normalising():
    images = torch.randint(1, 256, (2, 5, 9, 3), dtype=torch.uint8)
    module = DetDataPreprocessor(MEAN, STD, pad_size_divisor=4, pad_value=0.25)
    pixels = module(images, torch.tensor([[5, 9], [3, 8]], dtype=torch.int32))
    whole = DetDataPreprocessor(MEAN, STD)(images)
    assert pixels.shape == (2, 3, 8, 12)
    assert torch.equal(pixels[0, :, :5, :9], whole[0])
    assert torch.equal(pixels[1, :, :3, :8], whole[1, :, :3, :8])
    for image, (height, width) in enumerate(((5, 9), (3, 8))):
        assert (pixels[image, :, height:] == 0.25).all()
        assert (pixels[image, :, :, width:] == 0.25).all()


def test_float_images_pass_as_they_are():
    images = torch.rand(1, 4, 4, 3) * 255
    assert torch.equal(DetDataPreprocessor(bgr_to_rgb=True)(images), images.permute(0, 3, 1, 2))


def test_training_batches_are_padded_to_a_fixed_size():
    augment = [{"type": "BatchFixedSizePad", "size": (12, 20), "img_pad_value": 3}]
    module = DetDataPreprocessor(MEAN, STD, pad_size_divisor=4, batch_augments=augment)
    images = torch.randint(0, 256, (2, 5, 9, 3), dtype=torch.uint8)
    sizes = torch.tensor([[5, 9], [3, 8]], dtype=torch.int32)
    pixels = module.train()(images, sizes)
    usual = module.eval()(images, sizes)
    assert (pixels.shape, usual.shape) == ((2, 3, 12, 20), (2, 3, 8, 12))
    assert torch.equal(pixels[:, :, :8, :12], usual)
    assert (pixels[:, :, 8:] == 3).all()
    assert (pixels[:, :, :, 12:] == 3).all()
    assert module.padded_sizes(sizes).tolist() == [[8, 12], [4, 8]]
    assert module.train().padded_sizes(sizes).tolist() == [[12, 20]] * 2
    large = torch.randint(0, 256, (1, 16, 24, 3), dtype=torch.uint8)
    assert module(large).shape == (1, 3, 16, 24)


def test_there_is_nothing_of_it_in_a_state_dict():
    assert not DetDataPreprocessor(MEAN, STD).state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": MEAN}, "both mean and std"),
        ({"mean": MEAN, "std": [1.0]}, "1 or 3 values"),
        ({"mean": MEAN, "std": [1.0, 0.0, 1.0]}, "positive"),
        ({"bgr_to_rgb": True, "rgb_to_bgr": True}, "exclude"),
        ({"batch_augments": [{"type": "BatchFixedSizePad"}]}, "batch_augments"),
        ({"batch_augments": [{"type": "BatchResize", "size": (8, 8)}]}, "batch_augments"),
        ({"mask_pad_value": 255}, "mask_pad_value"),
        ({"pad_size_divisor": 0}, "pad_size_divisor"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DetDataPreprocessor(**options)
