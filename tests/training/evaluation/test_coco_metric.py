"""``CocoMetric`` against pycocotools, and what it does at the edges."""

import contextlib
import io
import json
import logging

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from deploykit.detections import Detections
from deploykit.errors import ConfigError, DatasetError
from deploykit.mask_rle import encode_mask
from deploykit.training.evaluation import CocoMetric, GroundTruth

CLASSES = ("cat", "dog", "owl")
CATEGORY_IDS = (3, 7, 20)
HEIGHT, WIDTH = 240, 320
ITEMS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")


def ellipse(box):
    x1, y1, x2, y2 = box
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
    radius_x, radius_y = max((x2 - x1) / 2, 0.5), max((y2 - y1) / 2, 0.5)
    return ((columns - center_x) / radius_x) ** 2 + ((rows - center_y) / radius_y) ** 2 <= 1


def random_box(rng):
    width, height = rng.choice([8, 20, 60, 110, 180], 2) * rng.uniform(0.7, 1.3, 2)
    x, y = rng.uniform(-5, WIDTH - 20), rng.uniform(-5, HEIGHT - 20)
    return [x, y, min(x + width, WIDTH), min(y + height, HEIGHT)]


def scene(seed, images=12, with_masks=False):
    """Ground truth with crowds, gaps and small areas; detections with ties and misses."""
    rng = np.random.default_rng(seed)
    coco = {
        "images": [
            {"id": 5 * i + 2, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT}
            for i in range(images)
        ],
        "annotations": [],
        "categories": [{"id": i, "name": n} for i, n in zip(CATEGORY_IDS, CLASSES, strict=True)],
    }
    found = {}
    for image in coco["images"]:
        boxes, scores, labels = [], [], []
        for _ in range(int(rng.integers(0, 9))):
            box, label = random_box(rng), int(rng.integers(3))
            crowd = int(rng.random() < 0.15)
            annotation = {
                "id": len(coco["annotations"]) + 1,
                "image_id": image["id"],
                "category_id": CATEGORY_IDS[label],
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "area": (box[2] - box[0]) * (box[3] - box[1]) * float(rng.uniform(0.5, 1)),
                "iscrowd": crowd,
            }
            if with_masks:
                annotation["segmentation"] = encode_mask(ellipse(box))
            coco["annotations"].append(annotation)
            for _ in range(int(rng.integers(0, 4))):
                shifted = np.array(box) + rng.normal(0, 4, 4)
                shifted[2:] = np.maximum(shifted[2:], shifted[:2] + 1)
                boxes.append(shifted)
                # Few distinct values, so that many scores are equal within and across images.
                scores.append(round(float(rng.random()), 1))
                labels.append(label if rng.random() < 0.8 else int(rng.integers(3)))
        for _ in range(int(rng.integers(0, 4))):
            boxes.append(random_box(rng))
            scores.append(round(float(rng.random()), 1))
            labels.append(int(rng.integers(3)))
        masks = None
        if with_masks:
            masks = np.zeros((len(boxes), HEIGHT, WIDTH), bool)
            for mask, box in zip(masks, boxes, strict=True):
                mask[:] = ellipse(box)
        found[image["id"]] = Detections(
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(scores, np.float32),
            np.array(labels, np.int64),
            masks=masks,
            class_names=CLASSES,
            image_size=(HEIGHT, WIDTH),
        )
    return coco, found


