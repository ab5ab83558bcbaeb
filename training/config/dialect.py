"""What the dialect does not have, and how messages say so."""

from __future__ import annotations

import ast
import builtins
import difflib
from collections.abc import Iterable

from deploykit.training.config.functions import BUILTINS, LIBRARY

FUNCTION_NAMES = frozenset(BUILTINS) | {"dict"}
# A config may not give these names to keys: Config.dumps() writes calls of them.
RESERVED_NAMES = frozenset({"dict", "float", "set"})
# MMEngine reserves these keys for its own attributes of a config.
RESERVED_KEYS = frozenset({"filename", "text", "pretty_text", "env_variables"})

ALLOWED_STATEMENTS = "assignments, del, if, for, calls of methods, imports and 'with read_base():'"
ALLOWED_EXPRESSIONS = (
    "literals, earlier names, _base_.x, operators, comprehensions, f-strings, methods of strings, "
    "lists and dicts, and calls of " + ", ".join(sorted(FUNCTION_NAMES))
)

_CONSTRUCTS: dict[str, str] = {
    "AsyncFor": "'async for'",
    "AsyncFunctionDef": "an 'async def'",
    "AsyncWith": "'async with'",
    "Assert": "'assert'",
    "Await": "'await'",
    "ClassDef": "a class definition",
    "FunctionDef": "a function definition",
    "Global": "'global'",
    "Lambda": "a lambda",
    "Match": "'match'",
    "MatMult": "the operator '@'",
    "NamedExpr": "an assignment expression ':='",
    "Nonlocal": "'nonlocal'",
    "Raise": "'raise'",
    "Return": "'return'",
    "Try": "'try'",
    "TryStar": "'try'",
    "TypeAlias": "a type alias",
    "While": "'while'",
    "With": "'with'",
    "Yield": "'yield'",
    "YieldFrom": "'yield from'",
}


def refusal(node: ast.AST) -> str:
    """Return the message for a construct that configs may not contain."""
    name = type(node).__name__
    construct = _CONSTRUCTS.get(name, f"'{name}'")
    if isinstance(node, ast.stmt):
        return f"{construct} cannot stand in a config; allowed statements: {ALLOWED_STATEMENTS}"
    return f"{construct} cannot stand in a config; allowed expressions: {ALLOWED_EXPRESSIONS}"


def unknown_name(name: str, known: Iterable[str]) -> str:
    """Return the message for a name that has no value."""
    if name in FUNCTION_NAMES:
        return f"the function '{name}' is no value; it can only be called"
    if hasattr(builtins, name):
        return f"'{name}' is not available in a config; {_allowed_functions()}"
    return f"the name '{name}' is not defined{suggestion(name, known)}"


def unknown_function(name: str) -> str:
    """Return the message for a call of something that cannot be called."""
    return f"'{name}()' cannot be called in a config; {_allowed_functions()}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" for the known names that are close to ``name``, or nothing."""
    texts = [item for item in known if isinstance(item, str)]
    close = (
        difflib.get_close_matches(name, texts[:2000], n=3, cutoff=0.6) if len(name) < 200 else []
    )
    return f"; did you mean {' or '.join(repr(item) for item in close)}?" if close else ""


def _allowed_functions() -> str:
    return (
        "allowed functions: "
        + ", ".join(sorted(FUNCTION_NAMES))
        + "; and with an import: "
        + ", ".join(sorted(LIBRARY))
    )
