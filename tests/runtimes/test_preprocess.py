import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import MediaError, UsageError
from deploykit.runtimes.preprocess import Preprocessor, fit_size, rescaled_size
from deploykit.spec import DimRange, InputSpec

PAD = (10, 20, 30)
sizes = st.tuples(st.integers(1, 300), st.integers(1, 300))


def input_spec(**changes: object) -> InputSpec:
    arguments = {
        "batch": DimRange(1, 1, 8),
        "height": DimRange(32, 128, 512),
        "width": DimRange(32, 160, 512),
        "scale": (160, 128),
        "pad_value": PAD,
    }
    return InputSpec(**(arguments | changes))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def mmdetection_resize(image: np.ndarray, scale: tuple[int, int]) -> np.ndarray:
    """mmcv.imrescale: factor from the long and the short edge, sizes rounded half up."""
    height, width = image.shape[:2]
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    size = int(width * float(factor) + 0.5), int(height * float(factor) + 0.5)
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def padded_rgb(image: np.ndarray, height: int, width: int) -> np.ndarray:
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = PAD
    canvas[: image.shape[0], : image.shape[1]] = image[..., ::-1]
    return canvas


@pytest.mark.parametrize(
    "size", [(427, 640), (640, 427), (128, 160), (160, 128), (50, 30), (64, 80), (301, 300), (5, 5)]
)
def test_keep_ratio_and_pad_are_mmdetections(size: tuple[int, int]) -> None:
    image = noise(*size)
    prepared = Preprocessor(input_spec(scale=(160, 160), pad_size=(160, 160)))([image])
    resized = mmdetection_resize(image, (160, 160))
    np.testing.assert_array_equal(prepared.images[0], padded_rgb(resized, 160, 160))
    assert prepared.images.dtype == np.uint8 and prepared.images.flags.c_contiguous
    assert prepared.image_sizes.tolist() == [list(resized.shape[:2])]
    assert prepared.image_sizes.dtype == np.int32
    assert prepared.original_sizes == (size,)
    np.testing.assert_array_equal(
        prepared.scale_factors, [[resized.shape[1] / size[1], resized.shape[0] / size[0]]]
    )


@pytest.mark.parametrize("size", [(100, 300), (300, 100), (128, 160), (333, 251)])
def test_without_pad_size_the_divisor_decides(size: tuple[int, int]) -> None:
    image = noise(*size)
    prepared = Preprocessor(input_spec())([image])
    resized = mmdetection_resize(image, (160, 128))
    height, width = (-(-side // 32) * 32 for side in resized.shape[:2])
    np.testing.assert_array_equal(prepared.images[0], padded_rgb(resized, height, width))


def test_stretch() -> None:
    image = noise(60, 70)
    prepared = Preprocessor(input_spec(resize="stretch"))([image])
    expected = cv2.resize(image, (160, 128), interpolation=cv2.INTER_LINEAR)[..., ::-1]
    np.testing.assert_array_equal(prepared.images[0], expected)
    np.testing.assert_array_equal(prepared.scale_factors, [[160 / 70, 128 / 60]])


def test_no_resize() -> None:
    image = noise(60, 70)
    prepared = Preprocessor(input_spec(resize="none"))([image])
    np.testing.assert_array_equal(prepared.images[0], padded_rgb(image, 64, 96))
    assert prepared.scale_factors.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nearest", cv2.INTER_NEAREST),
        ("bicubic", cv2.INTER_CUBIC),
        ("area", cv2.INTER_AREA),
        ("lanczos", cv2.INTER_LANCZOS4),
    ],
)
def test_interpolation(name: str, code: int) -> None:
    image = noise(200, 300)
    spec = input_spec(resize="stretch", scale=(160, 128), interpolation=name)
    expected = cv2.resize(image, (160, 128), interpolation=code)[..., ::-1]
    np.testing.assert_array_equal(Preprocessor(spec)([image]).images[0], expected)


@pytest.mark.parametrize("view", ["flipped", "transposed", "cropped", "read-only"])
def test_views_are_read_like_copies(view: str) -> None:
    image = noise(90, 90)
    strange = {
        "flipped": image[::-1, ::-1],
        "transposed": image.transpose(1, 0, 2),
        "cropped": image[7:80, 3:60],
        "read-only": image.copy(),
    }[view]
    strange.flags.writeable = view != "read-only"
    preprocess = Preprocessor(input_spec())
    expected = preprocess([np.ascontiguousarray(strange)])
    np.testing.assert_array_equal(preprocess([strange]).images, expected.images)


def test_images_are_not_changed_and_results_not_shared() -> None:
    image = noise(128, 160)
    before = image.copy()
    preprocess = Preprocessor(input_spec())
    first = preprocess([image])
    kept = first.images.copy()
    preprocess([noise(128, 160, seed=1)])
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(first.images, kept)


def test_a_mixed_batch_is_padded_to_its_largest() -> None:
    images = [noise(100, 300, 0), noise(300, 100, 1), noise(128, 160, 2)]
    prepared = Preprocessor(input_spec())(images)
    assert prepared.images.shape == (3, 160, 160, 3)
    for row, image in zip(prepared.images, images, strict=True):
        resized = mmdetection_resize(image, (160, 128))
        np.testing.assert_array_equal(row, padded_rgb(resized, 160, 160))
    assert prepared.image_sizes.tolist() == [[53, 160], [160, 53], [128, 160]]


