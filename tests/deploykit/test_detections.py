import doctest
import json
import subprocess
import sys

import numpy as np
import pytest
import supervision
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import deploykit.detections
from deploykit import Detections
from deploykit.errors import MissingDependencyError, UsageError

CLASSES = ("cat", "dog", "bird")


def make(count: int = 4, masks: bool = False, seed: int = 0) -> Detections:
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 40, (count, 4)).astype(np.float32)
    corners[:, 2:] += corners[:, :2]
    return Detections(
        corners,
        np.linspace(0.9, 0.1, count, dtype=np.float32),
        np.arange(count) % 3,
        masks=random.random((count, 50, 60)) < 0.5 if masks else None,
        class_names=CLASSES,
        image_size=(50, 60),
    )


@st.composite
def detections(draw: st.DrawFn) -> Detections:
    count = draw(st.integers(0, 6))
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
    has_masks = draw(st.booleans())
    return Detections(
        draw(hnp.arrays(np.float32, (count, 4), elements=floats)),
        draw(hnp.arrays(np.float32, count, elements=st.floats(0, 1, width=32))),
        draw(hnp.arrays(np.int64, count, elements=st.integers(0, 2))),
        masks=draw(hnp.arrays(bool, (count, *size))) if has_masks else None,
        class_names=draw(st.sampled_from([(), CLASSES, ("größe", "車", 'a "quoted" name')])),
        image_size=size,
        palette=draw(st.sampled_from([(), ((1, 2, 3), (4, 5, 6), (255, 0, 9))])),
    )


def test_docstring_examples() -> None:
    result = doctest.testmod(deploykit.detections)
    assert result.attempted >= 10
    assert result.failed == 0


def test_needs_numpy_alone() -> None:
    code = (
        "import sys; from deploykit.detections import Detections; "
        "Detections.empty((2, 2)).to_json(); "
        "print([m for m in ('cv2', 'torch', 'onnxruntime', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_arrays_are_converted() -> None:
    found = Detections([[0, 1, 2, 3]], [1], [2], image_size=(4, 5))
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (
        np.float32,
        np.float32,
        np.int64,
    )
    assert found.image_size == (4, 5)
    assert len(Detections([], [], [], image_size=(4, 5)).boxes[:, 0]) == 0


def test_arrays_of_the_right_type_are_not_copied() -> None:
    boxes = np.zeros((2, 4), np.float32)
    assert Detections(boxes, np.zeros(2), np.zeros(2), image_size=(1, 1)).boxes is boxes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": np.zeros((2, 5))}, r"boxes must have shape \[N, 4\], got \[2, 5\]"),
        ({"boxes": [["a", 1, 2, 3]]}, "boxes must be an array of numbers"),
        ({"scores": np.zeros(3)}, r"scores must have shape \[2\] like the boxes, got \[3\]"),
        ({"labels": np.zeros((2, 1))}, r"labels must have shape \[2\]"),
        ({"labels": np.array([0, 3])}, "label 3 has no name: there are 3 class names"),
        ({"labels": np.array([0, -1])}, "labels must be >= 0"),
        ({"image_size": (0, 5)}, "image_size must be"),
        ({"masks": np.zeros((2, 5, 4), bool)}, r"masks must have shape \[2, 4, 5\]"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    arguments = {
        "boxes": np.zeros((2, 4)),
        "scores": np.zeros(2),
        "labels": np.zeros(2),
        "class_names": CLASSES,
        "image_size": (4, 5),
    }
    with pytest.raises(UsageError, match=message):
        Detections(**(arguments | changes))


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (2, [2]),
        (-1, [3]),
        (np.int64(1), [1]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, -1), [3, 2, 1, 0]),
        ([3, 0, 0], [3, 0, 0]),
        (np.array([2, 1], np.int32), [2, 1]),
        (np.array([True, False, False, True]), [0, 3]),
        ([True, False, True, False], [0, 2]),
        ([], []),
        (np.array([], np.int64), []),
        (np.zeros(4, bool), []),
    ],
    ids=str,
)
def test_indexing_selects_rows(index: object, rows: list[int]) -> None:
    found = make(masks=True)
    picked = found[index]
    assert isinstance(picked, Detections)
    np.testing.assert_array_equal(picked.boxes, found.boxes[rows])
    np.testing.assert_array_equal(picked.scores, found.scores[rows])
    np.testing.assert_array_equal(picked.labels, found.labels[rows])
    np.testing.assert_array_equal(picked.masks, found.masks[rows])
    assert (picked.class_names, picked.image_size) == (found.class_names, found.image_size)


