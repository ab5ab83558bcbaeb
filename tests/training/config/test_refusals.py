"""Configs that try to run code, to hang the reader or to exhaust memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from deploykit.errors import ConfigError
from deploykit.training.config import Config, load_config

CODE = [
    "__import__('os').system('touch {mark}')",
    "x = __import__('os').system('touch {mark}')",
    "x = ().__class__.__mro__",
    "x = [].__class__.__base__.__subclasses__()",
    "x = '{{0.__class__}}'.format(1)",
    "x = '{{0[a]}}'.format(dict(a=1))",
    "x = '{{a.b}}'.format(a=1)",
    "x = (lambda: 1)()",
    "x = (y := 5)",
    "x = open('{mark}', 'w')",
    "x = eval('1')",
    "x = exec('1')",
    "x = compile('1', '', 'eval')",
    "x = getattr(1, 'real')",
    "x = globals()",
    "x = type(1)",
    "x = print(1)",
    "x = map(str, [1])",
    "import os; x = os.system('touch {mark}')",
    "import os; os.environ['DEPLOYKIT_MARK'] = '1'",
    "import os; x = os.environ",
    "import os; x = os.getcwd()",
    "from os import system; x = system('touch {mark}')",
    "import subprocess; subprocess.run(['touch', '{mark}'])",
    "import numpy as np; x = np.zeros(3)",
    "import numpy as np; x = np.pi",
    "import copy; x = copy.copy",
    "import copy; x = copy",
    "from mmengine import Config; x = Config.fromfile('a.py')",
    "from os import *",
    "x = dict.__class__",
    "x = [].append",
    "x = len",
    "x = 'a'.__class__",
    "x = 'a'.encode()",
    "x = 'a'.format_map(dict())",
    "x = _base_.__class__",
    "_base_.__class__ = 3",
    "_base_.x.__init__()",
    "x = __builtins__",
    "__builtins__ = 5",
    "x = __file__",
    "@dict\ndef f(): pass",
    "def f(): pass",
    "async def f(): pass",
    "class A: pass",
    "while True: pass",
    "with open('x') as f: pass",
    "with read_base() as f: pass",
    "with read_base(): import os",
    "with read_base(): x = 1",
    "raise ValueError",
    "try:\n    x = 1\nfinally:\n    y = 2",
    "assert False",
    "global x",
    "yield 5",
    "return 5",
    "await x",
    "x = [i async for i in y]",
    "x = 1 @ 2",
    "x = b'bytes'",
    "x = 1j",
    "x = ...",
    "x = (-8) ** 0.5",
]


@pytest.mark.parametrize("text", CODE)
def test_code_is_refused_and_has_no_effect(text, tmp_path):
    mark = tmp_path / "mark"
    # The templates above double their braces, as str.format wants it.
    text = text.format(mark=mark)
    with pytest.raises(ConfigError) as info:
        Config.from_text(text, "evil.py")
    assert info.value.filename == "evil.py"
    assert info.value.line is not None
    assert info.value.column is not None
    assert not mark.exists()
    assert "DEPLOYKIT_MARK" not in os.environ


@pytest.mark.parametrize(
    ("text", "construct"),
    [
        (
            "x = lambda: 1",
            "a lambda cannot stand in a config; allowed expressions: literals, earlier names",
        ),
        (
            "def f(): pass",
            "a function definition cannot stand in a config; allowed statements: assignments",
        ),
        ("x = (y := 5)", "an assignment expression ':=' cannot stand in a config"),
        ("x = 1 @ 2", "the operator '@' cannot stand"),
        ("x = open('f')", "'open()' cannot be called in a config; allowed functions: abs, all"),
        ("x = 'a'.encode()", "a str has no method 'encode' in a config; it has: capitalize"),
        ("import os; x = os.getcwd()", "'os.getcwd()' cannot be called in a config"),
    ],
)
def test_refusals_name_the_construct_and_what_is_allowed(text, construct):
    with pytest.raises(ConfigError) as info:
        Config.from_text(text)
    assert construct in str(info.value)


DOUBLING = "".join(f"{b} = [{a}] * 10\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
EXPENSIVE = {
    "string repetition": "x = 'a' * 10**10",
    "list repetition": "x = [0] * 10**10",
    "tuple repetition": "x = 10**10 * (0,)",
    "power": "x = 10**10**10",
    "shift": "x = 1 << 10**10",
    "squaring": "x = 3\nfor i in range(100): x = x * x",
    "factorial": "x = 1\nfor i in range(1, 10000): x *= i",
    "long integer": "x = int('9' * 4000)",
    "range": "x = list(range(10**10))",
    "loops": "x = [0 for i in range(10000) for j in range(10000) for k in range(10000)]",
    "for": "for i in range(10000):\n    for j in range(10000):\n        pass",
    "concatenation": "s = 'a'\nfor i in range(100): s = s + s",
    "extension": "x = [1]\nfor i in range(100): x += x",
    "slice": "x = [0]\nfor i in range(100): x[:0] = x",
    "padding": "x = 'a'.ljust(10**10)",
    "zeros": "x = 'a'.zfill(10**10)",
    "replacement": "x = ('a' * 10**6).replace('', 'b' * 10**6)",
    "join": "x = ','.join(['a' * 10**5] * 10**5)",
    "percent width": "x = '%999999999d' % 1",
    "percent star": "x = '%*d' % (10**9, 1)",
    "percent with parentheses": "x = '%(a(b))999999999d' % {'a(b)': 1}",
    "percent repeated": "x = '%(a)s' * 10000 % dict(a='b' * 100000)",
    "f-string width": "x = f'{1:999999999}'",
    "nested width": "x = f'{1:>{10**9}}'",
    "format width": "x = '{:{}}'.format(1, 10**9)",
    "sum of lists": "x = sum([[0] * 1000] * 1000, [])",
    "rounding": "x = round(5, -10**9)",
    "shared lists": "a = [0] * 10\n" + DOUBLING,
    "shared lists as text": "a = [0] * 10\n"
    + DOUBLING
    + "x = str(i)\ndel a, b, c, d, e, f, g, h, i",
    "shared lists compared": "a = [0] * 10\n" + DOUBLING + "x = i == [h] * 10",
    "shared lists copied": "a = [0] * 10\n" + DOUBLING + "_base_.x = i",
    "shared lists sorted": "a = [0] * 10\n" + DOUBLING + "x = sorted([i] * 100)",
    "list in itself": "x = []\nx.append(x)",
    "list in itself as text": "x = []\nx.append(x)\ny = str(x)",
    "dict in itself": "x = {}\nx['x'] = x",
    "base in itself": "_base_.x = _base_",
    "deep nesting": "x = [1]\nfor i in range(100000): x = [x]",
    "colliding integers": "x = {i * (2**61 - 1): 0 for i in range(100000)}",
    "colliding tuples": "x = {(-1, -2), (-2, -1)}",
}


READ_ALL = """
import json, resource, sys

