import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from deploykit import Detections, Detector
from deploykit.errors import BackendError, MediaError, SpecError, UsageError
from deploykit.runtimes.backend import Backend
from deploykit.spec import DimRange, ModelSpec

MakeImage = Callable[..., np.ndarray]
WriteOnnx = Callable[..., Path]
MakeSpec = Callable[..., ModelSpec]


class RecordingBackend:
    """Finds one object per image, at the top left, and remembers the batches."""

    name, device = "recording", "cpu"

    def __init__(self, spec: ModelSpec, value: float = 0.9) -> None:
        self.spec = spec
        self.value = value
        self.batches: list[tuple[int, ...]] = []
        self.closed = False

    def infer(self, images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
        assert images.dtype == np.uint8 and image_sizes.dtype == np.int32
        assert len(images) == len(image_sizes)
        self.batches.append(images.shape)
        rows = len(images)
        boxes = np.zeros((rows, 2, 4), np.float32)
        boxes[:, 0] = (0, 0, 16, 8)
        scores = np.zeros((rows, 2), np.float32)
        scores[:, 0] = self.value
        labels = np.tile(np.array([1, -1], np.int32), (rows, 1))
        return {
            "boxes": boxes,
            "scores": scores,
            "labels": labels,
            "num_dets": np.ones(rows, np.int32),
        }

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def detector(onnx_path: Path) -> Detector:
    return Detector(onnx_path, score_threshold=0.0)


def test_detects_in_an_image(onnx_path: Path, plain_image: MakeImage) -> None:
    detector = Detector(onnx_path)
    found = detector(plain_image(200, 100, 50, height=128, width=128))
    assert isinstance(found, Detections)
    # The second box has score 50 / 512, below the 0.2 of the spec.
    assert found.labels.tolist() == [0]
    np.testing.assert_allclose(found.boxes, [[0, 0, 400, 200]], rtol=1e-5)
    np.testing.assert_allclose(found.scores, [200 / 255], rtol=1e-5)
    assert found.class_names == detector.class_names == ("cat", "dog", "bird")
    assert found.image_size == (128, 128)
    assert found.palette == detector.spec.palette


def test_thresholds(onnx_path: Path, plain_image: MakeImage) -> None:
    image = plain_image(51, 0, 255)
    assert Detector(onnx_path)(image).labels.tolist() == [0, 1]
    assert Detector(onnx_path, score_threshold=0.4)(image).labels.tolist() == [1]
    assert Detector(onnx_path, score_threshold=0)(image * 0).labels.tolist() == [0, 1]
    for threshold in (-0.1, 1.1):
        with pytest.raises(UsageError, match=r"score_threshold must be within 0\.\.1"):
            Detector(onnx_path, score_threshold=threshold)


def test_every_kind_of_image_gives_the_same(
    detector: Detector, noise_image: MakeImage, tmp_path: Path
) -> None:
    image = noise_image(0, 50, 70)
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), image)
    expected = detector(image)
    assert len(expected) == 2
    with_alpha = np.dstack([image, np.zeros((50, 70), np.uint8)])
    for same in (path, str(path), Image.fromarray(image[..., ::-1]), with_alpha):
        assert detector(same) == expected
    grey = image[..., :1]
    assert detector(grey) == detector(grey[..., 0]) == detector(np.dstack([grey] * 3))


def test_several_images(detector: Detector, noise_image: MakeImage) -> None:
    images = [noise_image(seed, 40 + seed, 60) for seed in range(5)]
    expected = [detector(image) for image in images]
    assert detector(images) == expected
    assert detector(tuple(images)) == expected
    assert detector(image for image in images) == expected
    assert detector([images[0], Image.fromarray(images[1][..., ::-1])]) == expected[:2]
    assert detector([]) == []


def test_folders_and_patterns(detector: Detector, image_folder: Path) -> None:
    results = detector(image_folder)
    assert len(results) == 12
    # Natural order: redness rises with the number in the name.
    assert np.diff([found.scores[0] for found in results]).min() > 0
    assert detector(str(image_folder) + "/") == results
    assert detector(str(image_folder / "frame1*.png")) == [results[1], *results[10:]]
    assert detector(image_folder / "frame?.png") == results[:10]
    assert detector(str(image_folder.parent / "**" / "*.png")) == results


def test_a_file_name_with_brackets_is_no_pattern(
    detector: Detector, noise_image: MakeImage, tmp_path: Path
) -> None:
    path = tmp_path / "a[1].png"
    cv2.imwrite(str(path), noise_image(0, 9, 9))
    assert isinstance(detector(path), Detections)