def test_an_index_outside_raises_index_error() -> None:
    with pytest.raises(IndexError):
        make()[4]


def test_iteration_gives_one_item_per_object() -> None:
    found = make(masks=True)
    items = list(found)
    assert [item.name for item in items] == ["cat", "dog", "bird", "cat"]
    assert [item.label for item in items] == [0, 1, 2, 0]
    for index, (box, score, _, _, mask) in enumerate(items):
        np.testing.assert_array_equal(box, found.boxes[index])
        np.testing.assert_array_equal(mask, found.masks[index])
        assert np.float32(score) == found.scores[index]
    assert [item.mask for item in make()] == [None] * 4


def test_filter_by_score_keeps_the_threshold_itself() -> None:
    found = Detections(np.zeros((3, 4)), [0.5, 0.49, 0.51], [0, 1, 2], image_size=(9, 9))
    assert found.filter(score=0.5).labels.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("classes", "labels"),
    [("cat", [0, 0]), (1, [1]), (["bird", 0], [0, 2, 0]), ([], []), (np.int64(2), [2])],
)
def test_filter_by_class(classes: object, labels: list[int]) -> None:
    assert make().filter(classes=classes).labels.tolist() == labels


@pytest.mark.parametrize(
    ("classes", "message"),
    [("dgo", "unknown class 'dgo'. Did you mean dog"), (3, "label 3"), (["cat", -1], "label -1")],
)
def test_filter_by_an_unknown_class(classes: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make().filter(classes=classes)


def test_equality() -> None:
    assert make() == make()
    assert make(masks=True) == make(masks=True)
    assert make(masks=True) != make()
    assert make() != make()[::-1]
    assert make() != make(seed=1)
    assert make() != "something else"


def test_repr_counts_classes() -> None:
    assert repr(make()) == "Detections(4 in 50x60 px: 2 cat, 1 dog, 1 bird)"
    assert repr(Detections([[0, 0, 1, 1]], [1], [7], image_size=(2, 3))) == (
        "Detections(1 in 2x3 px: 1 class 7)"
    )


@given(detections())
@settings(max_examples=60, deadline=None)
def test_json_round_trip_is_exact(found: Detections) -> None:
    text = found.to_json()
    back = Detections.from_json(text)
    assert back == found
    assert back.palette == found.palette
    assert (back.masks is None) == (found.masks is None)
    assert Detections.from_json(back.to_json(indent=2)) == found


def test_json_is_readable() -> None:
    found = Detections([[0.1, 1, 2, 3]], [0.3], [1], class_names=CLASSES, image_size=(4, 5))
    assert json.loads(found.to_json()) == {
        "image_size": [4, 5],
        "class_names": ["cat", "dog", "bird"],
        "detections": [{"box": [0.1, 1.0, 2.0, 3.0], "score": 0.3, "label": 1, "name": "dog"}],
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "not json",
        '{"image_size": [4], "class_names": [], "detections": []}',
        '{"image_size": [4, 5], "class_names": [], "detections": [{"box": [1, 2, 3]}]}',
        '{"image_size": [4, 5], "class_names": ["a"], "detections": '
        '[{"box": [1, 2, 3, 4], "score": 1, "label": 1}]}',
        '{"image_size": [4, 5], "class_names": 3, "detections": []}',
    ],
)
def test_json_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Detections.from_json(text)


def test_coco_results() -> None:
    found = make(2, masks=True)
    first, second = found.to_coco("image-7", category_ids=[18, 17, 16])
    x1, y1, x2, y2 = found.boxes[0].tolist()
    assert first["image_id"] == "image-7"
    assert (first["category_id"], second["category_id"]) == (18, 17)
    assert first["bbox"] == [x1, y1, x2 - x1, y2 - y1]
    assert np.float32(first["score"]) == found.scores[0]
    json.dumps([first, second])


