"""CocoDataset: classes, filters, indices, and every kind of broken annotation file."""

import json
import logging
import pickle

import numpy as np
import pytest

from deploykit.errors import ConfigError, DatasetError, MediaError
from deploykit.training.data import CocoDataset, UnusableSampleError, build_dataset
from deploykit.training.data.coco_classes import COCO_CLASSES, COCO_PALETTE
from deploykit.training.data.report import PROBLEM_KINDS

LOAD = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_bbox": True}]


def opened(folder, **options):
    folder.write()
    return build_dataset(folder.config(**options))


def records(dataset):
    return [dataset.record(index) for index in range(len(dataset))]


def test_records_hold_what_the_file_says(coco_folder):
    folder = coco_folder()
    dataset = opened(folder)
    assert len(dataset) == 8
    assert dataset.classes == ("cat", "dog", "owl")
    assert dataset.report.counts == {}
    for image, record in zip(folder.content["images"], records(dataset), strict=True):
        own = [a for a in folder.content["annotations"] if a["image_id"] == image["id"]]
        assert (record.width, record.height) == (image["width"], image["height"])
        assert record.path.endswith(f"images/{image['file_name']}")
        expected = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in own)]
        assert record.boxes.tolist() == expected
        assert record.labels.tolist() == [a["category_id"] // 5 for a in own]
        assert list(record.segmentations) == [a["segmentation"] for a in own]
        assert dataset.image_size(image["id"]) == (image["height"], image["width"])


@pytest.mark.parametrize("serialize", [True, False])
def test_serialised_or_not_the_records_are_the_same(coco_folder, serialize):
    dataset = opened(coco_folder(), serialize_data=serialize)
    copied = pickle.loads(pickle.dumps(dataset))
    for one, other in zip(records(dataset), records(copied), strict=True):
        assert one.path == other.path
        assert np.array_equal(one.boxes, other.boxes)
    with pytest.raises(IndexError):
        dataset.record(len(dataset))


def test_metainfo_chooses_classes_and_their_order(coco_folder):
    folder = coco_folder()
    everything = opened(folder)
    dataset = opened(
        folder, metainfo={"classes": ("owl", "cat"), "palette": [(1, 2, 3), (4, 5, 6)]}
    )
    assert dataset.classes == ("owl", "cat")
    assert dataset.palette == ((1, 2, 3), (4, 5, 6))
    assert dataset.category_ids == {11: 0, 1: 1}
    for chosen, full in zip(records(dataset), records(everything), strict=True):
        kept = full.labels != 1
        assert np.array_equal(chosen.boxes, full.boxes[kept])
        assert chosen.labels.tolist() == [{2: 0, 0: 1}[label] for label in full.labels[kept]]


def test_classes_from_a_file(coco_folder, tmp_path):
    names = tmp_path / "classes.txt"
    names.write_text("dog\nowl\n\n")
    assert opened(coco_folder(), metainfo={"classes": str(names)}).classes == ("dog", "owl")


def test_coco_s_own_classes_when_the_file_lists_only_such(coco_folder):
    folder = coco_folder()
    folder.content["categories"][2]["name"] = "zebra"
    dataset = opened(folder)
    assert dataset.classes == COCO_CLASSES
    assert dataset.palette == COCO_PALETTE
    assert len(set(COCO_CLASSES)) == len(COCO_PALETTE) == 80
    assert dataset.category_ids[11] == COCO_CLASSES.index("zebra")


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        (("cat", "cow"), DatasetError, "no category 'cow'"),
        ("cat", ConfigError, r"\('cat',\)"),
        (("cat", "cat"), ConfigError, "more than once"),
        ((), ConfigError, "empty"),
        ((1, 2), ConfigError, "tuple of names"),
    ],
)
def test_classes_that_make_no_sense(coco_folder, classes, error, message):
    with pytest.raises(error, match=message):
        opened(coco_folder(), metainfo={"classes": classes})


def test_indices_select_before_filtering(coco_folder):
    folder = coco_folder()
    folder.content["annotations"] = [
        a for a in folder.content["annotations"] if a["image_id"] not in (1, 2)
    ]
    filters = {"filter_empty_gt": True}
    assert [r.image_id for r in records(opened(folder, filter_cfg=filters))] == [0, 3, 4, 5, 6, 7]
    first = opened(folder, filter_cfg=filters, indices=4)
    assert [record.image_id for record in records(first)] == [0, 3]
    assert [r.image_id for r in records(opened(folder, indices=-2))] == [6, 7]
    assert [r.image_id for r in records(opened(folder, indices=[5, 0]))] == [5, 0]
    with pytest.raises(ConfigError, match="indices"):
        opened(folder, indices=[99])


