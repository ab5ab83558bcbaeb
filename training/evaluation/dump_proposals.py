"""``DumpProposals``: writes what a region proposal network finds, for Fast R-CNN to learn from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.detections import Detections
from deploykit.errors import ConfigError, DatasetError
from deploykit.proposals import WRITABLE, Boxes, as_table, image_key, write_proposals
from deploykit.training.data.coco import check_backend
from deploykit.training.data.dataset import DetectionDataset
from deploykit.training.evaluation.metric import Metric
from deploykit.training.registry import METRICS

logger = logging.getLogger(__name__)


@METRICS.register()
class DumpProposals(Metric):
    """Writes a proposal file instead of measuring; with the arguments of MMDetection's.

    Args:
        output_dir: Folder of the file; it is made.
        proposals_file: Name of the file: ``.pkl`` as MMDetection reads it, or ``.npz``.
        num_max_proposals: At most so many per image, the best by score; all by default.
        backend_args: Only local files are written.
        collect_device: Accepted for MMDetection's configs.
        prefix: Accepted for MMDetection's configs.
        file_client_args: Must be ``None``.

    Raises:
        ConfigError: Arguments that make no sense.
    """

    def __init__(
        self,
        output_dir: str = "",
        proposals_file: str = "proposals.pkl",
        num_max_proposals: int | None = None,
        file_client_args: Mapping[str, Any] | None = None,
        backend_args: Mapping[str, Any] | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        if Path(proposals_file).suffix.lower() not in WRITABLE:
            raise ConfigError(
                f"DumpProposals: proposals_file must end in {', '.join(WRITABLE)}, got "
                f"'{proposals_file}'"
            )
        if file_client_args is not None:
            raise ConfigError("DumpProposals: file_client_args is not supported; leave it out")
        check_backend(backend_args)
        self.path = Path(output_dir) / proposals_file
        self.num_max_proposals = num_max_proposals
        self._classes: tuple[str, ...] = ()
        self._names: dict[int | str, str] = {}
        self._tables: dict[int | str, Boxes] = {}

    def bind(self, dataset: DetectionDataset) -> None:
        """Take the names of the images, which are the keys of the file."""
        self._classes = dataset.classes
        records = [dataset.record(index) for index in range(len(dataset))]
        self._names = {record.image_id: image_key(record.path) for record in records}
        keys = set(self._names.values())
        if len(keys) < len(records):
            raise DatasetError(
                f"DumpProposals tells images by folder and name, but {len(records)} images have "
                f"only {len(keys)} different ones; write the parts of the data set separately"
            )
        self.reset()

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names of the data set; those of proposals play no part."""
        return self._classes

    def reset(self) -> None:
        """Forget all proposals."""
        self._tables = {}

    def add(self, image_id: int | str, detections: Detections) -> None:
        """Take the proposals of one image (see the base class)."""
        if image_id not in self._names:
            raise DatasetError(f"image {image_id} is not one of those that are evaluated")
        table = as_table(detections.boxes, detections.scores)
        self._tables[image_id] = table[: self.num_max_proposals]

    def collected(self) -> dict[int | str, Any]:
        """Return the proposals by image."""
        return dict(self._tables)

    def merge(self, collected: Mapping[int | str, Any]) -> None:
        """Take what another process collected; images that are known already are passed over."""
        self._tables = {**collected, **self._tables}

    def compute(self) -> dict[str, float]:
        """Write the file; there are no numbers.

        Raises:
            DatasetError: It cannot be written.
        """
        write_proposals(
            self.path, {self._names[image_id]: rows for image_id, rows in self._tables.items()}
        )
        counts = [len(rows) for rows in self._tables.values()]
        logger.info(
            "wrote %s: %d images with %.0f proposals on average",
            self.path,
            len(counts),
            np.mean(counts) if counts else 0,
        )
        return {}
