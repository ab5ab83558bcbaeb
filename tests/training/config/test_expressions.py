"""Every construct of the dialect against Python itself, which executes the same text."""

# ruff: noqa: E501 - the programs are easier to read on one line

from __future__ import annotations

import math
from types import FunctionType, ModuleType

import pytest

from deploykit.errors import ConfigError
from deploykit.training.config import Config


def executed(text: str) -> dict:
    names: dict = {}
    exec(text, names)
    return {
        key: value
        for key, value in names.items()
        if not key.startswith("__") and not isinstance(value, ModuleType | FunctionType)
    }


PROGRAMS = {
    "literals": "a = 1; b = -2.5; c = 'x'; d = None; e = True; f = 0x1F; g = 1_000; h = 1e-3",
    "containers": "a = [1, (2, 3), {'k': {4, 5}}, [], (), {}]; b = dict(x=1, y=dict(z=[1]))",
    "one element tuple": "a = (1,); b = 1, 2",
    "strings": "a = 'x' 'y'; b = r'\\d'; c = '''l1\nl2'''; d = '\\n\\x41\\u00e9'; e = '日本'",
    "dict calls": "p = dict(a=1); q = dict(p, b=2); r = dict(**p, c=3); s = dict([('d', 4), ('e', 5)])",
    "dict unpacking": "p = {'a': 1}; q = {**p, 'b': 2, **{'a': 3}}",
    "empty calls": "a = dict(); b = list(); c = tuple(); d = str(); e = int(); f = set(); g = bool()",
    "arithmetic": "a = 7 + 2 - 1; b = 7 * 2 / 4; c = 7 // 2; d = -7 % 3; e = 2 ** 10; f = 1 << 4 | 1",
    "bits": "a = ~5; b = 6 & 3; c = 6 ^ 3; d = 256 >> 2; e = +3; f = not 0",
    "big and negative powers": "a = 2 ** -2; b = 10 ** 100; c = 2.0 ** 0.5; d = (-2) ** 3",
    "comparisons": "a = 1 < 2 <= 2 != 3; b = 1 > 2 == 3; c = 'a' in 'abc'; d = 2 not in [1]; e = None is None",
    "boolean": "a = 0 or 'x'; b = 1 and []; c = not [] and (2 or 3)",
    "conditional": "a = 1 if [] else 2; b = 'y' if a == 2 else 'n'",
    "sequences": "a = [1] + [2] * 2; b = (1,) + (2,); c = 'ab' * 2; d = 2 * [0]; e = {1, 2} | {3} - {1}",
    "dict union": "a = {'x': 1, 'y': 2} | {'y': 3}; a |= {'z': 4}",
    "indexing": "a = [1, 2, 3, 4]; b = a[0]; c = a[-1]; d = a[1:3]; e = a[::-1]; f = 'abc'[1]; g = (1, 2)[:1]",
    "slice assignment": "a = [0, 1, 2, 3]; a[1:3] = [9]; a[0] = 'z'; b = {'k': [1]}; b['k'][0] = 2; b['n'] = 3",
    "deletion": "a = [1, 2, 3]; del a[0]; b = {'x': 1, 'y': 2}; del b['x']; c = 1; del c; d = [1, 2]; del d[:1]",
    "augmented": "a = 1; a += 2; b = [1]; c = b; b += (2,); d = 'x'; d *= 3; e = {'n': 1}; e['n'] -= 5; f = [2]; f[0] **= 3",
    "unpacking": "a, b = 1, 2; (c, d), *e = (3, 4), 5, 6; [f, *g, h] = 'wxyz'; i = j = [0]; i.append(1)",
    "starred": "a = [1, 2]; b = [*a, 3, *'xy']; c = (*a,); d = max(*a, 0)",
    "comprehensions": (
        "n = 2; a = [i * n for i in range(4) if i % 2]; b = {k: v for k, v in zip('ab', [1, 2])};"
        "c = [(i, j) for i in range(2) for j in range(i)]; d = {i % 2 for i in range(5)};"
        "e = sum(i for i in range(5)); f = {f'k{i}': [i] for i in range(2)}"
    ),
    "scope of comprehensions": "i = 'kept'; a = [i for i in range(3)]; b = [[i for i in range(j)] for j in range(3)]",
    "for": "a = []\nfor i, name in enumerate(['x', 'y']):\n    a.append(dict(index=i, name=name))",
    "for, break, continue, else": (
        "a = []\nfor i in range(9):\n    if i == 2:\n        continue\n    if i > 4:\n        break\n"
        "    a.append(i)\nelse:\n    a.append('no')\nfor j in []:\n    pass\nelse:\n    b = 'else'"
    ),
    "if": "a = 3\nif a > 5:\n    b = 'big'\nelif a > 2:\n    b = 'middle'\nelse:\n    b = 'small'",
    "guarded script": "a = 1\nif __name__ == '__main__':\n    import argparse\n    def main(): pass\n    main()",
    "annotations": "a: int = 3\nb: list[str] = ['x']",
    "list methods": (
        "a = [3, 1]; a.append(2); a.extend((5, 4)); a.insert(0, 9); b = a.pop(); c = a.pop(0); a.sort();"
        "a.reverse(); a.remove(1); d = a.index(2); e = a.count(3); f = a.copy(); a.clear(); g = [2, 1]; g.sort(reverse=True)"
    ),
    "dict methods": (
        "a = dict(x=1); a.update(y=2); a.update({'z': 3}, w=4); b = a.pop('x'); c = a.pop('nope', 0);"
        "d = a.get('y'); e = a.get('nope'); f = a.get('nope', 7); g = a.setdefault('q', []); g.append(1);"
        "h = list(a); i = list(a.keys()); j = list(a.values()); k = list(a.items()); m = a.copy(); a.clear()"
    ),
    "string methods": (
        "a = 'a,b'.split(','); b = '-'.join(a); c = ' X '.strip().lower(); d = 'abc'.replace('b', 'BB');"
        "e = 'ab'.startswith('a'), 'ab'.endswith(('x', 'b')); f = 'a.b.c'.rsplit('.', 1); g = 'ab'.upper().title();"
        "h = '7'.zfill(3); i = 'a=b'.partition('='); j = 'x'.center(5, '*'); k = 'aXbX'.count('X'), 'abc'.find('c')"
    ),
    "format": (
        "a = '{}-{}'.format(1, 'x'); b = '{1}{0}{1}'.format(1, 2); c = '{n:>5}|{p:.2f}'.format(n=1, p=2.345);"
        "d = '{!r:<6}|'.format('q'); e = '{:{}}'.format('x', 4); f = '{{}}'.format()"
    ),
    "percent": "a = '%s %d %5.1f %%' % ('x', 3, 2.25); b = '%(n)s' % dict(n=1); c = '%r' % [1]; d = '%-4s|' % 'a'",
    "f-strings": "n = 3; p = 0.5; a = f'{n}'; b = f'{n:03d} {p!r} {n + 1}'; c = f'{{{n}}}'; d = f'{n=}'; e = f'{p:{n}.1f}'",
    "numbers": (
        "a = int('7'), int(2.9), float('1e3'), abs(-2), round(2.567, 2), round(2.5), bool([]), str(1.0);"
        "b = min(3, 1), max([1, 4]), min([], default=0), sum([1, 2], 10), divmod(7, 2), int('ff', 16)"
    ),
    "sequences by functions": (
        "a = sorted([3, 1, 2], reverse=True); b = list(reversed([1, 2])); c = list(zip([1, 2], 'ab'));"
        "d = list(enumerate('ab', 1)); e = list(range(2, 10, 3)); f = tuple(x for x in [1, 2]); g = len('abc');"
        "h = any([0, 1]), all([1, 0]); i = sum([[1], [2]], []); j = list(range(5))[::2]"
    ),
    "sets": "a = {1}; a.add(2); a.update([3]); a.discard(1); b = a.union({9}); c = 2 in a; d = sorted(a & {2, 3})",
    "aliases": "a = [1]; b = dict(x=a, y=a); b['x'].append(2); c = {'p': b}; c['p']['x'].append(3)",
    "deep copies": (
        "import copy\nfrom copy import deepcopy\na = [dict(x=[1])]; b = copy.deepcopy(a); b[0]['x'].append(2);"
        "c = deepcopy(a); c.append(1); d = copy.copy(a); d[0]['y'] = 3; e = [a[0], a[0]]; f = copy.deepcopy(e); f[0]['z'] = 1"
    ),
    "os.path and math": (
        "import math, os.path as osp\nimport os.path\na = osp.join('data', 'coco/', 'x.json'); b = os.path.basename('a/b.py');"
        "c = osp.splitext('a/b.py'); d = math.ceil(7 / 2), math.sqrt(4), math.pi; e = math.log2(8)"
    ),
    "infinities": "a = float('inf'); b = -float('inf'); c = [1e999]",
}


