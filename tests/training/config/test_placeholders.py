"""``${key}`` in the strings of a config."""

from __future__ import annotations

import pytest

from deploykit.errors import ConfigError
from deploykit.training.config import Config, Origin


def test_a_string_that_is_a_placeholder_becomes_the_value():
    config = Config.from_text(
        """
size = (640, 480)
model = dict(neck=dict(channels=[1, 2]), flag=None)
a = '${size}'
b = dict(c=['${model.neck}', ('${model.flag}',)])
"""
    )
    assert config["a"] == (640, 480)
    assert config["b"] == {"c": [{"channels": [1, 2]}, (None,)]}
    config["b"]["c"][0]["channels"].append(3)
    assert config["model"]["neck"]["channels"] == [1, 2]  # a copy, not the same list
    assert config.origins["b.c.0.channels.1"] == Origin("<text>", 3, 37)


def test_within_text_it_becomes_text():
    config = Config.from_text("root='data/'; n=3; x='${root}train_${n}.json'; y='${root}${root}'")
    assert (config["x"], config["y"]) == ("data/train_3.json", "data/data/")


def test_placeholders_of_placeholders():
    config = Config.from_text("a='${b}'; b='${c.d}'; c=dict(d='${e}/x'); e='root'")
    assert config == {"a": "root/x", "b": "root/x", "c": {"d": "root/x"}, "e": "root"}


def test_options_count():
    assert Config.from_text("a = 1; b = '${a}'", options=["a=2"])["b"] == 2


@pytest.mark.parametrize("text", ["cost ${", "$a", "${}", "${a b}", "${a", "{a}"])
def test_other_dollars_are_text(text):
    assert Config.from_text(f"a = 1; b = {text!r}")["b"] == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = '${b}'", "'${b}' names no key of the config"),
        ("a = '${b.c}'; b = 1", "'${b.c}' names no key"),
        ("a = '${a}'", "'${a}' refers to itself"),
        ("a = '${b}'; b = '${a}'", "refers to itself"),
        ("a = dict(b='${a}')", "refers to itself"),
        ("a = [1]; b = 'x${a}'", "'${a}' within text is a list"),
        ("a = '${b.__class__}'; b = dict()", "names no key"),
    ],
)
def test_refusals(text, message):
    with pytest.raises(ConfigError) as caught:
        Config.from_text(text)
    assert message in str(caught.value) and str(caught.value).startswith("<text>:1:")


def test_placeholders_that_explode_are_refused():
    lines = ["a0 = 'x' * 100"] + [f"a{i} = ['${{a{i - 1}}}'] * 10" for i in range(1, 9)]
    with pytest.raises(ConfigError, match="steps to evaluate"):
        Config.from_text("\n".join(lines))