@pytest.mark.parametrize(
    "kind", ["truncated", "text", "zero_bytes", "header_only", "missing", "directory"]
)
def test_faulty_images_are_named(
    detector: Detector, faulty_files: dict[str, Path], kind: str
) -> None:
    path = faulty_files[kind]
    with pytest.raises(MediaError, match=path.name) as caught:
        detector(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(MediaError, match=path.name):
        detector([path])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), "sample type float32"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        ([np.zeros((4, 5, 3), np.uint16)], "sample type uint16"),
        ([None], "got NoneType"),
        ("no/such/*.png", "no file matches the pattern"),
        ("no/such/folder/", "not found"),
    ],
)
def test_unusable_images(detector: Detector, source: Any, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        detector(source)


@pytest.mark.parametrize("source", ["clip.mp4", Path("clip.AVI"), 0, "rtsp://host/stream"])
def test_videos_point_to_stream(detector: Detector, source: Any) -> None:
    with pytest.raises(UsageError, match=r"detector\.stream"):
        detector(source)


@pytest.mark.parametrize("source", [None, 1.5, {"a": 1}, b"bytes"])
def test_things_that_are_no_images(detector: Detector, source: Any) -> None:
    with pytest.raises(UsageError, match="cannot detect in a"):
        detector(source)


@pytest.mark.parametrize(
    ("count", "batches"), [(1, [4]), (3, [4]), (4, [4]), (6, [4, 4]), (9, [4, 4, 4])]
)
def test_static_batches_are_filled_and_split(
    spec: MakeSpec, noise_image: MakeImage, count: int, batches: list[int]
) -> None:
    backend = RecordingBackend(spec(batch=DimRange.fixed(4)))
    results = Detector(None, backend=backend)([noise_image(0, 32, 32)] * count)
    assert len(results) == count
    assert [shape[0] for shape in backend.batches] == batches


def test_a_static_batch_gives_the_same_as_single_images(
    write_onnx: WriteOnnx, noise_image: MakeImage
) -> None:
    images = [noise_image(seed, 30 + seed, 64) for seed in range(6)]
    single = Detector(write_onnx("one.onnx"), score_threshold=0)
    static = Detector(write_onnx("four.onnx", batch=DimRange.fixed(4)), score_threshold=0)
    for image, found in zip(images, static(images), strict=True):
        expected = single(image)
        np.testing.assert_allclose(found.boxes, expected.boxes, rtol=1e-5)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)


@pytest.mark.parametrize(
    ("batch_size", "batches"), [(None, [8, 2]), (1, [1] * 10), (3, [3, 3, 3, 1]), (16, [10])]
)
def test_lists_run_in_batches(
    spec: MakeSpec, noise_image: MakeImage, batch_size: int | None, batches: list[int]
) -> None:
    backend = RecordingBackend(spec())
    Detector(None, backend=backend, batch_size=batch_size)([noise_image(0, 32, 32)] * 10)
    assert [shape[0] for shape in backend.batches] == batches


@pytest.mark.parametrize("batch_size", [0, 17])
def test_batch_sizes_out_of_range(spec: MakeSpec, batch_size: int) -> None:
    backend = RecordingBackend(spec())
    with pytest.raises(UsageError, match="batches of up to 16"):
        Detector(None, backend=backend, batch_size=batch_size)
    assert backend.closed
    with pytest.raises(UsageError, match="batches of up to 16"):
        Detector(None, backend=RecordingBackend(spec())).stream([], batch_size=batch_size)


def test_an_input_size(spec: MakeSpec, noise_image: MakeImage) -> None:
    sides = DimRange(32, 64, 256)
    backend = RecordingBackend(spec(height=sides, width=sides))
    found = Detector(None, backend=backend, input_size=(96, 128))(noise_image(0, 50, 100))
    assert backend.batches == [(1, 96, 128, 3)]
    # 50x100 is fitted to 64x128: boxes go back by a factor of 1.28.
    np.testing.assert_allclose(found.boxes, [[0, 0, 12.5, 6.25]])
    with pytest.raises(UsageError, match="multiple of 32"):
        Detector(None, backend=RecordingBackend(backend.spec), input_size=(100, 128))


def test_stages_are_the_whole(detector: Detector, noise_image: MakeImage) -> None:
    images = [noise_image(seed, 50, 60 + seed) for seed in range(3)]
    prepared = detector.prepare(images)
    outputs = detector.backend.infer(prepared.images, prepared.image_sizes)
    assert detector.finish(outputs, prepared) == detector(images)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_an_error(
    spec: MakeSpec, noise_image: MakeImage, value: float
) -> None:
    detector = Detector(None, backend=RecordingBackend(spec(), value))
    with pytest.raises(BackendError, match=r"not finite; .*fp32"):
        detector(noise_image(0, 8, 8))


def test_threads_get_the_results_of_a_serial_run(
    detector: Detector, noise_image: MakeImage
) -> None:
    images = [noise_image(seed, 40 + seed, 60) for seed in range(40)]
    serial = [detector(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(detector, images)) == serial


def test_close(onnx_path: Path, noise_image: MakeImage) -> None:
    image = noise_image(0, 8, 8)
    with Detector(onnx_path) as detector:
        detector(image)
    with pytest.raises(BackendError, match="is closed"):
        detector(image)
    detector.close()


def test_own_backends(spec: MakeSpec, noise_image: MakeImage) -> None:
    backend = RecordingBackend(spec())
    assert isinstance(backend, Backend)
    found = Detector("anything.bin", backend=backend)(noise_image(0, 64, 64))
    assert (found.labels.tolist(), found.boxes.tolist()) == ([1], [[0, 0, 16, 8]])
    with pytest.raises(UsageError, match="needs the path"):
        Detector(None)


def test_errors_of_the_artefact(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="deploykit convert"):
        Detector(write_onnx(with_spec=False))
    with pytest.raises(BackendError, match="missing"):
        Detector(tmp_path / "nothing.onnx")


def test_repr(onnx_path: Path) -> None:
    assert repr(Detector(onnx_path)) == (
        f"Detector('{onnx_path}', MeanColour, onnxruntime on cpu, input 1:1:16x64x64, 3 classes)"
    )


def test_detecting_with_onnx_imports_no_torch(onnx_path: Path) -> None:
    code = (
        "import sys, numpy, deploykit\n"
        "assert not {'torch', 'onnxruntime', 'onnx', 'cv2'} & set(sys.modules)\n"
        f"detector = deploykit.Detector({str(onnx_path)!r})\n"
        "image = numpy.full((50, 60, 3), 200, numpy.uint8)\n"
        "found = detector([image, image])[0]\n"
        "assert len(found) == 2\n"
        "found.draw(image), found.to_json(), found.to_coco(1)\n"
        "for frame, found in detector.stream([image]): pass\n"
        "print([name for name in ('torch', 'torchvision', 'onnx') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
