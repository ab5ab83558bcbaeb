"""The evaluator of expressions: an interpreter over Python's syntax tree that runs nothing."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from deploykit.training.config import operators
from deploykit.training.config.dialect import (
    RESERVED_NAMES,
    refusal,
    suggestion,
    unknown_function,
    unknown_name,
)
from deploykit.training.config.formatting import format_value
from deploykit.training.config.functions import BUILTINS, LIBRARY, Call, Function, slots
from deploykit.training.config.imports import ImportedName, imported_value
from deploykit.training.config.limits import (
    MAX_EXPRESSION_DEPTH,
    Budget,
    EvaluationError,
    check_integer,
)
from deploykit.training.config.methods import find_method, make_dict, methods_of
from deploykit.training.config.operators import type_name
from deploykit.training.config.source import Source
from deploykit.training.config.templates import FILE_VARIABLES, Templates
from deploykit.training.config.tracked import (
    BaseDict,
    Origin,
    Produced,
    TrackedDict,
    TrackedList,
    TrackedTuple,
    checked_key,
    copied,
)

# What pure operations on checked operands raise; anything else would be an error of ours.
OPERATION_ERRORS = (TypeError, ValueError, LookupError, ArithmeticError)
# MMEngine's own dump writes these floats without quotes.
_NUMBER_NAMES = {"inf": float("inf"), "nan": float("nan")}


class Evaluator:
    """Evaluates the expressions of one file.

    Args:
        source: The file.
        base: The merged bases of the file, which ``_base_`` stands for.
        budget: Pays for every step.
    """

    def __init__(self, source: Source, base: BaseDict, budget: Budget) -> None:
        self.source, self.base, self.budget = source, base, budget
        self.scopes: list[TrackedDict] = [TrackedDict()]
        self.templates = Templates(source.path, source.environment, self._base_value)
        self._depth = 0

    def evaluate(self, node: ast.expr) -> Any:
        """Return the value of an expression.

        Raises:
            ConfigError: The expression is not of the dialect, or cannot be evaluated.
        """
        method = _EXPRESSIONS.get(type(node))
        if method is None:
            raise self.source.error(node, refusal(node))
        self._depth += 1
        try:
            if self._depth > MAX_EXPRESSION_DEPTH:
                raise EvaluationError(
                    f"the expression is nested deeper than {MAX_EXPRESSION_DEPTH} levels"
                )
            self.budget.spend(1)
            return method(self, node)
        except EvaluationError as error:
            raise self.source.error(node, str(error)) from None
        finally:
            self._depth -= 1

    @contextmanager
    def operation(self, node: ast.expr | ast.stmt) -> Iterator[None]:
        """Turn what an operation on values raises into an error at ``node``."""
        try:
            yield
        except (EvaluationError, *OPERATION_ERRORS) as error:
            detail = error.args[0] if isinstance(error, KeyError) and error.args else error
            raise self.source.error(node, str(detail)) from None

    def call_at(self, node: ast.expr | ast.stmt | ast.keyword) -> Call:
        """Return the context for a function called at ``node``."""
        return Call(self.budget, self.source.origin(node))

    # --- names, constants, templates ---

    def lookup(self, name: str) -> Any:
        """Return the value of a name, innermost scope first; :class:`KeyError` if it has none."""
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        raise KeyError(name)

    def _name(self, node: ast.Name) -> Any:
        name = node.id
        if name == "_base_":
            return self.base
        try:
            value = self.lookup(name)
        except KeyError:
            if name in _NUMBER_NAMES:
                return _NUMBER_NAMES[name]
            if name == "__name__":
                return "__config__"
            known = {key for scope in self.scopes for key in scope}
            raise EvaluationError(unknown_name(name, known)) from None
        return imported_value(value.dotted) if isinstance(value, ImportedName) else value

    def _constant(self, node: ast.Constant) -> Any:
        value = node.value
        if isinstance(value, str):
            value = self.literal_text(node, value)
            self.budget.spend_text(len(value))
            return self.templates.in_string(value) if "{{" in value else value
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int):
            return check_integer(value)
        raise EvaluationError(f"a {type(value).__name__} literal cannot stand in a config")

    def literal_text(self, node: ast.Constant, text: str) -> str:
        """Return what a string literal says; JSON has other escapes than Python."""
        return text

    def _set(self, node: ast.Set) -> Any:
        if len(node.elts) == 1 and isinstance(node.elts[0], ast.Set):
            inner = node.elts[0].elts
            return self._template(inner[0]) if len(inner) == 1 else self.evaluate(node.elts[0])
        return {checked_key(item) for item, _ in self._elements(node.elts)}

    def _template(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            if node.id in FILE_VARIABLES:
                return self.templates.file_variable(node.id)
            variable = self.templates.variable(node.id)
            if variable is not None:
                return self._parsed(variable.value(), f"<environment variable {variable.name}>")
        path = attribute_path(node)
        if path is None or not path.startswith("_base_."):
            raise EvaluationError(
                "'{{ ... }}' is no known template; known are {{ _base_.key }}, "
                "{{ $NAME:default }} and " + ", ".join(f"{{{{ {n} }}}}" for n in FILE_VARIABLES)
            )
        return copied(self._base_value(path.removeprefix("_base_.")), self.budget)

    def _parsed(self, text: str, label: str) -> Any:
        source = Source(text, label, None)
        return Evaluator(source, BaseDict(), self.budget).evaluate(source.parse_expression())

    def _base_value(self, path: str) -> Any:
        value: Any = self.base
        for key in path.split("."):
            if not isinstance(value, TrackedDict) or key not in value:
                known = value if isinstance(value, TrackedDict) else ()
                raise EvaluationError(
                    f"'_base_.{path}' does not exist in the base{suggestion(key, known)}"
                )
            value = value[key]
        return value

    # --- containers ---

    def _elements(self, nodes: list[ast.expr]) -> Iterator[tuple[Any, Origin]]:
        for node in nodes:
            if isinstance(node, ast.Starred):
                value = self.evaluate(node.value)
                with self.operation(node):
                    pairs = list(slots(value, self.call_at(node)))
                yield from pairs
            else:
                yield self.evaluate(node), self.source.origin(node)

    def _list(self, node: ast.List) -> TrackedList:
        pairs = list(self._elements(node.elts))
        return TrackedList([item for item, _ in pairs], [mark for _, mark in pairs])

    def _tuple(self, node: ast.Tuple) -> TrackedTuple:
        pairs = list(self._elements(node.elts))
        return TrackedTuple.of([item for item, _ in pairs], [mark for _, mark in pairs])

    def _dict(self, node: ast.Dict) -> TrackedDict:
        result = TrackedDict()
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                for entry in self._entries(value, self.evaluate(value)):
                    result.put(*entry)
            else:
                name = checked_key(self.evaluate(key))
                result.put(name, self.evaluate(value), self.source.origin(key))
        return result

    def _entries(self, node: ast.expr | ast.keyword, value: Any) -> list[tuple[Any, Any, Origin]]:
        if not isinstance(value, TrackedDict):
            raise self.source.error(node, f"'**' needs a dict, got {type_name(value)}")
        self.budget.spend(len(value))
        return [(key, item, value.marks[key]) for key, item in value.items()]

    # --- comprehensions ---

    def _comprehend(self, generators: list[ast.comprehension], emit: Callable[[], None]) -> None:
        first, *rest = generators
        if first.is_async:
            raise EvaluationError("an async comprehension cannot stand in a config")
        iterable = self.evaluate(first.iter)
        with self.operation(first.iter):
            pairs = list(slots(iterable, self.call_at(first.iter)))
        for item, _ in pairs:
            self.bind(first.target, item, self.source.origin(first.target))
            if all(self.evaluate(test) for test in first.ifs):
                if rest:
                    self._comprehend(rest, emit)
                else:
                    emit()

    @contextmanager
    def _scope(self) -> Iterator[None]:
        self.scopes.append(TrackedDict())
        try:
            yield
        finally:
            self.scopes.pop()

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> Any:
        items: list[Any] = []
        with self._scope():
            self._comprehend(node.generators, lambda: items.append(self.evaluate(node.elt)))
        marks = [self.source.origin(node.elt)] * len(items)
        if isinstance(node, ast.SetComp):
            return {checked_key(item) for item in items}
        return (TrackedList if isinstance(node, ast.ListComp) else Produced.of)(items, marks)

    def _dict_comprehension(self, node: ast.DictComp) -> TrackedDict:
        result = TrackedDict()
        origin = self.source.origin(node.key)

        def emit() -> None:
            result.put(checked_key(self.evaluate(node.key)), self.evaluate(node.value), origin)

        with self._scope():
            self._comprehend(node.generators, emit)
        return result

    # --- operators ---

    def _binary(self, node: ast.BinOp) -> Any:
        if not operators.supports(type(node.op)):
            raise EvaluationError(refusal(node.op))
        left, right = self.evaluate(node.left), self.evaluate(node.right)
        with self.operation(node):
            return operators.binary(type(node.op), left, right, self.budget)

    def _unary(self, node: ast.UnaryOp) -> Any:
        value = self.evaluate(node.operand)
        with self.operation(node):
            return operators.unary(type(node.op), value)

    def _boolean(self, node: ast.BoolOp) -> Any:
        wanted = isinstance(node.op, ast.Or)
        value: Any = None
        for operand in node.values:
            value = self.evaluate(operand)
            if bool(value) is wanted:
                break
        return value

    def _compare(self, node: ast.Compare) -> bool:
        left = self.evaluate(node.left)
        for kind, operand in zip(node.ops, node.comparators, strict=True):
            right = self.evaluate(operand)
            with self.operation(node):
                if not operators.compare(type(kind), left, right, self.budget):
                    return False
            left = right
        return True

    def _conditional(self, node: ast.IfExp) -> Any:
        return self.evaluate(node.body if self.evaluate(node.test) else node.orelse)

    # --- items and attributes ---

    def index(self, node: ast.expr) -> Any:
        """Return the value of what stands in the brackets of a subscript."""
        if not isinstance(node, ast.Slice):
            return self.evaluate(node)
        bounds = (node.lower, node.upper, node.step)
        return slice(*(None if bound is None else self.evaluate(bound) for bound in bounds))

    def _subscript(self, node: ast.Subscript) -> Any:
        return self.element(self.evaluate(node.value), self.index(node.slice), node)

    def element(self, value: Any, index: Any, node: ast.expr) -> Any:
        """Return ``value[index]``; ``node`` is where errors stand."""
        with self.operation(node):
            if isinstance(value, TrackedDict):
                return self.item(value, index)
            if not isinstance(value, str | TrackedList | TrackedTuple | range | Produced):
                raise TypeError(f"{type_name(value)} has no elements")
            part = value[index]
            if isinstance(index, slice):
                self.budget.spend(len(part))
                if isinstance(value, TrackedList):
                    return TrackedList(part, value.marks[index])
                if isinstance(value, TrackedTuple | Produced):
                    return type(value).of(part, value.marks[index])
            return part

    def item(self, value: TrackedDict, key: Any) -> Any:
        """Return the value of a key that a dict must have."""
        if checked_key(key) not in value:
            hint = suggestion(key, value) if isinstance(key, str) else ""
            raise EvaluationError(f"the dict has no key {key!r:.80}{hint}")
        return value[key]

    def _attribute(self, node: ast.Attribute) -> Any:
        dotted = self._imported_path(node)
        if dotted is not None:
            return imported_value(dotted)
        value = self.evaluate(node.value)
        self.check_attribute(value, node.attr)
        return self.item(value, node.attr)

    def check_attribute(self, value: Any, name: str) -> None:
        """Refuse an attribute of anything but a dict of the base, and every private attribute."""
        if name.startswith("__"):
            raise EvaluationError(f"the attribute '{name}' cannot be used in a config")
        if isinstance(value, BaseDict):
            if name in methods_of(value) and name not in value:
                raise EvaluationError(f"the method '{name}' can only be called")
            return
        if isinstance(value, TrackedDict):
            raise EvaluationError(
                f"'.{name}' works only on dicts that come from a base; write ['{name}']"
            )
        raise EvaluationError(f"{type_name(value)} has no attribute '{name}' in a config")

    def _imported_path(self, node: ast.Attribute) -> str | None:
        path = attribute_path(node)
        if path is None:
            return None
        root, _, rest = path.partition(".")
        try:
            value = self.lookup(root)
        except KeyError:
            return None
        return f"{value.dotted}.{rest}" if isinstance(value, ImportedName) else None

    # --- calls ---

    def _call(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Name) and node.func.id == "dict":
            return self._dict_call(node)
        function, receiver = self._callee(node.func)
        args = receiver + [item for item, _ in self._elements(node.args)]
        keywords = self._keywords(node)
        call = self.call_at(node)
        with self.operation(node):
            try:
                return function(call, *args, **keywords)
            except TypeError:
                # Say what is wrong with the arguments without counting our own first one.
                inspect.signature(function).bind(call, *args, **keywords)
                raise

    def _callee(self, node: ast.expr) -> tuple[Function, list[Any]]:
        dotted: str | None = None
        if isinstance(node, ast.Attribute):
            dotted = self._imported_path(node)
        elif isinstance(node, ast.Name):
            try:
                value = self.lookup(node.id)
            except KeyError:
                if node.id not in BUILTINS:
                    raise EvaluationError(unknown_function(node.id)) from None
                return BUILTINS[node.id], []
            dotted = value.dotted if isinstance(value, ImportedName) else None
        if dotted is not None:
            if dotted not in LIBRARY:
                raise EvaluationError(unknown_function(dotted))
            return LIBRARY[dotted], []
        if not isinstance(node, ast.Attribute):
            raise EvaluationError(unknown_function(ast.unparse(node)[:80]))
        receiver = self.evaluate(node.value)
        method = find_method(receiver, node.attr)
        if method is None:
            known = ", ".join(sorted(methods_of(receiver))) or "none"
            raise EvaluationError(
                f"{type_name(receiver)} has no method '{node.attr}' in a config; it has: {known}"
            )
        return method, [receiver]

    def _keywords(self, node: ast.Call) -> TrackedDict:
        result = TrackedDict()
        for keyword in node.keywords:
            value = self.evaluate(keyword.value)
            if keyword.arg is None:
                entries = self._entries(keyword, value)
            else:
                entries = [(keyword.arg, value, self.source.origin(keyword))]
            for key, item, origin in entries:
                if not isinstance(key, str):
                    raise self.source.error(
                        keyword, f"keyword arguments need strings as names, got {key!r:.80}"
                    )
                if key in result:
                    raise self.source.error(keyword, f"the argument '{key:.80}' is given twice")
                result.put(key, item, origin)
        return result

    def _dict_call(self, node: ast.Call) -> TrackedDict:
        args = [item for item, _ in self._elements(node.args)]
        if len(args) > 1:
            raise EvaluationError(f"dict() takes at most one positional argument, got {len(args)}")
        keywords = self._keywords(node)
        if not args:
            return keywords
        with self.operation(node):
            result = make_dict(self.call_at(node), args[0])
        for key, value in keywords.items():
            result.put(key, value, keywords.marks[key])
        return result

    # --- f-strings ---

    def _fstring(self, node: ast.JoinedStr) -> str:
        parts: list[str] = []
        literal = ""
        for part in node.values:
            if isinstance(part, ast.Constant):
                literal += str(part.value)
                continue
            parts += [self.templates.in_string(literal, fstring=True), self.evaluate(part)]
            literal = ""
        parts.append(self.templates.in_string(literal, fstring=True))
        self.budget.spend_text(sum(len(part) for part in parts))
        return "".join(parts)

    def _formatted(self, node: ast.FormattedValue) -> str:
        value = self.evaluate(node.value)
        spec = "" if node.format_spec is None else self.evaluate(node.format_spec)
        conversion = chr(node.conversion) if node.conversion >= 0 else None
        with self.operation(node.value):
            return format_value(value, conversion, spec, self.budget)

    # --- names of comprehensions and statements ---

    def bind(self, target: ast.expr, value: Any, origin: Origin) -> None:
        """Assign a value to a target: a name, or a tuple or list of targets."""
        if isinstance(target, ast.Name):
            self.check_assignable(target)
            self.scopes[-1].put(target.id, value, origin)
        elif isinstance(target, ast.Tuple | ast.List):
            self._unpack(target, value)
        else:
            self.store(target, value)

    def check_assignable(self, target: ast.Name) -> None:
        """Refuse names that a config may not assign."""
        name = target.id
        if name == "_base_":
            message = "'_base_' can only be assigned once, at the top level"
        elif name in RESERVED_NAMES:
            message = f"'{name}' is a function of the dialect and cannot be assigned"
        elif name.startswith("__") and name.endswith("__"):
            message = f"the name '{name}' cannot be assigned in a config"
        else:
            return
        raise self.source.error(target, message)

    def store(self, target: ast.expr, value: Any) -> None:
        """Assign to an attribute or subscript; only statements can."""
        raise self.source.error(target, "a comprehension can only assign names")

    def _unpack(self, target: ast.Tuple | ast.List, value: Any) -> None:
        with self.operation(target):
            pairs = list(slots(value, self.call_at(target)))
        stars = [n for n, part in enumerate(target.elts) if isinstance(part, ast.Starred)]
        extra = len(pairs) - len(target.elts)
        if extra < -len(stars) or (extra and not stars):
            raise self.source.error(
                target, f"{len(target.elts)} names cannot take {len(pairs)} values"
            )
        position = 0
        for part in target.elts:
            if isinstance(part, ast.Starred):
                taken = pairs[position : position + extra + 1]
                position += extra + 1
                items = TrackedList([item for item, _ in taken], [mark for _, mark in taken])
                self.bind(part.value, items, self.source.origin(part))
            else:
                self.bind(part, pairs[position][0], self.source.origin(part))
                position += 1


def attribute_path(node: ast.expr) -> str | None:
    """Return ``"a.b.c"`` for a name with attributes, None for other expressions."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *reversed(names)])


# The methods are private to Evaluator, which this table of it completes.
_EXPRESSIONS: dict[type[ast.expr], Callable[[Evaluator, Any], Any]] = {
    ast.Attribute: Evaluator._attribute,
    ast.BinOp: Evaluator._binary,
    ast.BoolOp: Evaluator._boolean,
    ast.Call: Evaluator._call,
    ast.Compare: Evaluator._compare,
    ast.Constant: Evaluator._constant,
    ast.Dict: Evaluator._dict,
    ast.DictComp: Evaluator._dict_comprehension,
    ast.FormattedValue: Evaluator._formatted,
    ast.GeneratorExp: Evaluator._comprehension,
    ast.IfExp: Evaluator._conditional,
    ast.JoinedStr: Evaluator._fstring,
    ast.List: Evaluator._list,
    ast.ListComp: Evaluator._comprehension,
    ast.Name: Evaluator._name,
    ast.Set: Evaluator._set,
    ast.SetComp: Evaluator._comprehension,
    ast.Subscript: Evaluator._subscript,
    ast.Tuple: Evaluator._tuple,
    ast.UnaryOp: Evaluator._unary,
}
