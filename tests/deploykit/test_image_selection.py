from __future__ import annotations

import pytest

from deploykit.errors import MediaError, UsageError
from deploykit.image_selection import select_images
from deploykit.input_size import parse_input_size


@pytest.fixture
def folder(tmp_path):
    for name in ("10.png", "2.png", "1.jpg", "notes.txt", "[odd].png"):
        (tmp_path / name).touch()
    return tmp_path


def names(paths):
    return [path.name for path in paths]


def test_a_folder_gives_its_images_in_natural_order(folder):
    assert names(select_images([folder])) == ["1.jpg", "2.png", "10.png", "[odd].png"]


def test_files_and_patterns_keep_the_order_given_and_come_once(folder):
    found = select_images([folder / "2.png", str(folder / "*.jpg"), folder])
    assert names(found) == ["2.png", "1.jpg", "10.png", "[odd].png"]


def test_a_file_whose_name_looks_like_a_pattern(folder):
    assert names(select_images([folder / "[odd].png"])) == ["[odd].png"]


@pytest.mark.parametrize(("limit", "expected"), [(1, [0]), (2, [0, 5]), (3, [0, 3, 6]), (99, None)])
def test_a_limit_spreads_over_all_images(tmp_path, limit, expected):
    for index in range(10):
        (tmp_path / f"{index}.png").touch()
    found = names(select_images([tmp_path], limit))
    assert found == [f"{index}.png" for index in (range(10) if expected is None else expected)]


def test_sources_without_images_are_refused(folder):
    with pytest.raises(MediaError, match=r"image file not found: .*none\.png"):
        select_images([folder / "none.png"])
    with pytest.raises(MediaError, match="no image matches the pattern"):
        select_images([str(folder / "*.txt")])
    with pytest.raises(MediaError, match="no file matches the pattern"):
        select_images([str(folder / "*.gif")])
    with pytest.raises(UsageError, match="at least 1"):
        select_images([folder], 0)


def test_input_sizes():
    assert parse_input_size("480x640") == (480, 640)
    assert parse_input_size(" 32X64 ") == (32, 64)
    for wrong in ("640", "640x", "0x640", "640x640x3", "-1x5", "axb"):
        with pytest.raises(UsageError, match="HEIGHTxWIDTH"):
            parse_input_size(wrong)