def reference(coco, found, iou_type, max_detections, use_categories=True):
    """The same evaluation by pycocotools, as MMDetection calls it."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(coco))
        truth.createIndex()
        rows = [
            row for image_id, each in found.items() for row in each.to_coco(image_id, CATEGORY_IDS)
        ]
        for row in rows:
            if iou_type == "segm":
                row.pop("bbox")
        evaluation = COCOeval(truth, truth.loadRes(rows), iou_type)
        evaluation.params.catIds = list(CATEGORY_IDS)
        evaluation.params.maxDets = list(max_detections)
        evaluation.params.useCats = int(use_categories)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def bound(metric, coco, tmp_path, image_ids=None):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(coco))
    metric.bind_ground_truth(GroundTruth.from_file(str(path), CLASSES, image_ids))
    return metric


def filled(metric, found):
    for image_id, detections in found.items():
        metric.add(image_id, detections)
    return metric


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("proposal_nums", [(100, 300, 1000), (100, 1, 10)])
def test_boxes_equal_pycocotools(seed, proposal_nums, tmp_path):
    coco, found = scene(seed)
    metric = filled(bound(CocoMetric(proposal_nums=proposal_nums), coco, tmp_path), found)
    numbers = metric.compute()
    expected = reference(coco, found, "bbox", proposal_nums).stats[:6]
    assert list(numbers) == [f"coco/bbox_{item}" for item in ITEMS]
    assert np.allclose(list(numbers.values()), expected, atol=1e-12)
    assert 0.05 < expected[0] < 0.9  # the scene is neither trivial nor hopeless


def test_masks_equal_pycocotools(tmp_path):
    coco, found = scene(7, images=6, with_masks=True)
    metric = filled(bound(CocoMetric(metric=["bbox", "segm"]), coco, tmp_path), found)
    numbers = metric.compute()
    for kind in ("bbox", "segm"):
        expected = reference(coco, found, kind, (100, 300, 1000)).stats[:6]
        assert np.allclose([numbers[f"coco/{kind}_{i}"] for i in ITEMS], expected, atol=1e-12)
    assert numbers["coco/segm_mAP_s"] != numbers["coco/bbox_mAP_s"]


def test_polygons_equal_pycocotools(tmp_path):
    coco, found = scene(8, images=6, with_masks=True)
    for annotation in coco["annotations"]:
        x, y, w, h = annotation["bbox"]
        triangle = [x, y, x + w, y + h / 3, x + w / 4, y + h]
        if not annotation["iscrowd"]:
            annotation["segmentation"] = [triangle]
    metric = filled(bound(CocoMetric(metric="segm"), coco, tmp_path), found)
    expected = reference(coco, found, "segm", (100, 300, 1000)).stats[:6]
    assert np.allclose(list(metric.compute().values()), expected, atol=1e-12)


def test_proposals_equal_pycocotools(tmp_path):
    coco, found = scene(9)
    metric = CocoMetric(metric="proposal", proposal_nums=(1, 10, 100))
    numbers = filled(bound(metric, coco, tmp_path), found).compute()
    expected = reference(coco, found, "bbox", (1, 10, 100), use_categories=False).stats[6:12]
    names = ["AR@1", "AR@10", "AR@100", "AR_s@100", "AR_m@100", "AR_l@100"]
    assert list(numbers) == [f"coco/{name}" for name in names]
    assert np.allclose(list(numbers.values()), expected, atol=1e-12)


def test_proposals_need_no_classes_of_the_data_set(tmp_path):
    coco, found = scene(9)
    proposals = {
        image: Detections(
            detections.boxes,
            detections.scores,
            np.zeros(len(detections), np.int64),
            class_names=("object",),
            image_size=detections.image_size,
        )
        for image, detections in found.items()
    }
    numbers = [
        filled(bound(CocoMetric(metric="proposal"), coco, tmp_path), each).compute()
        for each in (found, proposals)
    ]
    # Boxes of equal scores are looked at by class, which proposals have not.
    assert numbers[0] == pytest.approx(numbers[1], abs=0.01)
    with pytest.raises(DatasetError, match="1 classes"):
        filled(bound(CocoMetric(metric=["bbox", "proposal"]), coco, tmp_path), proposals)


def test_classwise_equals_pycocotools_class_by_class(tmp_path):
    coco, found = scene(10)
    metric = filled(bound(CocoMetric(classwise=True), coco, tmp_path), found)
    numbers = metric.compute()
    precision = reference(coco, found, "bbox", (100, 300, 1000)).eval["precision"]
    for index, (name, scores) in enumerate(zip(CLASSES, metric.class_scores["bbox"], strict=True)):
        assert scores.name == name
        for item, table in (
            ("mAP", precision[:, :, index, 0, -1]),
            ("mAP_50", precision[0, :, index, 0, -1]),
            ("mAP_75", precision[5, :, index, 0, -1]),
            ("mAP_s", precision[:, :, index, 1, -1]),
        ):
            defined = table[table > -1]
            assert getattr(scores, item) == pytest.approx(defined.mean() if defined.size else -1)
        assert numbers[f"coco/{name}_precision"] == scores.mAP
        own = [a for a in coco["annotations"] if a["category_id"] == CATEGORY_IDS[index]]
        assert scores.objects == sum(not a["iscrowd"] for a in own)


def test_iou_thresholds_and_items_are_chosen(tmp_path):
    coco, found = scene(11)
    metric = CocoMetric(iou_thrs=[0.5, 0.75], metric_items=["mAP_75", "mAP", "AR@100"])
    numbers = filled(bound(metric, coco, tmp_path), found).compute()
    evaluation = reference(coco, found, "bbox", (100, 300, 1000))
    precision = evaluation.eval["precision"][:, :, :, 0, 0]
    assert list(numbers) == ["coco/bbox_mAP_75", "coco/bbox_mAP", "coco/bbox_AR@100"]
    at = [precision[t][precision[t] > -1].mean() for t in (0, 5)]
    assert numbers["coco/bbox_mAP_75"] == pytest.approx(at[1])
    assert numbers["coco/bbox_mAP"] == pytest.approx(np.mean(at))


def test_ids_of_the_file_do_not_matter(tmp_path):
    """Annotation id 0, ids used twice and string image ids give the numbers of a clean file."""
    coco, found = scene(12)
    clean = filled(bound(CocoMetric(), coco, tmp_path), found).compute()
    for index, annotation in enumerate(coco["annotations"]):
        annotation["id"] = index // 2
        annotation["image_id"] = f"im{annotation['image_id']:04d}"
    for image in coco["images"]:
        image["id"] = f"im{image['id']:04d}"
    renamed = {f"im{image_id:04d}": each for image_id, each in found.items()}
    assert filled(bound(CocoMetric(), coco, tmp_path), renamed).compute() == clean


def test_only_the_images_of_the_data_set_count(tmp_path):
    coco, found = scene(13)
    half = [image["id"] for image in coco["images"][:6]]
    metric = bound(CocoMetric(), coco, tmp_path, half)
    numbers = filled(metric, {image_id: found[image_id] for image_id in half}).compute()
    part = dict(coco)
    part["images"] = coco["images"][:6]
    part["annotations"] = [a for a in coco["annotations"] if a["image_id"] in half]
    expected = reference(part, {i: found[i] for i in half}, "bbox", (100, 300, 1000)).stats[:6]
    assert np.allclose(list(numbers.values()), expected, atol=1e-12)


def test_missing_images_are_warned_of_and_count_as_missed(tmp_path, caplog):
    coco, found = scene(14)
    first = coco["annotations"][0]["image_id"]
    metric = filled(bound(CocoMetric(), coco, tmp_path), {first: found[first]})
    with caplog.at_level(logging.WARNING):
        numbers = metric.compute()
    assert "11 of 12 images were not evaluated" in caplog.text
    expected = reference(coco, {first: found[first]}, "bbox", (100, 300, 1000)).stats[:6]
    assert np.allclose(list(numbers.values()), expected, atol=1e-12)


def test_no_detections_give_zero_and_a_warning(tmp_path, caplog):
    coco, found = scene(15)
    empty = Detections.empty((HEIGHT, WIDTH), CLASSES)
    metric = filled(bound(CocoMetric(), coco, tmp_path), dict.fromkeys(found, empty))
    with caplog.at_level(logging.WARNING):
        numbers = metric.compute()
    assert "not a single detection" in caplog.text
    assert numbers["coco/bbox_mAP"] == 0


def test_no_ground_truth_gives_minus_one_and_a_warning(tmp_path, caplog):
    coco, found = scene(16)
    coco["annotations"] = []
    metric = filled(bound(CocoMetric(metric=["bbox", "proposal"]), coco, tmp_path), found)
    with caplog.at_level(logging.WARNING):
        numbers = metric.compute()
    assert "no ground truth" in caplog.text
    assert set(numbers.values()) == {-1}


def test_nothing_at_all_is_no_crash(tmp_path):
    coco, _ = scene(17)
    coco["annotations"] = []
    assert set(bound(CocoMetric(), coco, tmp_path).compute().values()) == {-1}


def test_compute_can_be_repeated_and_reset(tmp_path):
    coco, found = scene(18)
    metric = filled(bound(CocoMetric(), coco, tmp_path), found)
    first = metric.compute()
    assert metric.compute() == first
    metric.reset()
    assert filled(metric, found).compute() == first


def test_results_are_written_with_the_ids_of_the_file(tmp_path):
    coco, found = scene(19, images=4, with_masks=True)
    metric = CocoMetric(
        metric=["bbox", "segm"], format_only=True, outfile_prefix=str(tmp_path / "out" / "run")
    )
    assert filled(bound(metric, coco, tmp_path), found).compute() == {}
    rows = json.loads((tmp_path / "out" / "run.bbox.json").read_text())
    expected = [row for i, each in found.items() for row in each.to_coco(i, CATEGORY_IDS)]
    assert len(rows) == len(expected) > 0
    for row, other in zip(rows, expected, strict=True):
        assert (row["image_id"], row["category_id"]) == (other["image_id"], other["category_id"])
        assert row["bbox"] == pytest.approx(other["bbox"])
    masks = json.loads((tmp_path / "out" / "run.segm.json").read_text())
    assert [row["segmentation"] for row in masks] == [row["segmentation"] for row in expected]


def test_wrong_use_is_refused(tmp_path):
    coco, found = scene(20)
    metric = bound(CocoMetric(), coco, tmp_path)
    image_id = coco["images"][0]["id"]
    metric.add(image_id, found[image_id])
    with pytest.raises(DatasetError, match="given twice"):
        metric.add(image_id, found[image_id])
    with pytest.raises(DatasetError, match="not one of those"):
        metric.add(99, found[image_id])
    other = Detections([[1, 2, 3, 4]], [0.5], [0], class_names=("cow",), image_size=(9, 9))
    with pytest.raises(DatasetError, match="classes"):
        metric.add(coco["images"][1]["id"], other)
    nameless = Detections([[1, 2, 3, 4]], [0.5], [7], image_size=(9, 9))
    with pytest.raises(DatasetError, match="label 7"):
        metric.add(coco["images"][1]["id"], nameless)


def test_masks_are_needed_for_segm(tmp_path):
    coco, found = scene(21, images=3, with_masks=True)
    metric = bound(CocoMetric(metric="segm"), coco, tmp_path)
    boxes_only = Detections([[1, 2, 30, 40]], [0.5], [0], image_size=(HEIGHT, WIDTH))
    with pytest.raises(DatasetError, match="needs masks"):
        metric.add(coco["images"][0]["id"], boxes_only)
    with pytest.raises(DatasetError, match="annotated as"):
        metric.add(coco["images"][0]["id"], Detections.empty((9, 9)))
    for annotation in coco["annotations"]:
        del annotation["segmentation"]
    metric = filled(bound(CocoMetric(metric="segm"), coco, tmp_path), found)
    with pytest.raises(DatasetError, match="ground truth with masks"):
        metric.compute()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "pq"}, "bbox, segm, proposal"),
        ({"format_only": True}, "outfile_prefix"),
        ({"proposal_nums": ()}, "proposal_nums"),
        ({"iou_thrs": 1.5}, "iou_thrs"),
        ({"metric_items": ["mAP_90"]}, "metric_items"),
        ({"backend_args": {"backend": "petrel"}}, "local files"),
    ],
)
def test_senseless_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        CocoMetric(**arguments)


def test_an_unbound_metric_says_so():
    with pytest.raises(ConfigError, match="bind"):
        CocoMetric().compute()


def test_a_lacking_class_or_image_is_named(tmp_path):
    coco, _ = scene(22)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(coco))
    with pytest.raises(DatasetError, match="no category 'cow'"):
        GroundTruth.from_file(str(path), ("cow",))
    with pytest.raises(DatasetError, match="does not list image 1234"):
        GroundTruth.from_file(str(path), CLASSES, [1234])