def test_filters_apply_to_training_alone(coco_folder):
    folder = coco_folder()
    folder.content["annotations"] = [a for a in folder.content["annotations"] if a["image_id"] != 3]
    sizes = [min(image["width"], image["height"]) for image in folder.content["images"]]
    limit = sorted(sizes)[3]
    options = {"filter_cfg": {"filter_empty_gt": True, "min_size": limit}}
    kept = [i for i, size in enumerate(sizes) if size >= limit and i != 3]
    assert [record.image_id for record in records(opened(folder, **options))] == kept
    assert len(opened(folder, test_mode=True, **options)) == 8
    with pytest.raises(ConfigError, match="filter_cfg"):
        opened(folder, filter_cfg={"min_area": 3})
    with pytest.raises(DatasetError, match="no image is left"):
        opened(folder, filter_cfg={"min_size": 1000})


def test_an_image_whose_objects_are_of_other_classes_is_empty(coco_folder):
    folder = coco_folder()
    with_owl = {a["image_id"] for a in folder.content["annotations"] if a["category_id"] == 11}
    dataset = opened(folder, metainfo={"classes": ("owl",)}, filter_cfg={"filter_empty_gt": True})
    assert {record.image_id for record in records(dataset)} == with_owl
    assert dataset.report.counts["image_without_objects"] == 8 - len(with_owl)


# Each entry breaks one thing: (kind in the report, what it does to the file's content).
def _first(content):
    return content["annotations"][0]


BREAKAGES = {
    "invalid_image": lambda c: c["images"].append(
        {"id": 50, "file_name": "0.png", "width": "wide"}
    ),
    "duplicate_image_id": lambda c: c["images"].append(dict(c["images"][0])),
    "invalid_annotation": lambda c: c["annotations"].append(_first(c) | {"category_id": None}),
    "duplicate_annotation_id": lambda c: c["annotations"].append(
        _first(c) | {"bbox": [0, 0, 5, 5], "area": 25}
    ),
    "repeated_annotation": lambda c: c["annotations"].append(dict(_first(c))),
    "unknown_image": lambda c: c["annotations"].append(_first(c) | {"id": 900, "image_id": 77}),
    "unknown_category": lambda c: c["annotations"].append(
        _first(c) | {"id": 900, "category_id": 77}
    ),
    "invalid_category": lambda c: c["categories"].append({"id": 40}),
    "duplicate_category": lambda c: c["categories"].append({"id": 40, "name": "cat"}),
    "invalid_box": lambda c: c["annotations"].append(
        _first(c) | {"id": 900, "bbox": [1, 2, float("nan"), 4]}
    ),
    "empty_box": lambda c: c["annotations"].append(_first(c) | {"id": 900, "bbox": [1, 2, 0, 4]}),
    "box_outside_image": lambda c: c["annotations"].append(
        _first(c) | {"id": 900, "bbox": [500, 2, 10, 10]}
    ),
    "missing_file": lambda c: c["images"].append(
        {"id": 50, "file_name": "gone.png", "width": 9, "height": 9}
    ),
}


@pytest.mark.parametrize("kind", BREAKAGES)
def test_every_problem_is_counted_skipped_and_logged(coco_folder, kind, caplog):
    folder = coco_folder()
    expected = len(folder.content["annotations"]) + (kind == "duplicate_annotation_id")
    BREAKAGES[kind](folder.content)
    with caplog.at_level(logging.WARNING):
        dataset = opened(folder)
    assert dataset.report.counts == {kind: 1}
    assert dataset.report.has_errors
    assert sum(len(record.boxes) for record in records(dataset)) == expected
    assert len(dataset) == 8
    assert f"1 {kind}" in caplog.text
    assert PROBLEM_KINDS[kind].meaning in caplog.text
    assert dataset.report.problems[kind].examples[0] in caplog.text


@pytest.mark.parametrize("kind", BREAKAGES)
def test_every_problem_stops_when_the_config_says_so(coco_folder, kind):
    folder = coco_folder()
    BREAKAGES[kind](folder.content)
    with pytest.raises(DatasetError, match=f"1 {kind}") as caught:
        opened(folder, on_error="raise")
    assert "\n" not in str(caught.value)


def test_a_clean_file_passes_under_the_strict_policy(coco_folder):
    assert len(opened(coco_folder(), on_error="raise")) == 8
    with pytest.raises(ConfigError, match="on_error"):
        opened(coco_folder("other"), on_error="ignore")


def test_all_problems_at_once_are_reported_in_one_piece(coco_folder, caplog):
    folder = coco_folder()
    for breakage in BREAKAGES.values():
        breakage(folder.content)
    with caplog.at_level(logging.WARNING):
        dataset = opened(folder)
    assert set(dataset.report.counts) >= set(BREAKAGES)
    reports = [record for record in caplog.records if "ann.json" in record.getMessage()]
    assert len(reports) == 1
    as_dict = dataset.report.to_dict()
    assert json.loads(json.dumps(as_dict)) == as_dict
    assert as_dict["problems"]["empty_box"]["count"] == 1


