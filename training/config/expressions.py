"""The evaluator of expressions: an interpreter over Python's syntax tree that runs nothing."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from deploykit.training.config import operators
from deploykit.training.config.dialect import (
    refusal,
    unknown_function,
    unknown_name,
)
from deploykit.training.config.evaluation import Evaluation, attribute_path
from deploykit.training.config.formatting import format_value
from deploykit.training.config.functions import BUILTINS, LIBRARY, Function, slots
from deploykit.training.config.imports import ImportedName, imported_value
from deploykit.training.config.limits import (
    MAX_EXPRESSION_DEPTH,
    EvaluationError,
    check_integer,
)
from deploykit.training.config.methods import find_method, make_dict, methods_of
from deploykit.training.config.source import Source
from deploykit.training.config.templates import FILE_VARIABLES
from deploykit.training.config.tracked import (
    BaseDict,
    Origin,
    Produced,
    TrackedDict,
    TrackedList,
    TrackedTuple,
    checked_key,
    copied,
    type_name,
)

# MMEngine's own dump writes these floats without quotes.
_NUMBER_NAMES = {"inf": float("inf"), "nan": float("nan")}


class Evaluator(Evaluation):
    """Evaluates the expressions of one file.

    Args:
        source: The file.
        base: The merged bases of the file, which ``_base_`` stands for.
        budget: Pays for every step.
    """

    _depth = 0

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

    # --- names, constants, templates ---

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
        return copied(self.base_value(path.removeprefix("_base_.")), self.budget)

    def _parsed(self, text: str, label: str) -> Any:
        source = Source(text, label, None)
        return Evaluator(source, BaseDict(), self.budget).evaluate(source.parse_expression())

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

    def _attribute(self, node: ast.Attribute) -> Any:
        dotted = self.imported_path(node)
        if dotted is not None:
            return imported_value(dotted)
        value = self.evaluate(node.value)
        self.check_attribute(value, node.attr)
        return self.item(value, node.attr)

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
            dotted = self.imported_path(node)
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
