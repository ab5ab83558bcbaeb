from __future__ import annotations

import pytest

from deploykit.errors import ConfigError
from deploykit.training.config import load_config
from deploykit.training.recipes import find_config, recipe_paths


def test_shipped_recipes_are_found_by_name():
    assert find_config("rtmdet_tiny").name == "rtmdet_tiny.py"
    assert find_config("rtmdet_tiny.py") == find_config("rtmdet_tiny")
    assert not any(name.startswith("_") for name in recipe_paths())


@pytest.mark.parametrize("name", recipe_paths())
def test_shipped_recipes_can_be_read(name):
    assert "type" in load_config(find_config(name))["model"]


def test_paths(tmp_path, monkeypatch):
    path = tmp_path / "mine.py"
    path.write_text("a = 1")
    assert find_config(path) == path
    assert find_config(str(path)) == path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_config("~/mine.py") == path
    monkeypatch.chdir(tmp_path)
    assert find_config("mine.py").resolve() == path


def test_a_file_goes_before_a_recipe_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rtmdet_tiny.py").write_text("a = 1")
    assert load_config(find_config("rtmdet_tiny.py")) == {"a": 1}
    assert "model" in load_config(find_config("rtmdet_tiny"))


def test_errors_list_close_names(tmp_path):
    with pytest.raises(ConfigError, match=r"Did you mean rtmdet_tiny.*Shipped recipes: .*rtmdet_s"):
        find_config("rtmdet_tinny")
    with pytest.raises(ConfigError, match="no config file '.*missing.py'"):
        find_config(tmp_path / "missing.py")
    with pytest.raises(ConfigError, match="is a folder"):
        find_config(tmp_path)
