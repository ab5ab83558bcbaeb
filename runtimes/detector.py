"""``Detector``: any artefact, one interface."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from deploykit.detections import Detections
from deploykit.errors import BackendError, UsageError
from deploykit.image_io import BgrImage
from deploykit.runtimes.backend import Backend, open_backend
from deploykit.runtimes.preprocess import Prepared, Preprocessor
from deploykit.runtimes.proposals import with_proposals
from deploykit.runtimes.sources import images_of, is_single_image, load_image
from deploykit.runtimes.stream import in_batches, stream_detections
from deploykit.spec import ModelSpec

# Larger batches gain nothing on a CPU and little on a GPU, but take memory in proportion.
_DEFAULT_LARGEST_BATCH = 8


class Detector:
    """Finds objects in images with any artefact that deploykit writes.

    Safe to call from several threads.

    Args:
        path: A checkpoint (``.pth``), an exported model (``.onnx``, ``.engine``), or the name of a
            published model (``"rtmdet_tiny_8xb32-300e_coco"``), whose weights are downloaded once.
            ``None`` when ``backend`` is an object.
        backend: Name of the engine if the file's suffix does not tell, or an object that implements
            ``Backend``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        score_threshold: Lowest score that is kept; the artefact's own by default.
        input_size: (height, width) of the network input that images are fitted into, for artefacts
            that take several sizes.
        num_threads: Threads that one inference uses on the CPU.
        batch_size: Most images that run at once when a list is given; by default the artefact's
            largest batch, up to 8.

    Raises:
        UsageError: Arguments that do not fit the artefact.
        BackendError: The file is missing or damaged, or the engine refuses it or the device.
        SpecError: The artefact carries no usable model spec.

    Example:
        A detector is used like this::

            from deploykit import Detector

            with Detector("model.onnx") as detector:
                result = detector("street.jpg")
                results = detector([frame_a, frame_b])
                for frame, result in detector.stream("video.mp4"):
                    show(result.draw(frame))
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        backend: str | Backend | None = None,
        device: str = "auto",
        score_threshold: float | None = None,
        input_size: tuple[int, int] | None = None,
        num_threads: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        if backend is None or isinstance(backend, str):
            if path is None:
                raise UsageError("Detector needs the path of a model file")
            self.backend = open_backend(path, backend, device, num_threads)
        else:
            self.backend = backend
        self.path = None if path is None else Path(path)
        try:
            self._configure(score_threshold, input_size, batch_size)
        except BaseException:
            self.backend.close()
            raise

    def _configure(
        self,
        score_threshold: float | None,
        input_size: tuple[int, int] | None,
        batch_size: int | None,
    ) -> None:
        spec = self.spec
        threshold = spec.score_threshold if score_threshold is None else float(score_threshold)
        if not 0 <= threshold <= 1:
            raise UsageError(f"score_threshold must be within 0..1, got {threshold}")
        self.score_threshold = threshold
        self._prepare = Preprocessor(spec.input, input_size)
        allowed = spec.input.batch
        default = max(allowed.min, min(allowed.max, _DEFAULT_LARGEST_BATCH))
        self.batch_size = default if batch_size is None else batch_size
        if not 1 <= self.batch_size <= allowed.max:
            raise UsageError(
                f"the model takes batches of up to {allowed.max}, got batch_size={batch_size}"
            )

    @property
    def spec(self) -> ModelSpec:
        """What the artefact says about itself."""
        return self.backend.spec

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of every class; a label indexes it."""
        return self.spec.classes

    # What a path gives depends on what it names (an image or a directory), hence Any.
    @overload
    def __call__(self, source: str | os.PathLike[str], proposals: Any = None) -> Any: ...

    @overload
    def __call__(self, source: npt.NDArray[Any], proposals: Any = None) -> Detections: ...

    @overload
    def __call__(
        self, source: Sequence[Any], proposals: Sequence[Any] | None = None
    ) -> list[Detections]: ...

    @overload
    def __call__(self, source: Any, proposals: Any = None) -> Any: ...

    def __call__(self, source: Any, proposals: Any = None) -> Detections | list[Detections]:
        """Detect objects in one image or in several.

        Args:
            source: One image (path, BGR uint8 array, PIL image), or several: a list or tuple of
                those, a directory, or a glob pattern (files in natural order).
            proposals: For models that take them (Fast R-CNN): boxes [N, 4] or, with scores, [N, 5]
                in pixels of the image, or ``Detections``; a list of those for several images.
                Of more than the model takes, the best stay.

        Returns:
            ``Detections`` of one image; a list of them, in order, for several.

        Raises:
            MediaError: An image is missing, damaged or of an unsupported kind.
            UsageError: A video or camera, which ``stream`` reads; or proposals that do not fit the
                model or the images.
            BackendError: The engine failed.
        """
        if is_single_image(source):
            given = None if proposals is None else [proposals]
            return self._detect([load_image(source)], given)[0]
        results: list[Detections] = []
        for batch in in_batches(map(load_image, images_of(source)), self.batch_size):
            done = len(results)
            given = None if proposals is None else proposals[done : done + len(batch)]
            results += self._detect(batch, given)
        if proposals is not None and len(proposals) != len(results):
            raise UsageError(f"proposals of {len(proposals)} images for {len(results)} images")
        return results

    def stream(self, source: Any, batch_size: int = 1) -> Iterator[tuple[BgrImage, Detections]]:
        """Detect objects in the frames of a video or in a series of images, as they are read.

        Args:
            source: A video file, the index of a camera, the URL of a stream, a directory, a glob
                pattern, a list or any other iterable of images.
            batch_size: Frames that run at once.

        Yields:
            (frame BGR uint8 [H, W, 3], detections) in order.

        Raises:
            MediaError: The source is missing or damaged.
            UsageError: The model takes no such batch, or it needs proposals.
            BackendError: The engine failed.
        """
        if self.spec.input.proposals:
            raise UsageError(
                f"{self.spec.architecture} needs the proposals of every image, which a stream does "
                f"not bring; call detector(images, proposals=...)"
            )
        if not 1 <= batch_size <= self.spec.input.batch.max:
            raise UsageError(
                f"the model takes batches of up to {self.spec.input.batch.max}, got "
                f"batch_size={batch_size}"
            )
        return stream_detections(self._detect, source, batch_size)

    def prepare(
        self, images: Sequence[BgrImage], proposals: Sequence[Any] | None = None
    ) -> Prepared:
        """First stage: resize, pad and stack images as the network takes them.

        Args:
            images: uint8 [H, W, 3], BGR, of any sizes; at most the artefact's largest batch.
            proposals: For each image, as in ``__call__``.

        Raises:
            UsageError: No image, or more than the artefact takes at once; or proposals are missing,
                not taken, or no boxes.
        """
        return with_proposals(
            self._prepare(images), proposals, spec=self.spec.input, model=self.spec.architecture
        )

    def finish(self, outputs: dict[str, npt.NDArray[Any]], prepared: Prepared) -> list[Detections]:
        """Last stage: the backend's outputs as detections in pixels of the original images.

        Args:
            outputs: What ``detector.backend.infer(*prepared.inputs)`` gave.
            prepared: The batch that it was given.

        Raises:
            BackendError: The outputs are not finite.
        """
        results = []
        for row, image_size in enumerate(prepared.original_sizes):
            count = int(outputs["num_dets"][row])
            boxes, scores = outputs["boxes"][row], outputs["scores"][row]
            if not (np.isfinite(scores[:count]).all() and np.isfinite(boxes[:count]).all()):
                raise BackendError(
                    f"{self!r} computed boxes or scores that are not finite; its weights or its "
                    f"precision ({self.spec.precision}) are at fault"
                )
            masks = outputs.get("masks")
            width_factor, height_factor = prepared.scale_factors[row].tolist()
            results.append(
                Detections.from_model_outputs(
                    boxes,
                    scores,
                    outputs["labels"][row],
                    count,
                    None if masks is None else masks[row],
                    scale_factor=(width_factor, height_factor),
                    image_size=image_size,
                    class_names=self.spec.classes,
                    score_threshold=self.score_threshold,
                    palette=self.spec.palette,
                )
            )
        return results

    def _detect(
        self, images: Sequence[BgrImage], proposals: Sequence[Any] | None = None
    ) -> list[Detections]:
        prepared = self.prepare(images, proposals)
        return self.finish(self.backend.infer(*prepared.inputs), prepared)

    def close(self) -> None:
        """Release the backend; using the detector afterwards raises ``BackendError``."""
        self.backend.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        inputs = self.spec.input
        name = "" if self.path is None else f"'{self.path}', "
        return (
            f"Detector({name}{self.spec.architecture}, {self.backend.name} on "
            f"{self.backend.device}, input {inputs.batch}x{inputs.height}x{inputs.width}, "
            f"{len(self.class_names)} classes)"
        )