def test_harmless_findings_are_no_errors(coco_folder):
    folder = coco_folder()
    width, height = (folder.content["images"][0][key] for key in ("width", "height"))
    folder.add_annotation(0, [width - 10, height - 10, 20, 5])
    dataset = opened(folder, on_error="raise")
    assert dataset.report.counts == {"box_beyond_image": 1}
    assert not dataset.report.has_errors
    # The record keeps the box as annotated; Resize clips it, as in MMDetection.
    assert dataset.record(0).boxes[-1].tolist() == [width - 10, height - 10, width + 10, height - 5]


def test_boxes_marked_to_be_ignored_are_left_out_and_crowds_set_apart(coco_folder):
    folder = coco_folder()
    folder.add_annotation(0, [1, 1, 20, 20], ignore=1)
    folder.add_annotation(0, [2, 2, 30, 30], iscrowd=1)
    dataset = opened(folder)
    assert dataset.record(0).crowd.tolist() == [False, True]
    sample = dataset[0]
    assert sample.ignored_boxes.tolist() == [[2, 2, 32, 32]]
    assert len(sample.boxes) == len(sample.labels) == 1


def test_categories_of_one_name_become_one_class(coco_folder):
    folder = coco_folder()
    folder.content["categories"].append({"id": 40, "name": "cat"})
    folder.add_annotation(0, [1, 1, 20, 20], category_id=40)
    dataset = opened(folder)
    assert dataset.classes == ("cat", "dog", "owl")
    assert dataset.record(0).labels[-1] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[1, 2]", "holds a list"),
        ("null", "holds a null"),
        ('{"images": [], "annotations": []}', "needs a list 'categories'"),
        ('{"images": {}, "annotations": [], "categories": []}', "found object"),
        ('{"images": [], "annotations": [], "categories": []}', "no usable category"),
        ('{"shapes": [], "version": "5.0"}', "needs a list 'images'"),
    ],
)
def test_files_that_are_not_coco_are_refused_with_the_reason(coco_folder, content, message):
    folder = coco_folder()
    (folder.root / "ann.json").write_text(content)
    with pytest.raises(DatasetError, match=message) as caught:
        build_dataset(folder.config())
    assert "ann.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_named(coco_folder, tmp_path):
    folder = coco_folder()
    with pytest.raises(DatasetError, match="annotation file not found"):
        build_dataset(folder.config(ann_file="nope.json"))
    with pytest.raises(DatasetError, match="does not exist"):
        build_dataset(folder.config(data_prefix={"img": "nowhere/"}))
    with pytest.raises(DatasetError, match=r"0\.png"):
        build_dataset(folder.config(data_prefix={"img": ""}))
    with pytest.raises(ConfigError, match="ann_file"):
        CocoDataset()


def test_a_test_set_must_be_complete_unless_told_otherwise(coco_folder):
    folder = coco_folder()
    folder.image_path(2).unlink()
    with pytest.raises(DatasetError, match="1 of 8 image files do not exist"):
        opened(folder, test_mode=True)
    assert len(opened(folder, test_mode=True, on_error="skip")) == 7
    assert len(opened(folder)) == 7


def test_test_sets_may_come_without_annotations(coco_folder):
    folder = coco_folder()
    del folder.content["annotations"]
    dataset = opened(folder, test_mode=True)
    assert len(dataset) == 8
    assert len(dataset[0].boxes) == 0
    with pytest.raises(DatasetError, match="needs a list 'annotations'"):
        opened(folder)


def test_lazy_init_reads_the_file_when_it_is_needed(coco_folder):
    folder = coco_folder()
    path = folder.root / "ann.json"
    path.rename(folder.root / "later.json")
    dataset = CocoDataset(
        "ann.json", str(folder.root), {"img": "images"}, pipeline=LOAD, lazy_init=True
    )
    (folder.root / "later.json").rename(path)
    assert len(dataset) == 8


def test_other_file_backends_are_refused(coco_folder):
    with pytest.raises(ConfigError, match="local files"):
        opened(coco_folder(), backend_args={"backend": "petrel"})


def corrupt(folder, index, data=b"\x89PNG\r\n\x1a\n damaged"):
    folder.image_path(index).write_bytes(data)


@pytest.mark.parametrize("data", [b"", b"text", b"\x89PNG\r\n\x1a\n damaged"])
def test_another_image_is_drawn_for_a_broken_one(coco_folder, data):
    folder = coco_folder()
    corrupt(folder, 3, data)
    dataset = opened(folder)
    sample = dataset.fetch(3, np.random.default_rng(0))
    assert sample.meta["img_id"] != 3
    assert [kind for kind, _ in sample.problems] == ["unreadable_image"]
    assert "3.png" in sample.problems[0][1]


