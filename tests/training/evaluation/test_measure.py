"""From model outputs and detectors to metrics."""

import json

import numpy as np
import pytest
import torch

from deploykit.detections import Detections
from deploykit.errors import ConfigError, DatasetError
from deploykit.training.data import build_dataset
from deploykit.training.evaluation import (
    GroundTruth,
    build_metrics,
    detections_of_batch,
    evaluate_detector,
)
from deploykit.training.evaluation.coco_scores import class_table
from deploykit.training.structures import Batch

SIZES = [(40, 60), (50, 50), (60, 40), (30, 80), (44, 44)]


@pytest.fixture
def folder(tmp_path):
    """A data set without pixels: five empty files, two boxes each."""
    (tmp_path / "img").mkdir()
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 4, "name": "a"}, {"id": 2, "name": "b"}],
    }
    for index, (height, width) in enumerate(SIZES):
        (tmp_path / "img" / f"{index}.png").touch()
        content["images"].append(
            {"id": 10 - index, "file_name": f"{index}.png", "width": width, "height": height}
        )
        for offset, category in ((1, 4), (15, 2)):
            box = [offset, offset, 12, 10 + index]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": 10 - index,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    (tmp_path / "ann.json").write_text(json.dumps(content))
    return tmp_path


def dataset_of(folder, **options):
    return build_dataset(
        {
            "type": "CocoDataset",
            "ann_file": "ann.json",
            "data_root": str(folder),
            "data_prefix": {"img": "img"},
            "test_mode": True,
        }
        | options
    )


class Oracle:
    """A detector that knows the annotations and leaves some out."""

    def __init__(self, dataset, missing=()):
        self.records = {dataset.record(i).path: dataset.record(i) for i in range(len(dataset))}
        self.classes = dataset.classes
        self.missing = missing
        self.calls = []

    def __call__(self, paths):
        self.calls.append(len(paths))
        found = []
        for path in paths:
            record = self.records[path]
            kept = [i for i in range(len(record.boxes)) if (record.image_id, i) not in self.missing]
            found.append(
                Detections(
                    record.boxes[kept],
                    np.full(len(kept), 0.01),
                    record.labels[kept],
                    class_names=self.classes,
                    image_size=(record.height, record.width),
                )
            )
        return found


def test_a_perfect_detector_scores_one_whatever_its_scores_are(folder):
    dataset = dataset_of(folder)
    (metric,) = build_metrics({"type": "CocoMetric"}, dataset)
    done = []
    oracle = Oracle(dataset)
    numbers = evaluate_detector(
        oracle, dataset, metric, batch_size=2, progress=lambda *state: done.append(state)
    )
    assert numbers["coco/bbox_mAP"] == pytest.approx(1)
    assert oracle.calls == [2, 2, 1]
    assert done == [(2, 5), (4, 5), (5, 5)]
    assert evaluate_detector(oracle, dataset, [metric], progress=True) == numbers


def test_misses_lower_the_score_of_their_class(folder):
    dataset = dataset_of(folder)
    (metric,) = build_metrics({"type": "CocoMetric", "classwise": True}, dataset)
    detector = Oracle(dataset, missing={(10, 0), (9, 0)})
    numbers = evaluate_detector(detector, dataset, metric)
    assert numbers["coco/b_precision"] == pytest.approx(1)
    assert 0.5 < numbers["coco/a_precision"] < 0.7  # three of five found, none wrong
    table = class_table(metric.class_scores["bbox"], title="per class")
    assert [column.header for column in table.columns][:3] == ["class", "objects", "mAP"]
    assert table.row_count == 2


def test_the_file_of_the_metric_and_of_the_data_set_give_the_same(folder):
    dataset = dataset_of(folder, indices=3)
    config = {"type": "CocoMetric", "ann_file": str(folder / "ann.json")}
    metrics = [*build_metrics([config], dataset), *build_metrics({"type": "CocoMetric"}, dataset)]
    detector = Oracle(dataset, missing={(10, 0)})
    numbers = [evaluate_detector(detector, dataset, metric) for metric in metrics]
    assert numbers[0] == numbers[1]
    assert metrics[0].ground_truth.image_ids == [8, 9, 10]


def test_wrapped_data_sets_are_measured_on_their_records(folder):
    dataset = dataset_of(folder)
    wrapped = build_dataset({"type": "ConcatDataset", "datasets": [dataset]})
    detector = Oracle(dataset, missing={(10, 0)})
    plain = evaluate_detector(detector, dataset, build_metrics({"type": "CocoMetric"}, dataset))
    whole = evaluate_detector(detector, wrapped, build_metrics({"type": "CocoMetric"}, wrapped))
    assert whole == plain
    twice = build_dataset({"type": "RepeatDataset", "dataset": dataset, "times": 2})
    with pytest.raises(DatasetError, match="occurs twice"):
        GroundTruth.from_dataset(twice)


def test_another_file_than_the_data_set_s_is_noticed(folder, tmp_path):
    dataset = dataset_of(folder)
    content = json.loads((folder / "ann.json").read_text())
    content["images"] = content["images"][1:]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="ann_file must be that of the data set"):
        build_metrics({"type": "CocoMetric", "ann_file": str(other)}, dataset)


def test_senseless_evaluators_are_refused(folder):
    dataset = dataset_of(folder)
    for config in ([], None):
        with pytest.raises(ConfigError, match="at least one metric"):
            build_metrics(config, dataset)
    with pytest.raises(ConfigError, match="unknown metric"):
        build_metrics({"type": "VOCMetric"}, dataset)


def test_outputs_of_a_model_are_mapped_back_to_the_image():
    boxes = torch.tensor([[[10.0, 20, 30, 40], [0, 0, 0, 0]], [[1, 2, 3, 4], [5, 6, 7, 8]]])
    outputs = (
        boxes,
        torch.tensor([[0.0, 0], [0.9, 0.2]]),
        torch.tensor([[1, -1], [0, 1]], dtype=torch.int32),
        torch.tensor([1, 2], dtype=torch.int32),
    )
    metas = [
        {"scale_factor": (0.5, 0.25), "ori_shape": (160, 100)},
        {"scale_factor": (1.0, 1.0), "ori_shape": (32, 32)},
    ]
    batch = Batch(torch.zeros(2, 1, 1, 3), torch.zeros(2, 2), [], metas)
    first, second = detections_of_batch(outputs, batch, ("a", "b"))
    assert first.boxes.tolist() == [[20, 80, 60, 160]]
    assert first.scores.tolist() == [0]  # every score counts
    assert first.labels.tolist() == [1]
    assert first.image_size == (160, 100)
    assert len(second) == 2
