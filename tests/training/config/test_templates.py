from __future__ import annotations

import pytest

from deploykit.errors import ConfigError
from deploykit.training.config import Config, load_config


def test_file_variables(tmp_path):
    path = tmp_path / "my_config.v2.py"
    path.write_text(
        "a = '{{ fileBasename }}'\nb = './{{fileBasenameNoExtension}}/x'\nc = '{{fileExtname}}'\n"
        "d = '{{ fileDirname }}/y'\ne = f'{{fileBasename}}-{1}'\nf = {{ fileExtname }}\n"
    )
    assert load_config(path) == {
        "a": "my_config.v2.py",
        "b": "./my_config.v2/x",
        "c": ".py",
        "d": f"{tmp_path.as_posix()}/y",
        "e": "my_config.v2.py-1",
        "f": ".py",
    }


def test_file_variables_are_those_of_the_base_in_the_base(tmp_path):
    (tmp_path / "base.py").write_text("a = '{{fileBasename}}'")
    (tmp_path / "child.py").write_text("_base_ = '{{fileDirname}}/base.py'\nb = '{{fileBasename}}'")
    assert load_config(tmp_path / "child.py") == {"a": "base.py", "b": "child.py"}


def test_file_variables_need_a_file():
    with pytest.raises(ConfigError, match="needs a config that is a file"):
        Config.from_text("a = '{{ fileBasename }}'")
    assert Config.from_text("a = '{{ fileBasename }}'", "q.py") == {"a": "q.py"}


@pytest.mark.parametrize(
    ("expression", "unset", "set_to_90"),
    [
        ("'{{$DK_CLASSES:80}}'", "80", "90"),
        ("'x/{{ $DK_CLASSES:80 }}/y'", "x/80/y", "x/90/y"),
        ("{{$DK_CLASSES:80}}", 80, 90),
        ("{{'$DK_CLASSES:80'}}", 80, 90),
        ('{{ " $DK_CLASSES:80 " }}'.replace('{{ "', '{{"').replace('" }}', '"}}'), 80, 90),
        ("[{{$DK_CLASSES:80}} + 1]", [81], [91]),
        ("f'{{$DK_CLASSES:80}}-{1}'", "80-1", "90-1"),
        ("{{$DK_CLASSES:'data/x'}}", "data/x", 90),
        ("{{$DK_CLASSES:[1, 2]}}", [1, 2], 90),
        ("'{{$DK_CLASSES:80}}{{$DK_OTHER:1}}'", "801", "901"),
    ],
)
def test_environment_variables(monkeypatch, expression, unset, set_to_90):
    monkeypatch.delenv("DK_CLASSES", raising=False)
    assert Config.from_text(f"a = {expression}")["a"] == unset
    monkeypatch.setenv("DK_CLASSES", "90")
    assert Config.from_text(f"a = {expression}")["a"] == set_to_90


@pytest.mark.parametrize("expression", ["'{{$DK_NOTHING:}}'", "{{ $DK_NOTHING: }}"])
def test_an_unset_variable_without_default(monkeypatch, expression):
    monkeypatch.delenv("DK_NOTHING", raising=False)
    with pytest.raises(ConfigError, match="'DK_NOTHING' is empty or not set and has no default"):
        Config.from_text(f"a = {expression}")


def test_the_environment_cannot_smuggle_in_code(monkeypatch, tmp_path):
    mark = tmp_path / "mark"
    monkeypatch.setenv("DK_EVIL", f"__import__('os').system('touch {mark}')")
    with pytest.raises(ConfigError, match="__import__"):
        Config.from_text("a = {{$DK_EVIL:1}}")
    assert not mark.exists()
    assert Config.from_text("a = '{{$DK_EVIL:1}}'")["a"].startswith("__import__")


def test_columns_are_those_of_the_file_behind_templates(monkeypatch):
    monkeypatch.delenv("DK_CLASSES", raising=False)
    with pytest.raises(ConfigError) as info:
        Config.from_text("a = {{$DK_CLASSES:80}} + wrong")
    assert info.value.column == 26


def test_other_double_braces_are_plain_text():
    config = Config.from_text(
        "a = '{{question}}'\nb = '{{x}}'.format()\nc = f'{{y}}'\nd = '{{ a.b }}'"
    )
    assert config == {"a": "{{question}}", "b": "{x}", "c": "{y}", "d": "{{ a.b }}"}


def test_many_variables_in_a_text_with_the_letters_that_mask_them(monkeypatch):
    monkeypatch.delenv("DK_CLASSES", raising=False)
    text = "a = '㐀㐁'\nb = ['{{$DK_CLASSES:7}}', {{$DK_CLASSES:8}}, {{$DK_CLASSES:9}}]"
    assert Config.from_text(text) == {"a": "㐀㐁", "b": ["7", 8, 9]}
