from __future__ import annotations

from pathlib import Path

import pytest

from deploykit.training.config import Config, Origin, load_config
from deploykit.training.recipes import recipe_paths


def origins(text: str, **options) -> dict[str, str]:
    """The origins of a text as ``line:column``."""
    config = Config.from_text(text, **options)
    assert all(origin.file in ("<text>", "<options>") for origin in config.origins.values())
    return {key: f"{origin.line}:{origin.column}" for key, origin in config.origins.items()}


def leaves(value, path):
    if not (isinstance(value, dict | list | tuple) and value):
        yield path
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(item, f"{path}.{key}" if path else str(key))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = 1\nb = 2\na = 3", {"a": "3:1", "b": "2:1"}),
        ("a = dict(x=1,\n  y=dict(z=2))", {"a.x": "1:10", "a.y.z": "2:10"}),
        ("a = {\n 'x': 1,\n 'y': [\n  5, (6,)]}", {"a.x": "2:2", "a.y.0": "4:3", "a.y.1.0": "4:7"}),
        ("a = []\nb = dict()\nc = ()\nd = {1}", {"a": "1:1", "b": "2:1", "c": "3:1", "d": "4:1"}),
        ("n = 5\na = dict(x=n)", {"n": "1:1", "a.x": "2:10"}),
        ("p = [\n dict(t=1)]\na = dict(q=p)", {"p.0.t": "2:7", "a.q.0.t": "2:7"}),
        ("a = dict(x=1)\na['x'] = 2\na['y'] = 3", {"a.x": "2:1", "a.y": "3:1"}),
        ("a = [1, 2]\na[1] = 3\na += [\n4]", {"a.0": "1:6", "a.1": "2:1", "a.2": "4:1"}),
        ("a = [1]\na.append(2)\na.insert(0, 3)", {"a.0": "3:1", "a.1": "1:6", "a.2": "2:1"}),
        (
            "a = [2, 1]\na.sort()\nb = sorted(a)",
            {"a.0": "1:9", "a.1": "1:6", "b.0": "1:9", "b.1": "1:6"},
        ),
        (
            "a = [1, 2, 3]\ndel a[0]\nb = a[::-1]",
            {"a.0": "1:9", "a.1": "1:12", "b.0": "1:12", "b.1": "1:9"},
        ),
        ("a = [1] * 2 + [3]", {"a.0": "1:6", "a.1": "1:6", "a.2": "1:16"}),
        ("a = (1,) + (\n2,)", {"a.0": "1:6", "a.1": "2:1"}),
        ("a = [\n i for i in range(2)]", {"a.0": "2:2", "a.1": "2:2"}),
        ("a = {k: 1\n for k in 'xy'}", {"a.x": "1:6", "a.y": "1:6"}),
        ("a = dict(x=1)\nb = dict(**a,\n y=2)", {"a.x": "1:10", "b.x": "1:10", "b.y": "3:2"}),
        (
            "a = dict(x=1, y=2)\na.update(\n dict(y=3), z=4)",
            {"a.x": "1:10", "a.y": "3:7", "a.z": "2:1"},
        ),
        ("a = dict(x=1, y=2)\na.pop('x')\ndel a['y']", {"a": "1:1"}),
        ("a, *b = 1, 2", {"a": "1:1", "b.0": "1:12"}),
        ("for i in [1]:\n  a = i", {"i": "1:5", "a": "2:3"}),
        ("é = dict(日本=1, a=2)", {"é.日本": "1:10", "é.a": "1:16"}),
        ("a = 1; a += 1", {"a": "1:8"}),
        ("import copy\na = [1]\nb = copy.deepcopy(a)", {"a.0": "2:6", "b.0": "2:6"}),
    ],
)
def test_where_a_value_was_set_last(text, expected):
    assert origins(text) == expected


def test_origins_through_bases_deletes_and_options(tmp_path):
    base, middle, child = (str(tmp_path / f"{name}.py") for name in ("base", "middle", "child"))
    Path(base).write_text(
        "m = dict(a=1, b=dict(x=1, y=2), c=dict(p=1))\npipe = [dict(t=1),\n dict(t=2)]"
    )
    Path(middle).write_text("_base_ = 'base.py'\nm = dict(b=dict(y=3))\n_base_.pipe[1].t = 4\n")
    Path(child).write_text(
        "_base_ = ['middle.py']\nm = dict(c=dict(_delete_=True, q=5))\nsame = _base_.pipe\n"
        "_base_.m.b.z = 6\n_base_.m.update(dict(\n  a=7))\ncopy = {{_base_.m.b}}\n"
    )
    config = load_config(child, ["m.b.x=8", "pipe.0.u=9", "new.k=1"])
    assert config.origins == {
        "m.a": Origin(child, 6, 3),
        "m.b.x": Origin("<options>", 1, 1),
        "m.b.y": Origin(middle, 2, 17),
        "m.b.z": Origin(child, 4, 1),
        "m.c.q": Origin(child, 2, 32),
        "pipe.0.t": Origin(base, 2, 14),
        "pipe.0.u": Origin("<options>", 2, 1),
        "pipe.1.t": Origin(middle, 3, 1),
        "same.0.t": Origin(base, 2, 14),
        "same.1.t": Origin(middle, 3, 1),
        "copy.x": Origin(base, 1, 22),
        "copy.y": Origin(middle, 2, 17),
        "copy.z": Origin(child, 4, 1),
        "new.k": Origin("<options>", 3, 1),
    }
    assert str(config.origins["m.a"]) == f"{child}:6:3"


@pytest.mark.parametrize("name", recipe_paths())
def test_every_leaf_of_a_recipe_has_an_origin(name):
    config = load_config(recipe_paths()[name])
    assert set(config.origins) == set(leaves(config, ""))
    for origin in config.origins.values():
        line = Path(origin.file).read_text().splitlines()[origin.line - 1]
        assert line[origin.column - 1 :].strip()
