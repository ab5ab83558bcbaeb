"""Random programs against Python, and random damage against the promise of one kind of error."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import ConfigError
from deploykit.training.config import Config, load_config
from deploykit.training.recipes import recipe_paths

START = """a = [1, 2, 3]
b = dict(x=1, y=[2])
c = 'ab,c'
d = 3
e = [0.5]
f = 'F'
g = 2
h = []
k = {}
"""
SLICES = (":", "1:", ":-1", "::-1", "::2", "0:2", "-2:")
# In a form, {num}, {nums}, {str}, {list}, {dict}, {bool}, {any} and {slice} stand for random
# expressions of that kind; nums is a sequence of numbers. The first tuple has the atoms.
FORMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "bool": (
        ("True", "False"),
        (
            "({num} < {num})", "({num} <= {num} != {num})", "({any} == {any})",
            "({any} is not None)", "({any} in {list})", "({str} not in {str})",
            "({str} in {dict})", "(not {any})", "bool({any})", "{str}.startswith({str})",
            "any({list})", "all(x for x in {list})",
        ),
    ),
    "num": (
        ("0", "1", "2", "3", "-3", "7", "0.5", "1e2", "True", "d", "g"),
        (
            "({num} + {num})", "({num} - {num})", "({num} * {num})", "({num} / {num})",
            "({num} // {num})", "({num} % {num})", "(-{num})", "2 ** ({num} % 5)", "(d & 3)",
            "(5 | g)", "(g << 2)", "(~d)", "len({list})", "len({str})", "len({dict})",
            "abs({num})", "int({num})", "float({num})", "round({num})", "round({num}, 1)",
            "max({num}, {num})", "min([{num}, {num}])", "sum({nums})",
            "({num} if {any} else {num})", "({num} and {num})", "({num} or {num})", "{nums}[0]",
            "{nums}[-1]", "b.get('x', {num})", "{list}.count({num})",
        ),
    ),
    "nums": (
        ("[1, 2, 3]", "a", "[0.5]", "(4, 5)", "list(range(4))"),
        (
            "[{num}, {num}]", "[x * {num} for x in {nums}]", "[x for x in {nums} if x > {num}]",
            "sorted({nums})", "sorted({nums}, reverse=True)", "list({nums})", "tuple({nums})",
            "[i + x for i, x in enumerate({nums})]", "{nums}[{slice}]", "[len({str})] * 2",
        ),
    ),
    "str": (
        ("'x'", "''", "'ab,c'", "'%s'", "c", "f", "'é𝒳'", '"it\'s"', "'A b'"),
        (
            "({str} + {str})", "({str} * 2)", "{str}.upper()", "{str}.title()", "{str}.strip()",
            "{str}.replace('a', {str})", "{str}.zfill(4)", "{str}.center(5)",
            "{str}.rjust(3, '*')", "{str}.removeprefix('x')", "str({any})",
            "f'<{{c}}|{{d:>4}}|{{g!r:<6}}|{{c:{{g}}}}>'", "'{{}}-{{}}'.format({any}, {any})",
            "'{{0}}{{k!r}}{{0:>5}}'.format({str}, k={any})", "('%s|%r' % ({any}, {any}))",
            "('%d %5.2f' % ({num}, {num}))", "('%(p)s' % dict(p={any}))",
            "{str}.join([{str}, {str}])", "{str}[{slice}]", "({str} if {any} else {str})",
            "'_'.join(str(x) for x in {list})",
        ),
    ),
    "list": (
        ("[]", "a", "h", "e", "[1, None]", "()", "('x',)"),
        (
            "[{any}, {any}]", "({any}, {any})", "[{any}]", "(list({list}) + {list})",
            "[*{list}, {any}]", "({list} * 2)", "[{any} for y in {list}]",
            "[(x, y) for x in {nums} for y in {list} if x]", "{str}.split(',')", "{str}.split()",
            "list({dict})", "list({dict}.values())", "list({dict}.items())",
            "list(zip({list}, {list}))", "list(reversed({list}))", "{list}[{slice}]",
            "[[v, k] for k, v in {dict}.items()]", "{nums}", "h.copy()",
        ),
    ),
    "dict": (
        ("dict()", "b", "k", "{{'x': 1}}", "dict(y=2, z=None)"),
        (
            "dict(p={any}, q={any})", "{{'x': {any}, {num}: {any}, {str}: 1}}",
            "dict(**dict(r={any}), s=1)", "{{**{dict}, 'w': {any}}}",
            "{{str(x): {any} for x in {list}}}", "dict({dict}, t={any})", "({dict} | {dict})",
            "{dict}.copy()", "dict(zip(['m', 'n'], {list}))", "dict([('u', {any})])",
        ),
    ),
}  # fmt: skip
STATEMENTS = (
    "d = {num}", "g = {num}", "c = {str}", "f = {str}", "e = {list}", "h = {list}", "b = {dict}",
    "k = {dict}", "h.append({any})", "a.append({num})", "b[{str}] = {any}", "b.update({dict})",
    "b.update(x={any})", "a += {nums}", "a[0] = {num}", "a[{slice}] = {nums}", "a[0] += {num}",
    "d += {num}", "d *= {num}", "d //= {num}", "c += {str}", "h = k = a", "h.insert(1, {any})",
    "h.extend({list})", "del b['x']", "del a[0]", "del a[1:]", "g = a.pop()", "g = a.pop(0)",
    "g, d = {num}, {num}", "g, *h = {nums}", "b.setdefault('x', {any})", "g = b.pop('x', {num})",
    "a.sort()", "a.reverse()", "b |= {dict}", "e = a\ne *= 2", "h = [b, b]\nb['v'] = {any}",
    "c: str = {str}", "k = dict(l=h)\nk['l'] += [{any}]",
)  # fmt: skip
BLOCKS = (
    "if {any}:\n{block}\nelif {bool}:\n{block}\nelse:\n{block}",
    "for g in list({nums}):\n{block}\n    if {bool}:\n        break\nelse:\n    f = 'done'",
    "for i, j in list({dict}.items()):\n    if {bool}:\n        continue\n{block}",
)
ANY = ("num", "str", "list", "dict", "bool", "num")


class ProgramWriter:
    """Writes programs of which most run: expressions have the kind that their place needs."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def program(self) -> str:
        count = self.random.randrange(1, 7)
        return START + "".join(f"{self.statement(3, 0)}\n" for _ in range(count))

    def statement(self, depth: int, nesting: int) -> str:
        blocks = BLOCKS * 4 if nesting < 2 else ()
        return self.fill(self.random.choice(STATEMENTS + blocks), depth, nesting)

    def fill(self, form: str, depth: int, nesting: int = 0) -> str:
        class Kinds(dict):
            def __missing__(kinds, kind: str) -> object:
                return Lazy(lambda: self.part(kind, depth, nesting))

        return form.format_map(Kinds())

    def part(self, kind: str, depth: int, nesting: int) -> str:
        if kind == "slice":
            return self.random.choice(SLICES)
        if kind == "block":
            lines = "\n".join(
                self.statement(2, nesting + 1) for _ in range(self.random.randrange(1, 3))
            )
            return "\n".join(f"    {line}" for line in lines.split("\n"))
        if kind == "any":
            kind = self.random.choice(ANY)
        atoms, forms = FORMS[kind]
        simple = depth <= 0 or self.random.random() < 0.2
        return self.fill(self.random.choice(atoms if simple else forms), depth - 1)


