import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from deploykit.errors import MediaError
from deploykit.image_io import as_bgr, list_images, read_image, write_image


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".PNG"])
def test_lossless_round_trip(tmp_path: Path, noise: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"größe 車{suffix}"
    write_image(path, noise)
    image = read_image(path)
    np.testing.assert_array_equal(image, noise)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous and image.flags.writeable


def test_reads_grey_alpha_and_16_bit_files(tmp_path: Path, noise: np.ndarray) -> None:
    grey = noise[..., 0]
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.dstack([grey] * 3))
    alpha = np.dstack([noise, np.full((40, 50), 7, np.uint8)])
    cv2.imwrite(str(tmp_path / "alpha.png"), alpha)
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), noise)
    deep = np.arange(2000, dtype=np.uint16).reshape(40, 50) * 32
    for name in ("deep.png", "deep.tif"):
        cv2.imwrite(str(tmp_path / name), deep)
        high_byte = (deep >> 8).astype(np.uint8)
        np.testing.assert_array_equal(read_image(tmp_path / name), np.dstack([high_byte] * 3))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    upright = np.zeros((30, 60, 3), np.uint8)
    upright[:, 30:] = 255
    exif = Image.Exif()
    exif[0x112] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(upright).save(tmp_path / "turned.jpg", exif=exif.tobytes())
    image = read_image(tmp_path / "turned.jpg")
    assert image.shape == (60, 30, 3)
    assert image[5].max() < 10 and image[-5].min() > 245


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.jpg", b"not an image at all", "cannot be decoded"),
        ("empty.jpg", b"", r"is empty \(0 bytes\)"),
        ("truncated.jpg", "half of .jpg", "cannot be decoded"),
        ("truncated.png", "half of .png", "cannot be decoded"),
    ],
)
def test_broken_files_are_named(
    tmp_path: Path, noise: np.ndarray, name: str, content: bytes | str, message: str
) -> None:
    if isinstance(content, str):
        data = cv2.imencode(content.split()[-1], noise)[1].tobytes()
        content = data[: len(data) // 2]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(MediaError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_directories(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"image file not found: .*nothing\.jpg"):
        read_image(tmp_path / "nothing.jpg")
    with pytest.raises(MediaError, match="got a directory"):
        read_image(tmp_path)
    for name in ("zero\0byte.png", "x" * 5000 + ".png"):
        with pytest.raises(MediaError, match="cannot read"):
            read_image(name)


def test_unreadable_files(tmp_path: Path, noise: np.ndarray) -> None:
    path = tmp_path / "locked.png"
    write_image(path, noise)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(MediaError, match="Permission denied"):
        read_image(path)


def test_three_channels_are_not_copied(noise: np.ndarray) -> None:
    assert as_bgr(noise) is noise
    view = noise[::2, ::-1]
    assert as_bgr(view) is view


def test_grey_and_alpha_arrays(noise: np.ndarray) -> None:
    grey = noise[..., 0]
    expected = np.dstack([grey] * 3)
    np.testing.assert_array_equal(as_bgr(grey), expected)
    np.testing.assert_array_equal(as_bgr(grey[..., None]), expected)
    np.testing.assert_array_equal(as_bgr(grey[:, ::-1]), expected[:, ::-1])
    alpha = np.dstack([noise, np.zeros((40, 50), np.uint8)])
    np.testing.assert_array_equal(as_bgr(alpha), noise)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 3), np.uint16), "sample type uint16; expected uint8"),
        (np.zeros((4, 5, 3), np.float32), "sample type float32"),
        (np.zeros((4, 5), bool), "sample type bool"),
        (np.zeros((4, 5, 2), np.uint8), r"shape \(4, 5, 2\)"),
        (np.zeros((1, 4, 5, 3), np.uint8), r"shape \(1, 4, 5, 3\)"),
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        (np.zeros((0, 5, 3), np.uint8), "has no pixels"),
        (np.zeros((4, 0), np.uint8), "has no pixels"),
        ("a string", "got str"),
        (None, "got NoneType"),
        (Image.new("I", (4, 5)), "mode 'I'"),
        (Image.new("F", (4, 5)), "mode 'F'"),
        (Image.new("RGB", (0, 5)), "has no pixels"),
    ],
)
def test_unsupported_images_are_refused(image: object, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        as_bgr(image)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK"])
def test_pil_images(noise: np.ndarray, mode: str) -> None:
    picture = Image.fromarray(noise).convert(mode)
    expected = np.asarray(picture.convert("RGB"))[..., ::-1]
    np.testing.assert_array_equal(as_bgr(picture), expected)


def test_truncated_pil_image(noise: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "png")
    picture = Image.open(io.BytesIO(buffer.getvalue()[:-2000]))
    with pytest.raises(MediaError, match="cannot be decoded by PIL"):
        as_bgr(picture)


def test_folders_are_listed_in_natural_order(tmp_path: Path) -> None:
    for name in ("f10.png", "f9.JPG", "f1.tiff", "notes.txt", ".hidden.png", "clip.mp4"):
        (tmp_path / name).touch()
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "a.png").touch()
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in list_images(tmp_path)] == ["f1.tiff", "f9.JPG", "f10.png"]
    assert [p.name for p in list_images(tmp_path, recursive=True)] == [
        "f1.tiff",
        "f9.JPG",
        "f10.png",
        "a.png",
    ]


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(MediaError, match="no images in"):
        list_images(tmp_path)
    with pytest.raises(MediaError, match="folder not found"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(MediaError, match="got a file"):
        list_images(tmp_path / "notes.txt")


def test_writing_to_an_unknown_format(tmp_path: Path, noise: np.ndarray) -> None:
    with pytest.raises(MediaError, match=r"cannot write .*image\.xyz"):
        write_image(tmp_path / "image.xyz", noise)
    assert list(tmp_path.iterdir()) == []


def test_writing_below_a_file(tmp_path: Path, noise: np.ndarray) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MediaError, match="cannot write"):
        write_image(tmp_path / "file" / "image.png", noise)
