"""``DetectionDataset``: what samplers, wrappers and the loader need of a data set."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from deploykit.errors import ConfigError, DatasetError, MediaError
from deploykit.training.data.report import AnnotationReport
from deploykit.training.data.sample import ImageRecord, Sample
from deploykit.training.data.transforms.transform import Pipeline

OnError = Literal["skip", "raise"]


class UnusableSampleError(Exception):
    """A sample that the configuration says to leave out; carries what was wrong with it.

    Args:
        problems: (kind, example) pairs for the report.
    """

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(example for _, example in problems))
        self.problems = problems


class DetectionDataset(ABC):
    """A data set of images with boxes, or a wrapper around others.

    ``fetch`` runs the pipeline; every random number it needs comes from the generator it is given.
    ``METAINFO`` holds the ``classes`` (and the ``palette``) of the data that the kind of data set
    was made for, for models and annotation files that name none.
    """

    METAINFO: ClassVar[Mapping[str, Any]] = {}
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def fetch(self, index: int, rng: np.random.Generator) -> Sample:
        """Return the sample at ``index`` after the pipeline.

        Args:
            index: 0 <= index < len(self).
            rng: The source of all randomness.

        Raises:
            DatasetError: No usable sample could be had, or a transform failed.
            MediaError: The image cannot be read and the configuration says to stop.
            UnusableSampleError: The sample is to be left out (``test_mode`` alone).
        """

    @abstractmethod
    def record(self, index: int) -> ImageRecord:
        """Return what the annotation file says about the image at ``index``."""

    @abstractmethod
    def set_pipeline(self, transforms: Sequence[Any]) -> None:
        """Replace the pipeline by another (config dicts or transforms)."""

    def skip_transforms(self, types: Sequence[str]) -> None:
        """Leave out transforms of these type names, where the data set can do that.

        Raises:
            ConfigError: It is not a ``MultiImageMixDataset``.
        """
        raise ConfigError(
            f"{type(self).__name__} cannot leave out transforms ({', '.join(types)}); only a "
            f"MultiImageMixDataset can"
        )

    @abstractmethod
    def begin_epoch(self, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Forget what transforms have cached and fill their caches anew.

        Args:
            rng: The source of all randomness; the caches become a function of it.

        Returns:
            (kind, example) of problems met on the way.
        """

    @abstractmethod
    def reports(self) -> list[AnnotationReport]:
        """Return the report of every annotation file underneath."""

    @property
    def keeps_caches(self) -> bool:
        """Whether a sample depends on those that were fetched before it in the same epoch."""
        return True

    @abstractmethod
    def full_init(self) -> None:
        """Load the annotations if that has not happened yet."""

    def image_size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of the image at ``index`` as annotated, in pixels."""
        record = self.record(index)
        return record.height, record.width

    def labels_of(self, index: int) -> set[int]:
        """Return the class indices that occur in the image at ``index``."""
        return set(self.record(index).labels.tolist())

    def __getitem__(self, index: int) -> Sample:
        """Return ``fetch(index)`` with a generator that depends on the index alone."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        return self.fetch(index, np.random.default_rng(index))