class Lazy:
    """Formats as what a function returns, anew each time."""

    def __init__(self, function) -> None:
        self.function = function

    def __format__(self, spec: str) -> str:
        return self.function()


class NotInTheDialectError(Exception):
    pass


def canonical(value, depth: int = 0) -> str:
    """The text of a value with its types, if a config can hold it."""
    if depth > 80:
        raise NotInTheDialectError
    if type(value) is dict:
        if not all(type(key) in (str, int, float, bool, type(None)) for key in value):
            raise NotInTheDialectError
        items = (f"{key!r}: {canonical(item, depth + 1)}" for key, item in value.items())
        return "{" + ", ".join(items) + "}"
    if type(value) in (list, tuple):
        return f"{type(value).__name__}({[canonical(item, depth + 1) for item in value]})"
    if type(value) in (str, int, float, bool, type(None)):
        return repr(value)
    raise NotInTheDialectError


def python_result(text: str) -> str | None:
    names: dict = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            exec(text, names)
        return canonical({key: names[key] for key in names if not key.startswith("__")})
    except Exception:
        return None


# The seeds are the same in every run: a program of another seed might keep Python busy for long.
@pytest.mark.parametrize("block", range(8))
def test_random_programs_mean_what_they_mean_to_python(block):
    agreed = 0
    for seed in range(block * 200, block * 200 + 200):
        text = ProgramWriter(seed).program()
        expected = python_result(text)
        try:
            result = canonical(dict(Config.from_text(text)))
        except ConfigError:
            result = None
        assert result == expected, text
        agreed += result is not None
    assert agreed > 100


