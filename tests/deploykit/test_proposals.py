"""Proposal files: what is read, what is refused."""

from __future__ import annotations

import json
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import DatasetError
from deploykit.proposals import (
    as_table,
    grid_proposals,
    image_key,
    read_proposals,
    stand_in_proposals,
    write_proposals,
)
from deploykit.spec import DimRange, InputSpec


class InstanceData:
    """As mmengine's: the fields are attributes beside two sets of their names."""

    def __init__(self, **fields):
        object.__setattr__(self, "_metainfo_fields", set())
        object.__setattr__(self, "_data_fields", set(fields))
        for name, value in fields.items():
            object.__setattr__(self, name, value)


@pytest.fixture
def mmengine_structures(monkeypatch):
    """Let pickles name ``InstanceData`` as mmengine's do."""
    module = types.ModuleType("mmengine.structures.instance_data")
    for name in ("mmengine", "mmengine.structures"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.InstanceData = InstanceData
    monkeypatch.setattr(InstanceData, "__module__", module.__name__)


def tables(images=3, count=5):
    rng = np.random.default_rng(0)
    return {
        f"val2017/{number:03}.jpg": as_table(rng.random((count, 4)) * 90, rng.random(count))
        for number in range(images)
    }


@pytest.mark.parametrize("name", ["p.pkl", "p.pickle", "p.npz"])
def test_what_is_written_is_read(tmp_path, name):
    expected = tables() | {"val2017/empty.jpg": as_table([])}
    write_proposals(tmp_path / "made" / name, expected)
    read = read_proposals(tmp_path / "made" / name)
    assert len(read) == 4
    for key, rows in expected.items():
        found = read.find(f"/data/coco/{key}")
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, rows)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_files_of_mmdetection(tmp_path, mmengine_structures, protocol):
    """Protocol 2 is mmengine's; contiguous, sliced and big-endian arrays, of doubles too."""
    expected = tables()
    content = {}
    for index, (key, rows) in enumerate(expected.items()):
        kind = (np.float32, np.float64, np.dtype(">f4"))[index]
        boxes = np.asfortranarray(rows[:, :4].astype(kind))
        content[key] = InstanceData(bboxes=boxes, scores=rows[:, 4].astype(kind))
    path = tmp_path / "rpn.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_proposals(path)
    for key, rows in expected.items():
        np.testing.assert_array_equal(read.find(key), rows)


def test_pickles_of_plain_dicts_without_scores_keep_their_order(tmp_path):
    boxes = np.array([[1, 2, 3, 4], [0, 0, 9, 9]], np.float32)
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps({"a/b.png": {"bboxes": boxes}}))
    np.testing.assert_array_equal(read_proposals(path).find("x/a/b.png")[:, :4], boxes)


class _Runs:
    def __reduce__(self):
        return os.system, ("touch owned",)


class _Evaluates:
    def __reduce__(self):
        return eval, ("__import__('pathlib').Path('owned').touch()",)


@pytest.mark.parametrize("payload", [_Runs(), _Evaluates(), np.array([_Runs()], object)])
def test_nothing_in_a_pickle_is_executed(tmp_path, monkeypatch, payload):
    monkeypatch.chdir(tmp_path)
    Path("p.pkl").write_bytes(pickle.dumps({"a/b.png": {"bboxes": payload}}))
    with pytest.raises(DatasetError, match=r"p\.pkl: not a file of proposals.*(safe|numbers)"):
        read_proposals("p.pkl")
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.pkl", b"", "not a file of proposals"),
        ("p.pkl", pickle.dumps([1, 2]), "expected a dict from image names"),
        ("p.pkl", pickle.dumps({"a": [1]}), "has no 'bboxes'"),
        ("p.pkl", pickle.dumps({"a": {"bboxes": np.zeros((2, 3))}}), r"must be \[N, 4\]"),
        (
            "p.pkl",
            pickle.dumps({"a": {"bboxes": np.zeros((2, 4)), "scores": np.zeros(3)}}),
            "2 boxes with scores",
        ),
        ("p.pkl", pickle.dumps({"a": {"bboxes": np.full((1, 4), np.nan)}}), "not finite"),
        ("p.npz", b"PK\3\4nonsense", "not a proposal file, or damaged"),
        ("p.json", b"{", "not a proposal file, or damaged"),
        ("p.json", b'[{"image_id": 1}]', "not a proposal file, or damaged"),
        ("p.txt", b"", "expected a proposal file in .pkl"),
    ],
)
def test_what_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read_proposals(tmp_path / name)


def test_damaged_bytes_give_one_kind_of_error(tmp_path):
    whole = pickle.dumps({key: {"bboxes": rows[:, :4]} for key, rows in tables().items()})
    path = tmp_path / "p.pkl"
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_proposals(path)  # a flipped bit of a coordinate is no damage that shows
        except DatasetError as error:
            assert "\n" not in str(error)


def test_coco_results_and_coco_data_sets(tmp_path):
    results = [
        {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.2},
        {"image_id": 9, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5},
        {"image_id": 7, "category_id": 1, "bbox": [5, 6, 7, 8], "score": 0.9},
    ]
    rows = np.array([[5, 6, 12, 14, 0.9], [1, 2, 4, 6, 0.2]], np.float32)
    path = tmp_path / "p.json"
    path.write_text(json.dumps(results))
    np.testing.assert_allclose(read_proposals(path).find("any/name.jpg", 7), rows)
    with pytest.raises(DatasetError, match=r"no proposals for 'any/name.jpg' \(image 8\)"):
        read_proposals(path).find("any/name.jpg", 8)
    images = [{"id": 7, "file_name": "x/in/a.jpg"}, {"id": 8, "file_name": "b.jpg"}]
    path.write_text(json.dumps({"images": images, "annotations": results}))
    read = read_proposals(path)
    np.testing.assert_allclose(read.find("/data/in/a.jpg"), rows)
    assert read.find("elsewhere/b.jpg").shape == (0, 5)  # found none in an image that it knows
    with pytest.raises(DatasetError, match=r"no proposals for 'out/a.jpg'.*first is 'in/a.jpg'"):
        read.find("/data/out/a.jpg")


def test_writing_needs_a_known_suffix_and_a_place(tmp_path):
    with pytest.raises(DatasetError, match=r"written as \.pkl, \.pickle, \.npz"):
        write_proposals(tmp_path / "p.json", {})
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="cannot write"):
        write_proposals(tmp_path / "file" / "p.npz", {})


def test_keys():
    assert image_key("/data/coco/val2017/1.jpg") == "val2017/1.jpg"
    assert image_key("1.jpg") == "1.jpg"


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 700))
def test_grid_boxes_are_distinct_places_within_the_image(height, width, count):
    boxes = grid_proposals((height, width), count)
    assert boxes.shape == (count, 4) and boxes.dtype == np.float32
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
    np.testing.assert_array_equal(boxes[0], [0, 0, width, height])
    np.testing.assert_array_equal(boxes, grid_proposals((height, width), count))


def test_stand_ins_are_for_models_that_take_proposals():
    side = DimRange(1, 64, 64)
    images = [np.zeros((30, 40, 3), np.uint8), np.zeros((10, 10, 3), np.uint8)]
    assert stand_in_proposals(InputSpec(side, side, side), images) == ()
    (given,) = stand_in_proposals(InputSpec(side, side, side, proposals=7), images)
    assert [boxes.shape for boxes in given] == [(7, 4), (7, 4)]
    np.testing.assert_array_equal(given[0], grid_proposals((30, 40), 7))
