from __future__ import annotations

import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import ConfigError
from deploykit.training.config import Config, Origin, load_config

yaml = pytest.importorskip("yaml")


def test_yaml_with_bases_and_templates(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_TEST_RATE", "0.25")
    (tmp_path / "base.py").write_text("model = dict(a=1, b=[1, 2])\nlr = 0.5")
    path = tmp_path / "c.yaml"
    path.write_text(
        "_base_: [./base.py]\n"
        "model:\n  a: 2\n  n: null\n"
        "b: {{ _base_.model.b }}\n"
        "rate: {{ $DEPLOYKIT_TEST_RATE:1 }}\n"
        'name: "{{ fileBasename }} of {{ _base_.lr }}"\n'
        "é: [on, 'é', 1e-3]\n"
    )
    config = load_config(path)
    assert config == {
        "model": {"a": 2, "b": [1, 2], "n": None},
        "lr": 0.5,
        "b": [1, 2],
        "rate": 0.25,
        "name": "c.yaml of 0.5",
        "é": [True, "é", "1e-3"],  # YAML 1.1 wants a dot in a number with an exponent
    }
    assert config.origins["model.a"] == Origin(str(path), 3, 3)
    assert config.origins["model.b.1"] == Origin(str(tmp_path / "base.py"), 1, 25)
    assert config.origins["é.1"] == Origin(str(path), 8, 9)


def test_a_yaml_base_of_a_python_config(tmp_path):
    (tmp_path / "base.yml").write_text("common: &c {x: 1}\ndata:\n  <<: *c\n  root: y")
    (tmp_path / "c.py").write_text("_base_ = 'base.yml'\nroot = _base_.data.root")
    assert load_config(tmp_path / "c.py") == {
        "common": {"x": 1},
        "data": {"x": 1, "root": "y"},
        "root": "y",
    }


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text().filter(lambda text: "{{" not in text),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text("ab{ ,:-", max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(VALUES)
def test_values_are_those_of_a_safe_load(value):
    text = yaml.safe_dump({"key": value}, allow_unicode=True)
    assert Config.from_text(text, "x.yaml") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['true']", "x.yaml:1:4: the YAML tag 'python"),
        ("a: !!python/name:os.system", "cannot stand in a config"),
        ("a: 2020-01-01", "the YAML tag 'timestamp' cannot"),
        ("a: !!binary aGk=", "the YAML tag 'binary' cannot"),
        ("a: !!set {b}", "the YAML tag 'set' cannot"),
        ("a: [1", "not valid YAML: expected ',' or ']'"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("", "the config is empty"),
        ("[1, 2]", "must be a mapping"),
        ("a: {{ import }}", "no known template"),
        ("a: &x [*x]", "nested deeper"),
        ("__class__: 1\n_base_: none.py", "does not exist"),
    ],
)
def test_refusals(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_aliases_that_explode_are_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    start = time.perf_counter()
    with pytest.raises(ConfigError, match="steps to evaluate"):
        load_config(path)
    assert time.perf_counter() - start < 30


def test_without_pyyaml(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    path = tmp_path / "x.yaml"
    path.write_text("a: 1")
    with pytest.raises(ConfigError, match=r"needs PyYAML: pip install pyyaml, or convert it"):
        load_config(path)