def test_a_static_batch_is_filled_with_padding() -> None:
    spec = input_spec(batch=DimRange.fixed(4), pad_size=(160, 160), scale=(160, 160))
    image = noise(80, 80)
    prepared = Preprocessor(spec)([image])
    assert len(prepared) == 1
    assert prepared.images.shape == (4, 160, 160, 3)
    assert (prepared.images[1:] == PAD).all()
    assert prepared.image_sizes.tolist() == [[160, 160]] * 4


@pytest.mark.parametrize("count", [0, 9])
def test_batches_of_a_wrong_size_are_refused(count: int) -> None:
    with pytest.raises(UsageError, match=f"takes 1 to 8 images at once, got {count}"):
        Preprocessor(input_spec())([noise(9, 9)] * count)


def test_a_static_input_smaller_than_the_scale_is_filled() -> None:
    """An artefact exported for 96x128 from a recipe that resizes to 640."""
    spec = input_spec(
        height=DimRange.fixed(96), width=DimRange.fixed(128), scale=(640, 640), pad_size=(640, 640)
    )
    prepared = Preprocessor(spec)([noise(200, 200), noise(100, 400)])
    assert prepared.images.shape == (2, 96, 128, 3)
    assert prepared.image_sizes.tolist() == [[96, 96], [32, 128]]


def test_a_static_input_larger_than_the_scale_is_filled() -> None:
    spec = input_spec(
        height=DimRange.fixed(256), width=DimRange.fixed(256), scale=(160, 160), pad_size=(160, 160)
    )
    prepared = Preprocessor(spec)([noise(200, 100)])
    assert prepared.images.shape == (1, 256, 256, 3)
    assert prepared.image_sizes.tolist() == [[256, 128]]


def test_a_static_input_takes_what_fits_unchanged() -> None:
    spec = input_spec(height=DimRange.fixed(160), width=DimRange.fixed(192), scale=(160, 128))
    preprocess = Preprocessor(spec)
    assert preprocess.resized_size((256, 320)) == (128, 160)
    assert preprocess([noise(256, 320)]).images.shape == (1, 160, 192, 3)
    # Upright images would be 160x128, which fits as well.
    assert preprocess.resized_size((320, 256)) == (160, 128)


def test_an_input_size_is_filled() -> None:
    preprocess = Preprocessor(input_spec(), input_size=(256, 320))
    prepared = preprocess([noise(100, 100), noise(100, 200)])
    assert prepared.images.shape == (2, 256, 320, 3)
    assert prepared.image_sizes.tolist() == [[256, 256], [160, 320]]
    stretched = Preprocessor(input_spec(resize="stretch"), input_size=(256, 320))
    assert stretched([noise(100, 100)]).image_sizes.tolist() == [[256, 320]]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((100, 128), "height must be a multiple of 32, got 100; try 96 or 128"),
        ((128, 16), "takes an input width of 32 to 512, got 16"),
        ((544, 128), "takes an input height of 32 to 512, got 544"),
    ],
)
def test_an_input_size_that_does_not_fit_is_refused(size: tuple[int, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preprocessor(input_spec(), input_size=size)


def test_another_input_size_for_a_static_artefact_is_refused() -> None:
    spec = input_spec(height=DimRange.fixed(128), width=DimRange.fixed(160))
    Preprocessor(spec, input_size=(128, 160))
    with pytest.raises(UsageError, match="takes an input width of 160, got 128"):
        Preprocessor(spec, input_size=(128, 128))


def test_grey_and_alpha_are_converted_and_others_refused() -> None:
    preprocess = Preprocessor(input_spec())
    grey = noise(40, 50)[..., 0]
    expected = preprocess([np.dstack([grey] * 3)]).images
    np.testing.assert_array_equal(preprocess([grey]).images, expected)
    np.testing.assert_array_equal(preprocess([np.dstack([grey] * 4)]).images, expected)
    with pytest.raises(MediaError, match="sample type float32"):
        preprocess([noise(40, 50).astype(np.float32)])


def test_extreme_ratios_keep_a_pixel() -> None:
    prepared = Preprocessor(input_spec())([noise(1, 2000)])
    assert prepared.image_sizes.tolist() == [[1, 160]]


@given(st.lists(sizes, min_size=1, max_size=3), st.sampled_from([None, (256, 320)]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_image_fits_its_canvas(
    image_sizes: list[tuple[int, int]], input_size: tuple[int, int] | None, narrow: bool
) -> None:
    limit = 320 if narrow else 4096
    spec = input_spec(
        scale=(640, 400), height=DimRange(64, 128, limit), width=DimRange(64, 128, limit)
    )
    prepared = Preprocessor(spec, input_size)([noise(*size) for size in image_sizes])
    _, height, width, _ = prepared.images.shape
    assert height % 32 == 0 and width % 32 == 0
    assert height in spec.height and width in spec.width
    for row, (h, w) in zip(prepared.images, prepared.image_sizes.tolist(), strict=True):
        assert 1 <= h <= height and 1 <= w <= width
        assert (row[h:] == PAD).all() and (row[:, w:] == PAD).all()


@given(sizes, sizes)
@settings(max_examples=200, deadline=None)
def test_fitted_sizes_touch_the_box(original: tuple[int, int], box: tuple[int, int]) -> None:
    height, width = fit_size(original, box)
    assert 1 <= height <= box[0] and 1 <= width <= box[1]
    assert height == box[0] or width == box[1]


@given(sizes, st.tuples(st.integers(32, 900), st.integers(32, 900)))
@settings(max_examples=200, deadline=None)
def test_rescaled_sizes_respect_both_edges(
    original: tuple[int, int], scale: tuple[int, int]
) -> None:
    size = rescaled_size(original, scale)
    assert max(size) <= max(scale)
    assert min(size) <= min(scale)
    assert max(size) == max(scale) or min(size) == min(scale)