from deploykit.errors import ConfigError
from deploykit.training.config import Config

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 2**20,) * 2)
for name, text in json.load(sys.stdin).items():
    try:
        Config.from_text(text)
    except ConfigError as error:
        assert "nested too deeply" not in str(error), (name, error)
    else:
        raise SystemExit(f"{name} was read")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by means of Linux")
def test_expensive_configs_are_refused_in_bounded_memory():
    result = subprocess.run(
        [sys.executable, "-c", READ_ALL],
        input=json.dumps(EXPENSIVE),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (result.returncode, result.stderr) == (0, "")


DEEP = {
    "signs": "x = " + "-" * 100_000 + "1",
    "not": "x = " + "not " * 100_000 + "1",
    "brackets": "x = " + "[" * 100_000 + "]" * 100_000,
    "open brackets": "x = " + "[" * 100_000,
    "sum": "x = 1" + " + 1" * 100_000,
    "power": "x = 1" + " ** 1" * 100_000,
    "attributes": "x = a" + ".b" * 100_000,
    "subscripts": "x = a" + "[0]" * 100_000,
    "calls": "x = a" + "()" * 100_000,
    "conditionals": "x = " + "1 if 1 else " * 50_000 + "1",
    "elif": "if 0:\n    pass\n" + "elif 0:\n    pass\n" * 50_000,
    "dicts": "x = " + "dict(a=" * 100 + "1" + ")" * 100,
    "generators": "x = [1 " + "for i in [1] " * 5_000 + "]",
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
@pytest.mark.timeout(60)
def test_deeply_nested_source_is_refused(text):
    with pytest.raises(ConfigError):
        Config.from_text(text)


SLOW_TO_SEARCH = {
    "open environment templates": "x = '" + "{{$a:" * 150_000 + "'",
    "environment template of spaces": "x = '{{$a:" + " " * 900_000 + "'",
    "open base templates": "x = '" + "{{_base_." * 100_000 + "'",
    "braces": "x = '" + "{" * 900_000 + "'",
    "columns of one long line": "x = ['é', " + "'é', 1, " * 20_000 + "]",
    "percent signs": "x = '" + "%" * 900_000 + "' % ()",
}


@pytest.mark.parametrize("text", SLOW_TO_SEARCH.values(), ids=SLOW_TO_SEARCH)
@pytest.mark.timeout(60)
def test_long_texts_take_linear_time(text):
    try:
        Config.from_text(text)
    except ConfigError as error:
        assert "steps" not in str(error)


@pytest.mark.timeout(60)
def test_unterminated_json_string_takes_linear_time():
    with pytest.raises(ConfigError, match="Unterminated string"):
        Config.from_text('{"a": "' + '\\"' * 400_000, "x.json")


def test_long_text_is_refused():
    with pytest.raises(ConfigError, match="more than 1,000,000 characters"):
        Config.from_text("x = 1\n" * 200_000)


def test_files_that_are_no_configs(tmp_path):
    (tmp_path / "huge.py").write_text("#" * 5_000_000)
    (tmp_path / "latin.py").write_bytes("x = 'é'".encode("latin-1"))
    (tmp_path / "zeros.py").write_bytes(b"x = 1\0")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "x.txt").write_text("a = 1")
    os.mkfifo(tmp_path / "pipe.py")
    for name, message in {
        "huge.py": "more than 1,000,000 characters",
        "latin.py": "not UTF-8 text",
        "zeros.py": "not valid Python",
        "folder.py": "not a regular file",
        "pipe.py": "not a regular file",
        "x.txt": "a config ends in .py, .json, .yaml or .yml",
        "nothing.py": "there is no such config file",
        "zero\0.py": "there is no such config file",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load_config(tmp_path / name)


def test_custom_imports_are_recorded_and_never_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = Config.from_text(
        "custom_imports = dict(imports=['evil_module'], allow_failed_imports=False)"
    )
    assert config["custom_imports"]["imports"] == ["evil_module"]
    assert config.custom_imports == ("evil_module",)
    assert Config.from_text("custom_imports = dict(imports='one')").custom_imports == ("one",)
    assert Config().custom_imports == ()