def test_a_broken_image_stops_when_the_config_says_so(coco_folder):
    folder = coco_folder()
    corrupt(folder, 3)
    with pytest.raises(MediaError, match=r"3\.png"):
        opened(folder, on_error="raise").fetch(3, np.random.default_rng(0))
    validation = opened(folder, test_mode=True)
    with pytest.raises(MediaError, match=r"3\.png"):
        validation.fetch(3, np.random.default_rng(0))
    with pytest.raises(UnusableSampleError) as caught:
        opened(folder, test_mode=True, on_error="skip").fetch(3, np.random.default_rng(0))
    assert caught.value.problems[0][0] == "unreadable_image"


def test_when_no_image_can_be_read_the_user_is_told(coco_folder):
    folder = coco_folder()
    for index in range(8):
        corrupt(folder, index)
    with pytest.raises(DatasetError, match=r"after drawing 20 other images.*cannot be decoded"):
        opened(folder, max_refetch=20)[0]


def test_a_wrong_size_in_the_file_is_noted_and_the_image_counts(coco_folder):
    folder = coco_folder()
    real = folder.content["images"][1]["width"]
    folder.content["images"][1]["width"] = real + 40
    sample = opened(folder)[1]
    assert sample.image.shape[1] == real
    assert sample.problems == [("wrong_image_size", sample.problems[0][1])]
    assert "1.png" in sample.problems[0][1]
    with pytest.raises(DatasetError, match="wrong_image_size"):
        opened(folder, on_error="raise")[1]


def test_a_mask_that_cannot_be_used_makes_the_object_ignored(coco_folder):
    folder = coco_folder()
    folder.content["annotations"][0]["segmentation"] = [[1, 2, 3]]
    sample = opened(folder, with_mask=True)[0]
    assert len(sample.boxes) == 0
    assert len(sample.ignored_boxes) == 1
    assert sample.problems[0][0] == "invalid_mask"
    with pytest.raises(DatasetError, match="invalid_mask"):
        opened(folder, with_mask=True, on_error="raise")[0]


def test_a_pipeline_that_gives_nothing_is_named(coco_folder):
    folder = coco_folder()
    nothing = {"type": "FilterAnnotations", "min_gt_bbox_wh": (500, 500)}
    folder.write()
    dataset = build_dataset(folder.config(nothing, max_refetch=5))
    with pytest.raises(DatasetError, match="FilterAnnotations"):
        dataset[0]
    with pytest.raises(DatasetError, match="test pipeline"):
        build_dataset(folder.config(nothing, test_mode=True))[0]


def test_a_failing_transform_names_itself_and_the_image(coco_folder):
    folder = coco_folder()
    dataset = opened(folder)

    class Boom(type(dataset.pipeline.transforms[0]).__mro__[1]):
        def __call__(self, sample, rng):
            raise RuntimeError("out of luck")

    dataset.set_pipeline([*LOAD, Boom()])
    with pytest.raises(DatasetError, match=r"2\.png: Boom failed: RuntimeError: out of luck"):
        dataset[2]


def test_samples_depend_on_the_generator_alone(coco_folder):
    flip = {"type": "RandomFlip", "prob": 0.5}
    folder = coco_folder()
    folder.write()
    dataset = build_dataset(folder.config(flip))
    seen = {dataset.fetch(0, np.random.default_rng(s)).meta["flip"] for s in range(12)}
    assert seen == {True, False}
    for seed in range(4):
        one, two = (dataset.fetch(0, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(one.image, two.image)
        assert np.array_equal(one.boxes, two.boxes)


def test_fuzzed_entries_never_crash(coco_folder):
    """Whatever stands in an entry, reading ends with a dataset or with a DatasetError."""
    rng = np.random.default_rng(3)
    junk = [None, True, -1, 0, 2**70, 1e308, "x", "", [], [1], {}, {"a": 1}, "NaN", 3.5]
    folder = coco_folder(images=4)
    clean = json.dumps(folder.content)
    for _ in range(150):
        content = json.loads(clean)
        for _ in range(int(rng.integers(1, 4))):
            entries = content[str(rng.choice(["images", "annotations", "categories"]))]
            position = int(rng.integers(len(entries)))
            value = junk[int(rng.integers(len(junk)))]
            if rng.random() < 0.2 or not isinstance(entries[position], dict):
                entries[position] = value
            else:
                key = str(rng.choice(list(entries[position])))
                entries[position][key] = value
        folder.content = content
        try:
            dataset = opened(folder, with_mask=True)
        except DatasetError:
            continue
        for index in range(len(dataset)):
            sample = dataset[index]
            assert np.isfinite(sample.boxes).all()
            assert len(sample.boxes) == len(sample.labels) == len(sample.masks)