@pytest.mark.parametrize("text", PROGRAMS.values(), ids=PROGRAMS)
def test_means_what_it_means_to_python(text):
    expected = executed(text)
    config = Config.from_text(text)
    assert repr(dict(config)) == repr(expected)


def test_helper_imports_leave_no_keys():
    assert dict(Config.from_text("import copy, math\nfrom os import path as osp\na = 1")) == {
        "a": 1
    }


def test_names_that_begin_with_two_underscores_are_private():
    text = "__scale = 2\na = __scale * 3\n_kept = 1"
    assert dict(Config.from_text(text)) == {"a": 6, "_kept": 1}


def test_containers_are_builtin_types_and_share_nothing():
    config = Config.from_text("p = dict(a=[1, (2,)])\nq = [p, p]")
    assert type(config["p"]) is dict
    assert type(config["p"]["a"]) is list
    assert type(config["p"]["a"][1]) is tuple
    config["q"][0]["a"].append(3)
    assert config["q"][1] == config["p"] == {"a": [1, (2,)]}


def test_bare_inf_and_nan_as_in_the_dumps_of_mmengine():
    config = Config.from_text("a = inf\nb = [-inf, nan]\ninf_name = 1")
    assert config["a"] == math.inf
    assert config["b"][0] == -math.inf
    assert math.isnan(config["b"][1])
    assert Config.from_text("inf = 3\na = inf")["a"] == 3