TOKENS = (
    "a", "b", "_base_", "x", "dict", "(", ")", "[", "]", "{", "}", "{{", "}}", ",", ":", "=", "==",
    "+", "-", "*", "**", "/", "%", "<<", "|", "@", "not", "and", "in", "is", "if", "else", "for",
    "lambda", "def", "class", "import", "from", "as", "with", "read_base", "del", "while", "try",
    "pass", "break", "\n", "\n    ", "'a'", "'{}'", "'%s'", "f'{", "f'{a!r:>{b}}'", "'", '"',
    "'''", "1", "0", "-1", "10**9", "1e309", "None", "True", "...", ".", "__class__", "__import__",
    "update", "append", "format", "join", "pop", "range", "len", "sum", "zip", "sorted", "list",
    "str", "int", "max", "open", "os", "math", "{{ fileBasename }}", "{{ $HOME:x }}",
    "{{_base_.x}}", ":=", "#", "\\", "\t", "é", "日", "\0", "\x0c", "global", "yield", "await",
    "async", "return", "raise", "assert", "match", "case", "*a", "**b", ";", "nonlocal",
    "_base_ = 'x.py'", "+=", "|=", "\ud800",
)  # fmt: skip


def reads_or_refuses(text: str, filename: str | None = None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            config = Config.from_text(text, filename)
        except ConfigError as error:
            assert "\n" not in str(error).strip() or "\n" in text
            return
    assert Config.from_text(config.dumps()).dumps() == config.dumps()


@settings(deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(TOKENS), max_size=15))
def test_random_tokens(tokens):
    reads_or_refuses("a = [1, 2]\nb = dict(x=1)\nx = 'q'\n" + " ".join(tokens))


@settings(deadline=None, derandomize=True)
@given(st.text())
def test_random_text(text):
    reads_or_refuses(text)
    reads_or_refuses(text, "x.json")


RECIPE_TEXTS = [path.read_text() for path in recipe_paths().values()]
EDITS = st.tuples(
    st.floats(0, 1), st.integers(0, 30), st.sampled_from(TOKENS) | st.text(max_size=3)
)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.sampled_from(RECIPE_TEXTS), st.lists(EDITS, min_size=1, max_size=4))
def test_damaged_recipes(text, edits):
    for place, removed, inserted in edits:
        start = int(place * len(text))
        text = text[:start] + inserted + text[start + removed :]
    reads_or_refuses(text, str(Path(recipe_paths()["rtmdet_tiny"]).with_name("damaged.py")))


@settings(deadline=None, derandomize=True)
@given(st.binary())
def test_random_bytes_in_a_file(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("x.py", "x.json"):
        (folder / name).write_bytes(data)
        try:
            load_config(folder / name)
        except ConfigError as error:
            assert str(error).startswith(str(folder / name))
