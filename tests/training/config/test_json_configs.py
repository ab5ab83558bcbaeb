from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import ConfigError
from deploykit.training.config import Config, Origin, load_config


def test_json_with_bases_and_templates(tmp_path):
    (tmp_path / "base.py").write_text("model = dict(a=1, b=[1, 2])\nlr = 0.5")
    path = tmp_path / "c.json"
    path.write_text(
        '{\n  "_base_": ["./base.py"],\n  "model": {"a": 2, "n": null},\n'
        '  "b": {{ _base_.model.b }},\n'
        '  "deep": {"x": {"y": {{_base_.lr}}}},\n  "name": "{{ fileBasename }}",\n  "on": true\n}\n'
    )
    config = load_config(path)
    assert config == {
        "model": {"a": 2, "b": [1, 2], "n": None},
        "lr": 0.5,
        "b": [1, 2],
        "deep": {"x": {"y": 0.5}},
        "name": "c.json",
        "on": True,
    }
    assert config.origins["model.a"] == Origin(str(path), 3, 13)
    assert config.origins["model.b.1"] == Origin(str(tmp_path / "base.py"), 1, 25)


def test_a_json_base_of_a_python_config(tmp_path):
    (tmp_path / "base.json").write_text('{"data": {"root": "x"}}')
    (tmp_path / "c.py").write_text("_base_ = 'base.json'\ndata = dict(size=_base_.data.root)")
    assert load_config(tmp_path / "c.py") == {"data": {"root": "x", "size": "x"}}


def test_strings_have_the_escapes_of_json():
    text = r'{"a": "\/ \" \\ \n \u00e9 \ud83d\ude00 é", "b": "C:\\temp"}'
    assert Config.from_text(text, "x.json") == json.loads(text)


def test_numbers():
    config = Config.from_text('{"a": [1, -2.5, 1E3, NaN, Infinity, -Infinity]}', "x.json")
    assert config["a"][:3] == [1, -2.5, 1000.0]
    assert math.isnan(config["a"][3])
    assert config["a"][4:] == [math.inf, -math.inf]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None, derandomize=True)
@given(VALUES, st.sampled_from([None, 2]), st.booleans())
def test_reads_what_json_writes(value, indent, ascii_only):
    text = " " + json.dumps({"a": value}, indent=indent, ensure_ascii=ascii_only)
    assert Config.from_text(text, "x.json") == {"a": value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "a JSON config must be an object"),
        ("{'a': 1}", "1:2: not valid JSON: Expecting property name"),
        ('{"a": 1,}', "not valid JSON"),
        ('{"a": f(1)}', "1:7: not valid JSON: Expecting value"),
        ('{\n "a": 1\n "b": 2}', "3:2: not valid JSON: Expecting ',' delimiter"),
        ('{"a": "x', "not valid JSON"),
        ('{"no name": 1}', "1:2: the top-level key 'no name' is no Python name"),
        ('{"text": 1}', "1:2: the key 'text' is reserved"),
        ("[" * 100_000, "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_errors(text, message):
    with pytest.raises(ConfigError, match=message):
        Config.from_text(text, "x.json")
