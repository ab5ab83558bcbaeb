"""Inheritance by MMEngine's rules; the expected values were worked out from its documentation."""

from __future__ import annotations

import logging

import pytest

from deploykit.errors import ConfigError
from deploykit.training.config import load_config


@pytest.fixture
def write(tmp_path):
    def write_files(**files: str):
        for name, text in files.items():
            path = tmp_path / (name.replace("__", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path / "child.py"

    return write_files


BASE = """
model = dict(type='A', backbone=dict(depth=50, stages=(1, 2)), neck=dict(type='FPN'))
pipeline = [dict(type='Load'), dict(type='Flip', prob=0.5)]
lr = 0.1
"""


def test_dicts_merge_and_everything_else_is_replaced(write):
    child = write(
        base=BASE,
        child="""
_base_ = './base.py'
model = dict(backbone=dict(depth=18), head=dict(n=1))
pipeline = []
""",
    )
    assert load_config(child) == {
        "model": {
            "type": "A",
            "backbone": {"depth": 18, "stages": (1, 2)},
            "neck": {"type": "FPN"},
            "head": {"n": 1},
        },
        "pipeline": [],
        "lr": 0.1,
    }


def test_delete_replaces_a_dict(write):
    text = """_base_ = 'base.py'
model = dict(neck=dict(_delete_=True, type='PAFPN'), backbone=dict(_delete_=False, depth=1))
"""
    config = load_config(write(base=BASE, child=text))
    assert config["model"]["neck"] == {"type": "PAFPN"}
    assert config["model"]["backbone"] == {"depth": 1, "stages": (1, 2)}


def test_delete_is_a_directive_and_never_a_key_of_the_result(write):
    text = """_base_ = 'base.py'
new = dict(_delete_=True, a=1, b=dict(_delete_=True), c=[dict(_delete_=True, d=2)])
"""
    config = load_config(write(base=BASE, child=text))
    assert config["new"] == {"a": 1, "b": {}, "c": [{"d": 2}]}


def test_delete_has_no_effect_beyond_its_file(write):
    child = write(
        base=BASE,
        middle="_base_ = 'base.py'\nnew = dict(_delete_=True, a=1)",
        child="_base_ = 'middle.py'\nmodel = _base_.new\nkeys = list(_base_.new)\nnew = dict(b=2)",
    )
    config = load_config(child)
    assert config["keys"] == ["a"]
    assert set(config["model"]) == {"type", "backbone", "neck", "a"}
    assert config["new"] == {"a": 1, "b": 2}


def test_delete_may_replace_something_else_with_a_dict(write):
    with_delete = "_base_ = 'base.py'\nlr = dict(_delete_=True, a=1)"
    assert load_config(write(base=BASE, child=with_delete))["lr"] == {"a": 1}
    with pytest.raises(
        ConfigError, match=r"child.py:2:1: 'lr' is a dict here but a float in the base"
    ) as info:
        load_config(write(base=BASE, child="_base_ = 'base.py'\nlr = dict(a=1)"))
    assert "_delete_=True" in str(info.value)


def test_the_place_of_a_conflict_deep_in_a_dict(write):
    text = "_base_ = 'base.py'\nmodel = dict(\n    backbone=dict(\n        depth=dict(a=1)))"
    with pytest.raises(
        ConfigError, match=r"child.py:4:9: 'model.backbone.depth' is a dict here but an int"
    ):
        load_config(write(base=BASE, child=text))


def test_several_and_nested_bases(write):
    child = write(
        sub__runtime="_base_ = ['../common/log.py']\nworkers = 2",
        common__log="level = 'INFO'",
        data="data = dict(root='x')",
        child="_base_ = ['sub/runtime.py', './data.py']\ndata = dict(size=1)\nlevel = 'DEBUG'",
    )
    assert load_config(child) == {"workers": 2, "level": "DEBUG", "data": {"root": "x", "size": 1}}


def test_two_bases_may_not_set_the_same_key(write):
    child = write(one="lr = 1", two="\nlr = 2", child="_base_ = ['one.py', 'two.py']")
    with pytest.raises(
        ConfigError,
        match=r"child.py:1:21: two bases set the same key 'lr': .*one.py:1:1 and .*two.py:2:1",
    ):
        load_config(child)


def test_values_of_the_base(write):
    text = """_base_ = 'base.py'
a = _base_.lr * 2
b = _base_.model.backbone['stages']
c = _base_['pipeline'][1].prob
d = {{_base_.model.neck}}
e = [*{{ _base_.pipeline }}, {{_base_.lr}} + 1]
f = 'depth-{{ _base_.model.backbone.depth }}'
g = f'{_base_.lr}-{{_base_.lr}}'
h = dict(x=_base_.model)
"""
    config = load_config(write(base=BASE, child=text))
    assert (config["a"], config["b"], config["c"]) == (0.2, (1, 2), 0.5)
    assert config["d"] == {"type": "FPN"}
    assert config["e"] == [{"type": "Load"}, {"type": "Flip", "prob": 0.5}, 1.1]
    assert (config["f"], config["g"]) == ("depth-50", "0.1-0.1")
    assert config["h"] == {"x": config["model"]}


def test_a_template_gives_a_copy(write):
    text = "_base_ = 'base.py'\na = {{_base_.pipeline}}\na[0]['type'] = 'X'"
    config = load_config(write(base=BASE, child=text))
    assert config["a"][0] == {"type": "X"}
    assert config["pipeline"][0] == {"type": "Load"}


def test_changes_through_base_reach_the_result(write):
    text = """_base_ = 'base.py'
_base_.pipeline[0] = dict(type='Mosaic')
_base_.pipeline.insert(1, dict(type='Pad'))
_base_.model.backbone.depth = 101
_base_.model.backbone.stages += (3,)
del _base_.model.neck
del _base_.lr
detector = _base_.model
detector.type = 'B'
detector.update(dict(backbone=dict(width=2)))
gone = detector.pop('no_such_key')
"""
    config = load_config(write(base=BASE, child=text))
    assert config["pipeline"] == [
        {"type": "Mosaic"},
        {"type": "Pad"},
        {"type": "Flip", "prob": 0.5},
    ]
    expected = {"type": "B", "backbone": {"depth": 101, "stages": (1, 2, 3), "width": 2}}
    assert config["model"] == config["detector"] == expected
    assert "lr" not in config
    assert config["gone"] is None


def test_update_merges_only_dicts_of_the_base(write):
    text = """_base_ = 'base.py'
own = dict(a=dict(x=1))
own.update(dict(a=dict(y=2)))
_base_.model.update(dict(backbone=dict(depth=1), neck=dict(_delete_=True, n=3)))
"""
    config = load_config(write(base=BASE, child=text))
    assert config["own"] == {"a": {"y": 2}}
    assert config["model"]["backbone"] == {"depth": 1, "stages": (1, 2)}
    assert config["model"]["neck"] == {"n": 3}


def test_what_is_stored_in_the_base_is_copied_but_its_own_dicts_are_shared(write):
    text = """_base_ = 'base.py'
new = [dict(a=1)]
_base_.model.extra = new
new.append(2)
same = _base_.model.neck
_base_.model.other = same
same.type = 'T'
attribute = _base_.model.extra[0].a
"""
    config = load_config(write(base=BASE, child=text))
    assert config["model"]["extra"] == [{"a": 1}]
    assert config["model"]["neck"] == config["model"]["other"] == {"type": "T"}
    assert config["attribute"] == 1


def test_the_order_of_keys_is_base_first(write):
    config = load_config(write(base="b = 1\na = 2", child="_base_ = 'base.py'\nz = 0\na = 3"))
    assert list(config) == ["b", "a", "z"]


def test_the_result_does_not_depend_on_what_was_read_before(write):
    child = write(base=BASE, child="_base_ = 'base.py'\n_base_.pipeline.append(1)")
    first = load_config(child)
    first["pipeline"].clear()
    assert len(load_config(child)["pipeline"]) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_base_ = 'missing.py'", r"child.py:1:10: the base config '.*missing.py' does not exist"),
        ("_base_ = ['base.py', 'gone.py']", r"child.py:1:22: the base config '.*gone.py'"),
        ("_base_ = 5", r"child.py:1:10: '_base_' must be a path or a list of paths, got 5"),
        ("_base_ = 'base.py'\n_base_ = 'base.py'", r"child.py:2:1: '_base_' is assigned twice"),
        ("if 1:\n    _base_ = 'base.py'", r"child.py:2:5: '_base_' can only be assigned once"),
        ("_base_ = 'child.py'", r"child.py:1:10: the bases form a circle: child.py -> child.py"),
        (
            "_base_ = 'loop.py'",
            r"loop.py:1:10: the bases form a circle: child.py -> loop.py -> child.py",
        ),
        ("_base_ = '/dev/null'", r"child.py:1:10: the base cannot be read: .*ends in .py, .json, "),
        (
            "_base_ = 'base.py'\na = _base_.modle",
            r"child.py:2:5: the dict has no key 'modle'; did you mean 'model'",
        ),
        (
            "_base_ = 'base.py'\na = {{_base_.model.x}}",
            r"child.py:2:5: '_base_.model.x' does not exist",
        ),
        ("_base_ = 'base.py'\na = '{{_base_.model}}'", r"child.py:2:5: .* without quotes"),
        (
            "_base_ = 'base.py'\nx = [1]\nx.append(x)",
            r"child.py:2:1: the value of 'x': .* contains itself",
        ),
        ("a = {{_base_.x}}", r"the config has no '_base_'"),
        ("a = {{ nothing }}", r"no known template; known are"),
        (
            "_base_ = 'nopackage::_base_/models/x.py'",
            r"1:10: .*would be looked up in nopackage/.mim/configs/ of an installed 'nopackage'",
        ),
        ("_base_ = 'a::b::c.py'", r"write package::folder/x.py"),
    ],
)
def test_errors(write, text, message):
    child = write(base=BASE, loop="_base_ = 'child.py'", child=text)
    with pytest.raises(ConfigError, match=message):
        load_config(child)


