from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import ConfigError
from deploykit.training.config import Config, load_config, parse_options


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-3", -3),
        ("0.1", 0.1),
        ("1e-3", 1e-3),
        ("inf", float("inf")),
        ("true", True),
        ("False", False),
        ("None", None),
        ("none", "none"),
        ("", ""),
        ("abc", "abc"),
        ("'abc'", "abc"),
        ('"a b"', "a b"),
        ("data/my runs/x", "data/my runs/x"),
        ("a=b", "a=b"),
        ("1,2,3", [1, 2, 3]),
        ("a,b", ["a", "b"]),
        ("1,", [1]),
        ("[1,2]", [1, 2]),
        ("[1]", [1]),
        ("[]", []),
        ("()", ()),
        ("(1)", (1,)),
        ("(1,2)", (1, 2)),
        ("[a, b, c]", ["a", "b", "c"]),
        ("[(a,b), [1,2], false]", [("a", "b"), [1, 2], False]),
        ("[[1]]", [[1]]),
        ("(1,2),[3]", [(1, 2), [3]]),
        ("[1,2],[3]", [[1, 2], [3]]),
        ("'[1,2]'", [1, 2]),
        ("['x','y z']", ["x", "y z"]),
        ("[(1280, 800), (640.5, 400)]", [(1280, 800), (640.5, 400)]),
        ("run(1", "run(1"),
        ("a)", "a)"),
        ("f(x)", "f(x)"),
        ("{a:1}", "{a:1}"),
    ],
)
def test_values(text, value):
    result = parse_options([f"key={text}"])
    assert repr(result) == repr({"key": value})


def test_the_last_of_equal_keys_counts():
    assert parse_options(["a.b=1", "c=2", "a.b=3"]) == {"a.b": 3, "c": 2}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("a", "the option 'a' is not of the form KEY=VALUE"),
        ("=1", "not of the form KEY=VALUE"),
        ("a..b=1", "'a..b' of an option has an empty part"),
        (".a=1", "empty part"),
        ("a=[1,2", "a ']' is missing in '\\[1,2'"),
        ("a=[1,2)", "'\\)' closes no bracket"),
        ("a=1,2]", "'\\]' closes no bracket"),
        ("a=" + "[" * 100 + "]" * 100, "nested deeper than 50"),
        ("a=" + "9" * 4000, "more than 2048 bits"),
    ],
)
def test_malformed_options(option, message):
    with pytest.raises(ConfigError, match=message):
        parse_options([option])


ELEMENTS = st.recursive(
    st.integers(-999, 999)
    | st.floats(allow_nan=False)
    | st.booleans()
    | st.none()
    | st.from_regex(r"[a-z_/][a-z_/ .]{0,8}[a-z_/]", fullmatch=True).filter(
        lambda text: text not in ("true", "false", "inf", "nan", "infinity")
    ),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=8,
)


@settings(deadline=None, derandomize=True)
@given(ELEMENTS)
def test_reads_what_python_prints(value):
    text = str(value).replace(",)", ")")
    assert repr(parse_options([f"k={text}"])["k"]) == repr(value)


CONFIG = """
model = dict(backbone=dict(depth=50), head=None)
pipeline = [dict(type='Load'), dict(type='Flip', prob=0.5)]
scale = (640, 480)
steps = [8, 11]
"""


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (["model.backbone.depth=18"], "model", {"backbone": {"depth": 18}, "head": None}),
        (
            ["model.neck.type=FPN"],
            "model",
            {"backbone": {"depth": 50}, "head": None, "neck": {"type": "FPN"}},
        ),
        (["model.head=x"], "model", {"backbone": {"depth": 50}, "head": "x"}),
        (
            ["model.backbone._delete_=True", "model.backbone.w=1"],
            "model",
            {"backbone": {"w": 1}, "head": None},
        ),
        (["pipeline.1.prob=0.3"], "pipeline", [{"type": "Load"}, {"type": "Flip", "prob": 0.3}]),
        (["pipeline.0=none"], "pipeline", ["none", {"type": "Flip", "prob": 0.5}]),
        (["scale.1=640"], "scale", (640, 640)),
        (["steps.0=5", "steps.1=6"], "steps", [5, 6]),
        (["steps=[1,2,3]"], "steps", [1, 2, 3]),
        (["new.deep.key=1"], "new", {"deep": {"key": 1}}),
        (
            {"model.backbone": {"depth": 34, "width": (1, 2)}},
            "model",
            {"backbone": {"depth": 34, "width": (1, 2)}, "head": None},
        ),
        ({"pipeline": []}, "pipeline", []),
        ({"steps": {"1": 7}}, "steps", [8, 7]),
    ],
)
def test_options_override_the_config(options, key, value):
    assert repr(Config.from_text(CONFIG, options=options)[key]) == repr(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["pipeline.2.prob=1"], "index out of range in 'pipeline.2': 'pipeline' has 2 elements"),
        (["pipeline.99999999999999=1"], "index out of range in 'pipeline.99999999999999'"),
        (["pipeline.first.prob=1"], "'pipeline' is a list, so 'pipeline.first' needs an index"),
        (["pipeline.-1.prob=1"], "needs an index, not '-1'"),
        (["scale.2=1"], "index out of range in 'scale.2'"),
        (["model.head.x=1"], "'model.head' is a dict here but None in the base"),
        (["model.backbone.depth.x=1"], "'model.backbone.depth' is a dict here but an int"),
        (["a=1", "a.b=2"], "the option 'a.b': an earlier option has set 'a' to a value"),
        (["no name=1"], "the top-level key 'no name' is no Python name"),
        (["filename=x"], "the top-level key 'filename' is reserved"),
        ({"a": object()}, "the option 'a': a config cannot hold a value of type object"),
        ({3: 1}, "keys are names joined by dots"),
        ("a=1", "got a string"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ConfigError, match=message):
        Config.from_text(CONFIG, options=options)


def test_options_of_a_file_and_no_options(tmp_path):
    path = tmp_path / "c.py"
    path.write_text("a = 1")
    assert load_config(path, ["a=2"]) == {"a": 2}
    assert load_config(path, []) == load_config(path, {}) == load_config(path) == {"a": 1}


def test_the_values_of_a_mapping_are_copied():
    value = [1]
    config = Config.from_text("a = 0", options={"a": value})
    value.append(2)
    assert config == {"a": [1]}