def test_coco_results_can_be_evaluated(tmp_path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found = make(3, masks=True)
    truth = {
        "images": [{"id": 1, "height": 50, "width": 60}],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": [
            {"id": n, "iscrowd": 0, "area": r["bbox"][2] * r["bbox"][3], **r}
            for n, r in enumerate(found.to_coco(1), start=1)
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    annotations = COCO(str(tmp_path / "truth.json"))
    for kind in ("bbox", "segm"):
        evaluation = COCOeval(annotations, annotations.loadRes(found.to_coco(1)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1.0)


def test_coco_needs_an_id_for_every_label() -> None:
    with pytest.raises(UsageError, match="label 2 has no category id: 2 ids were given"):
        make().to_coco(1, category_ids=[1, 2])


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("count", [0, 3])
def test_supervision(count: int, masks: bool) -> None:
    found = make(count, masks)
    theirs = found.to_supervision()
    assert isinstance(theirs, supervision.Detections)
    assert len(theirs) == count
    np.testing.assert_array_equal(theirs.xyxy, found.boxes)
    np.testing.assert_array_equal(theirs.confidence, found.scores)
    np.testing.assert_array_equal(theirs.class_id, found.labels)
    assert list(theirs.data["class_name"]) == [item.name for item in found]
    assert (theirs.mask is not None) == masks
    kept = theirs[theirs.confidence >= 0.5]
    assert len(kept) == len(found.filter(score=0.5))


def test_supervision_missing_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'deploykit\[supervision\]'"):
        make().to_supervision()


def test_model_outputs_are_mapped_back() -> None:
    found = Detections.from_model_outputs(
        boxes=np.array([[10, 20, 30, 40], [-5, 0, 700, 9], [1, 1, 2, 2], [0, 0, 0, 0]], np.float32),
        scores=np.array([0.9, 0.3, 0.29, 0], np.float32),
        labels=np.array([2, 0, 1, -1], np.int32),
        num_dets=np.int32(3),
        scale_factor=(0.5, 0.25),
        image_size=(100, 200),
        class_names=CLASSES,
        score_threshold=np.float32(0.3),
    )
    assert found.labels.tolist() == [2, 0]
    # Not clipped: the second box reaches beyond the image.
    assert found.boxes.tolist() == [[20, 80, 60, 160], [-10, 0, 1400, 36]]


def test_masks_are_pasted_into_the_original_image() -> None:
    logits = np.full((3, 4, 4), 9.0, np.float32)
    logits[1, :, :2] = -9  # the right half of the second box
    found = Detections.from_model_outputs(
        boxes=np.array([[0, 0, 1, 1], [4, 2, 12, 6], [0, 0, 0, 0]], np.float32),
        scores=np.array([0.2, 0.9, 0], np.float32),
        labels=np.array([0, 1, -1], np.int32),
        num_dets=2,
        masks=logits,
        scale_factor=(0.5, 0.25),
        image_size=(40, 50),
        score_threshold=0.5,
    )
    expected = np.zeros((40, 50), bool)
    expected[8:24, 16:24] = True
    expected[[8, 8, 23, 23], [16, 23, 16, 23]] = False  # there is nothing around a mask
    assert found.masks is not None
    np.testing.assert_array_equal(found.masks, expected[None])


@given(
    hnp.arrays(np.float32, (5, 4), elements=st.floats(-1e4, 1e4, width=32)),
    st.floats(0.01, 10),
    st.floats(0.01, 10),
)
@settings(max_examples=60, deadline=None)
def test_boxes_are_rescaled_as_mmdetection_does(
    boxes: np.ndarray, width_factor: float, height_factor: float
) -> None:
    import torch

    found = Detections.from_model_outputs(
        boxes,
        np.ones(5),
        np.zeros(5),
        5,
        scale_factor=(width_factor, height_factor),
        image_size=(9, 9),
    )
    # mmdet.structures.bbox.scale_boxes with [1 / factor]: a float32 tensor of doubles' reciprocals.
    factors = torch.from_numpy(boxes).new_tensor([1 / width_factor, 1 / height_factor])
    expected = torch.from_numpy(boxes) * factors.repeat(1, 2)
    np.testing.assert_array_equal(found.boxes, expected.numpy())


@pytest.mark.parametrize("count", [-1, 3])
def test_num_dets_outside_the_rows_is_refused(count: int) -> None:
    with pytest.raises(UsageError, match=r"num_dets must be within 0\.\.2"):
        Detections.from_model_outputs(
            np.zeros((2, 4)),
            np.zeros(2),
            np.zeros(2),
            count,
            scale_factor=(1, 1),
            image_size=(9, 9),
        )