class PipelineDataset(DetectionDataset):
    """A data set that holds image records and a pipeline; subclasses read the records.

    Args:
        pipeline: Transforms, as config dicts or objects.
        test_mode: Whether the samples are for validation: each index gives its own image.
        serialize_data: Whether to keep the records pickled in one array, which forked workers share
            without copying.
        max_refetch: How many other images to draw when one gives no usable sample.
        on_error: ``"skip"`` counts and logs problems and goes on (another image is drawn in
            training, the image is left out in ``test_mode``); ``"raise"`` stops. By default
            problems are skipped, but in ``test_mode`` a missing or unreadable image stops.
    """

    def __init__(
        self,
        *,
        pipeline: Sequence[Any] = (),
        test_mode: bool = False,
        serialize_data: bool = True,
        max_refetch: int = 1000,
        on_error: OnError | None = None,
    ) -> None:
        if on_error not in (None, "skip", "raise"):
            raise ConfigError(f"on_error must be 'skip' or 'raise', got {on_error!r}")
        self.test_mode = test_mode
        self.serialize_data = serialize_data
        self.max_refetch = max_refetch
        self.on_error = on_error
        self.pipeline = Pipeline(pipeline)
        self._records: _RecordStore | None = None

    @abstractmethod
    def load_records(self) -> list[ImageRecord]:
        """Read, filter and return the image records."""

    def full_init(self) -> None:
        """Load the annotations if that has not happened yet."""
        if self._records is None:
            self._records = _RecordStore(self.load_records(), self.serialize_data)

    def _store(self) -> _RecordStore:
        self.full_init()
        assert self._records is not None  # noqa: S101 - for the type checker
        return self._records

    def __len__(self) -> int:
        return len(self._store())

    def record(self, index: int) -> ImageRecord:
        """Return what the annotation file says about the image at ``index``."""
        return self._store()[index]

    def image_size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of the image at ``index`` as annotated, in pixels."""
        height, width = self._store().sizes[index].tolist()
        return height, width

    def set_pipeline(self, transforms: Sequence[Any]) -> None:
        """Replace the pipeline by another (config dicts or transforms)."""
        self.pipeline = Pipeline(transforms)

    @property
    def keeps_caches(self) -> bool:
        """Whether a sample depends on those that were fetched before it in the same epoch."""
        return self.pipeline.stateful

    def begin_epoch(self, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Forget what transforms have cached and fill their caches anew."""
        self.pipeline.reset()
        problems: list[tuple[str, str]] = []
        if self.pipeline.stateful and len(self):
            self._prime(rng, problems)
        return problems

    def _prime(self, rng: np.random.Generator, problems: list[tuple[str, str]]) -> None:
        attempts = self.pipeline.samples_to_prime + self.max_refetch
        for _ in range(attempts):
            if not self.pipeline.samples_to_prime:
                return
            record = self.record(int(rng.integers(len(self))))
            try:
                problems += self.pipeline.prime(record, rng)
            except MediaError as error:
                if self.on_error == "raise":
                    raise
                problems.append(("unreadable_image", str(error)))
        raise DatasetError(
            f"no usable image among {attempts} drawn to fill the cache of "
            f"{self.pipeline.describe()}; check the images and the pipeline"
        )

    def fetch(self, index: int, rng: np.random.Generator) -> Sample:
        """Return the sample at ``index`` after the pipeline (see the base class).

        As in MMDetection, training draws another image when one cannot be read or the pipeline
        gives nothing (a crop without objects), up to ``max_refetch`` times.
        """
        problems: list[tuple[str, str]] = []
        for _ in range(1 if self.test_mode else 1 + self.max_refetch):
            record = self.record(index)
            sample = self._run(record, rng, problems)
            if sample is not None:
                return self._checked(sample, problems)
            if self.test_mode:
                break
            index = int(rng.integers(len(self)))
        if self.test_mode:
            if problems:
                raise UnusableSampleError(problems)
            raise DatasetError(
                f"{record.path}: the test pipeline {self.pipeline.describe()} gave no sample; "
                f"leave random crops and filters to the training pipeline"
            )
        last = f"; the last problem: {problems[-1][1]}" if problems else ""
        raise DatasetError(
            f"no usable sample after drawing {self.max_refetch} other images: the images cannot be "
            f"read or the pipeline {self.pipeline.describe()} gives nothing{last}"
        )

    def _run(
        self, record: ImageRecord, rng: np.random.Generator, problems: list[tuple[str, str]]
    ) -> Sample | None:
        try:
            return self.pipeline(record, rng)
        except MediaError as error:
            if self.on_error == "raise" or (self.test_mode and self.on_error is None):
                raise
            problems.append(("unreadable_image", str(error)))
            return None

    def _checked(self, sample: Sample, problems: list[tuple[str, str]]) -> Sample:
        """Note a wrong size in the annotation file, and stop if problems are to stop us."""
        record = sample.record
        actual = sample.meta.get("ori_shape")
        if actual is not None and tuple(actual) != (record.height, record.width):
            sample.problems.append(
                (
                    "wrong_image_size",
                    f"{record.path}: annotated as {record.width} x {record.height}, "
                    f"is {actual[1]} x {actual[0]}",
                )
            )
        if sample.problems and self.on_error == "raise":
            kind, example = sample.problems[0]
            raise DatasetError(f"{kind}: {example}")
        sample.problems[:0] = problems
        return sample


class _RecordStore:
    """Image records, pickled into one array if wanted (a fork then copies nothing)."""

    def __init__(self, records: list[ImageRecord], serialize: bool) -> None:
        self.sizes = np.array(
            [(record.height, record.width) for record in records], np.int32
        ).reshape(-1, 2)
        self._records: list[ImageRecord] = []
        if not serialize:
            self._records = records
            return
        blobs = [np.frombuffer(pickle.dumps(record, protocol=5), np.uint8) for record in records]
        self._ends = np.cumsum([len(blob) for blob in blobs], dtype=np.int64)
        self._bytes: npt.NDArray[np.uint8] = np.concatenate(blobs) if blobs else np.zeros(0, "u1")

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> ImageRecord:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        if self._records:
            return self._records[index]
        start = int(self._ends[index - 1]) if index else 0
        blob = self._bytes[start : int(self._ends[index])]
        record: ImageRecord = pickle.loads(blob.data)  # noqa: S301 - written above
        return record


def class_names(metainfo: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """Return the class names that a config's ``metainfo`` asks for, or ``None``.

    Raises:
        ConfigError: They are not a list of distinct names.
    """
    if metainfo is None or metainfo.get("classes") is None:
        return None
    classes = metainfo["classes"]
    if isinstance(classes, str):
        if not Path(classes).is_file():
            raise ConfigError(
                f"metainfo['classes'] must be a tuple of names or a file with one name per line, "
                f"got the string '{classes}'; of a single class it is ('{classes}',) with a comma"
            )
        lines = Path(classes).read_text(encoding="utf-8").splitlines()
        classes = [line.strip() for line in lines if line.strip()]
    if not isinstance(classes, Sequence) or not all(isinstance(name, str) for name in classes):
        raise ConfigError(f"metainfo['classes'] must be a tuple of names, got {classes!r:.100}")
    repeated = sorted({name for name in classes if list(classes).count(name) > 1})
    if not classes or repeated:
        problem = f"names {', '.join(repeated)} more than once" if repeated else "is empty"
        raise ConfigError(f"metainfo['classes'] {problem}")
    return tuple(classes)
