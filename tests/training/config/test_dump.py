from __future__ import annotations

import copy
import keyword
import math
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import ConfigError
from deploykit.training.config import Config, load_config, render
from deploykit.training.recipes import recipe_paths

FRAGMENTS = st.sampled_from(
    ["{{", "}}", " fileBasename ", "_base_.a", "$A:1", "{", "'", '"', "\\", "\n"]
)
TEXTS = st.text() | st.lists(FRAGMENTS | st.characters(), max_size=6).map("".join)
NUMBERS = st.integers(-(2**600), 2**600) | st.floats(allow_nan=False) | st.booleans()
KEYS = (
    TEXTS
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False)
    | st.none()
    | st.sampled_from(["type", "class", "ﬁ", "é"])
)
VALUES = st.recursive(
    st.none() | NUMBERS | TEXTS | st.sets(st.integers(0, 9) | st.text(max_size=2), max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=25,
)
RESERVED = {"dict", "float", "set", "text", "filename", *keyword.kwlist}
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True).filter(
    lambda name: name not in RESERVED
)


@settings(deadline=None, derandomize=True)
@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_dumped_text_reads_back_equal(values):
    config = Config(values)
    again = Config.from_text(config.dumps())
    assert again == config
    assert list(again) == list(config)
    assert again.dumps() == config.dumps()
    assert same_types(again, config)


def same_types(left, right) -> bool:
    if isinstance(left, dict):
        return all(same_types(a, b) for a, b in zip(left.values(), right.values(), strict=True))
    if isinstance(left, list | tuple):
        return type(left) is type(right) and all(map(same_types, left, right))
    return type(left) is type(right)


@pytest.mark.parametrize("name", recipe_paths())
def test_recipes_read_back_equal(name):
    config = load_config(recipe_paths()[name])
    again = Config.from_text(config.dumps())
    assert repr(dict(again)) == repr(dict(config))


def test_not_a_number_reads_back():
    assert math.isnan(Config.from_text(Config({"a": math.nan}).dumps())["a"])


def test_layout():
    config = Config.from_text(
        "a = 1\nb = dict(type='X', n=(1,))\nc = {'a-b': [], 'class': {2, 1}}\n"
        "long = dict(names=['first element', 'second element'], "
        "other=dict(key='a long value', more='another one'))"
    )
    assert config.dumps() == (
        "a = 1\n"
        "b = dict(type='X', n=(1,))\n"
        "c = {'a-b': [], 'class': {1, 2}}\n"
        "long = dict(\n"
        "    names=['first element', 'second element'],\n"
        "    other=dict(key='a long value', more='another one'),\n"
        ")\n"
    )
    assert render(config["b"]) == "dict(type='X', n=(1,))"


def test_text_that_looks_like_a_template_stays_text(monkeypatch):
    monkeypatch.setenv("DK_X", "filled")
    for text in ("{{ fileBasename }}", "x{{$DK_X:1}}{{_base_.y}}", "{{{{$DK_X:1}}}}"):
        assert Config.from_text(Config({"a": [text], "b": {text: 1}}).dumps()) == {
            "a": [text],
            "b": {text: 1},
        }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a b": 1}, "the top-level key 'a b' is no Python name"),
        ({"class": 1}, "the top-level key 'class' is no Python name"),
        ({3: 1}, "the top-level key 3 is no Python name"),
        ({"dict": 1}, "the top-level key 'dict' is reserved"),
        ({"_base_": 1}, "the top-level key '_base_' is reserved"),
        ({"__x": 1}, "the top-level key '__x' is reserved"),
        ({"ﬁ": 1}, "characters that Python would replace"),
        ({"a": [object()]}, "a config cannot hold <object"),
        ({"a": {"b": len}}, "a config cannot hold <built-in"),
        ({"a": 2**5000}, "a config cannot hold"),
    ],
)
def test_what_has_no_form_in_the_dialect(values, message):
    with pytest.raises(ConfigError, match=message):
        Config(values).dumps()


def test_a_config_in_itself_is_refused():
    config = Config({"a": []})
    config["a"].append(config["a"])
    with pytest.raises(ConfigError, match="nested deeper than"):
        config.dumps()


def test_copies_and_pickles_keep_file_and_origins(tmp_path):
    path = tmp_path / "c.py"
    path.write_text("a = dict(b=[1])")
    config = load_config(path)
    for other in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert isinstance(other, Config)
        assert other == config
        assert other["a"] is not config["a"]
        assert (other.filename, other.origins) == (str(path), config.origins)


def test_text_without_file():
    config = Config.from_text("a = 1")
    assert config.filename is None
    assert Config.from_text("a = 1", "x/y.py").filename == "x/y.py"