def test_sets_are_iterated_in_sorted_order():
    assert Config.from_text("a = [x for x in {'c', 'a', 'b'}]")["a"] == ["a", "b", "c"]


def test_windows_newlines_and_a_byte_order_mark():
    assert dict(Config.from_text("\ufeffa = 1\r\nb = [\r\n2]\r\n")) == {"a": 1, "b": [2]}


@pytest.mark.parametrize(
    ("text", "message", "line", "column"),
    [
        ("a = 1\nb = a + missing", "the name 'missing' is not defined", 2, 9),
        ("model = 1\nb = modle", "did you mean 'model'?", 2, 5),
        (
            "a = dict(depth=1)\nb = a['dept']",
            "the dict has no key 'dept'; did you mean 'depth'",
            2,
            5,
        ),
        ("a = [1][2]", "list index out of range", 1, 5),
        ("a = dict(b=1)\nc = a.b", "write ['b']", 2, 5),
        ("a = 1 / 0", "division by zero", 1, 5),
        ("a = 2.0 ** 1000000", "out of range", 1, 5),
        ("a = '日本' + 1", "'+' is not defined for a str and an int", 1, 5),
        ("日本 = 1; a = 日本 + x", "the name 'x' is not defined", 1, 18),
        ("a = [1] < 2", "a list cannot be compared with an int", 1, 5),
        ("a = -[]", "not defined for a list", 1, 5),
        ("a = sorted([1, 'x'])", "no order", 1, 5),
        ("a = len(1, 2)", "too many positional arguments", 1, 5),
        ("a = str(b=1)", "unexpected keyword argument 'b'", 1, 5),
        ("a = dict(x=1, **{'x': 2})", "the argument 'x' is given twice", 1, 15),
        ("a = dict(**{1: 2})", "need strings as names", 1, 10),
        ("a = '%(n)s' % dict(m=1)", "there is no key 'n'", 1, 5),
        ("a, b = [1]", "2 names cannot take 1 values", 1, 1),
        ("*a, *b = [1]", "only one target can have a star", 1, 1),
        ("a = (1, 2)\na[0] = 3", "elements of a tuple cannot be assigned", 2, 1),
        ("a = 5\nfor x in a:\n    pass", "an int cannot be iterated", 2, 10),
        ("if 1:\n    b = [1,\n         undefined]", "'undefined' is not defined", 3, 10),
        ("a = zip([1], [2])", "wrap it in list()", 1, 1),
        ("a = range(3)", "wrap it in list()", 1, 1),
        ("a = {(1, 2): 3}", "dict keys and set elements must be strings", 1, 5),
        ("break", "'break' outside a loop", 1, 1),
        ("dict = 5", "'dict' is a function of the dialect", 1, 1),
        ("filename = 'x'", "the key 'filename' is reserved", 1, 1),
        ("a = dict(b=[1, 2)", "not valid Python", 1, 17),
    ],
)
def test_errors_name_the_place_and_what_is_wrong(text, message, line, column):
    with pytest.raises(ConfigError) as info:
        Config.from_text(text, "folder/x.py")
    assert message in str(info.value)
    assert (info.value.filename, info.value.line, info.value.column) == (
        "folder/x.py",
        line,
        column,
    )
    assert str(info.value).startswith(f"folder/x.py:{line}:{column}: ")