def test_an_error_in_a_base_stands_in_the_base(write):
    child = write(base="a = 1\nb = c", child="_base_ = 'base.py'")
    with pytest.raises(ConfigError, match=r"base.py:2:5: the name 'c' is not defined"):
        load_config(child)


def test_a_chain_of_bases_has_a_limit(write):
    files = {f"c{n}": f"_base_ = 'c{n + 1}.py'" for n in range(40)}
    with pytest.raises(ConfigError, match="more than 32 levels of bases"):
        load_config(write(**files, child="_base_ = 'c0.py'"))


def test_files_that_list_one_another_many_times_do_not_hang(write):
    files = {f"c{n}": f"_base_ = ['c{n + 1}.py'] * 100" for n in range(5)}
    with pytest.raises(ConfigError, match="steps to evaluate"):
        load_config(write(**files, c5="", child="_base_ = 'c0.py'"))


def test_a_base_of_an_installed_package(write, tmp_path, monkeypatch):
    folder = tmp_path / "site" / "oddpackage" / ".mim" / "configs" / "models"
    folder.mkdir(parents=True)
    (folder.parents[2] / "__init__.py").write_text("raise SystemExit('imported')")
    (folder / "m.py").write_text("model = dict(type='M')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert load_config(write(child="_base_ = 'oddpackage::models/m.py'")) == {
        "model": {"type": "M"}
    }
    with pytest.raises(ConfigError, match=r"the base config '.*nope.py' does not exist"):
        load_config(write(child="_base_ = 'oddpackage::models/nope.py'"))


def test_a_base_beyond_a_symbolic_link(write, tmp_path):
    write(real__sub__x="a = 1", real__top="b = 2")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "sub")
    (tmp_path / "child.py").write_text("_base_ = ['link/x.py', 'link/../top.py']")
    assert load_config(tmp_path / "child.py") == {"a": 1, "b": 2}


def test_deprecation_is_logged_and_leaves_no_key(write, caplog):
    child = write(old="_deprecation_ = dict(expected='new.py')\na = 1", child="_base_ = 'old.py'")
    with caplog.at_level(logging.WARNING):
        assert load_config(child) == {"a": 1}
    assert "old.py is deprecated; use new.py instead" in caplog.text
