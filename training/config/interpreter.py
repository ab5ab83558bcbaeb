"""The interpreter of statements: what a config file does, without running it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from deploykit.training.config import operators
from deploykit.training.config.dialect import refusal, suggestion
from deploykit.training.config.expressions import Evaluator
from deploykit.training.config.functions import Call, slots
from deploykit.training.config.imports import ImportedName
from deploykit.training.config.limits import Budget, EvaluationError
from deploykit.training.config.source import Source
from deploykit.training.config.tracked import (
    BaseDict,
    Origin,
    TrackedDict,
    TrackedList,
    checked_key,
    type_name,
)

Flow = Literal["break", "continue"] | None


@dataclass(frozen=True)
class Names:
    """What a config file leaves: its values, and what its imports mean by their names."""

    values: TrackedDict
    imports: Mapping[str, ImportedName]


ReadModule = Callable[[ast.ImportFrom], Names]


class Interpreter(Evaluator):
    """Interprets the statements of one file.

    Args:
        source: The file.
        base: The merged bases of the file.
        budget: Pays for every step.
        read_module: Reads the config that an import under ``with read_base():`` names.
    """

    def __init__(
        self, source: Source, base: BaseDict, budget: Budget, read_module: ReadModule
    ) -> None:
        super().__init__(source, base, budget)
        self._read_module = read_module
        self._loops = 0

    def run(self, body: list[ast.stmt]) -> Names:
        """Interpret the statements of a file.

        Returns:
            The names they leave, without those that begin with two underscores.
        """
        self._block(body)
        values = TrackedDict()
        imports: dict[str, ImportedName] = {}
        names = self.scopes[0]
        for name, value in names.items():
            if isinstance(value, ImportedName):
                imports[name] = value
            elif not name.startswith("__"):
                values.put(name, value, names.marks[name])
        return Names(values, imports)

    def _block(self, body: list[ast.stmt]) -> Flow:
        for node in body:
            statement = _STATEMENTS.get(type(node))
            if statement is None:
                raise self.source.error(node, refusal(node))
            with self.located(node):
                self.budget.spend(1)
                flow = statement(self, node)
            if flow is not None:
                return flow
        return None

    # --- assignments ---

    def _assign(self, node: ast.Assign) -> None:
        value = self.evaluate(node.value)
        for target in node.targets:
            self.bind(target, value, self.source.origin(target))

    def _annotated_assign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.bind(node.target, self.evaluate(node.value), self.source.origin(node.target))

    def store(self, target: ast.expr, value: Any) -> None:
        """Assign to an attribute or subscript."""
        origin = self.source.origin(target)
        if isinstance(target, ast.Attribute):
            container = self.evaluate(target.value)
            self.check_attribute(container, target.attr)
            self._put(container, target.attr, value, origin)
        elif isinstance(target, ast.Subscript):
            container, index = self.evaluate(target.value), self.index(target.slice)
            with self.operation(target):
                self._store_item(container, index, value, origin)
        else:
            raise self.source.error(target, refusal(target))

    def _put(self, container: TrackedDict, key: Any, value: Any, origin: Origin) -> None:
        if isinstance(container, BaseDict):
            self.budget.charge(value)
        container.put(checked_key(key), value, origin)

    def _store_item(self, container: Any, index: Any, value: Any, origin: Origin) -> None:
        if isinstance(container, TrackedDict):
            self._put(container, index, value, origin)
        elif not isinstance(container, TrackedList):
            raise TypeError(f"elements of {type_name(container)} cannot be assigned")
        elif isinstance(index, slice):
            pairs = list(slots(value, Call(self.budget, origin)))
            container[index] = [item for item, _ in pairs]
            container.marks[index] = [mark for _, mark in pairs]
        else:
            container[index] = value
            container.marks[index] = origin

    def _augmented_assign(self, node: ast.AugAssign) -> None:
        target, origin = node.target, self.source.origin(node.target)
        if not operators.supports(type(node.op)):
            raise self.source.error(node, refusal(node.op))
        if isinstance(target, ast.Name):
            old = self.evaluate(target)
            self.bind(target, self._combined(node, old), origin)
        elif isinstance(target, ast.Attribute):
            container = self.evaluate(target.value)
            self.check_attribute(container, target.attr)
            value = self._combined(node, self.item(container, target.attr))
            self._put(container, target.attr, value, origin)
        else:
            container, index = self.evaluate(target.value), self.index(target.slice)
            value = self._combined(node, self.element(container, index, target))
            with self.operation(target):
                self._store_item(container, index, value, origin)

    def _combined(self, node: ast.AugAssign, old: Any) -> Any:
        operand = self.evaluate(node.value)
        with self.operation(node):
            return self._combined_in_place(node.op, old, operand, node)

    def _combined_in_place(
        self, kind: ast.operator, old: Any, operand: Any, node: ast.AugAssign
    ) -> Any:
        if isinstance(old, TrackedList) and isinstance(kind, ast.Add):
            pairs = list(slots(operand, self.call_at(node)))
            old.extend(item for item, _ in pairs)
            old.marks.extend(mark for _, mark in pairs)
            return old
        value = operators.binary(type(kind), old, operand, self.budget)
        if isinstance(old, TrackedList):
            old[:] = value
            old.marks[:] = value.marks
            return old
        if isinstance(old, TrackedDict):
            for key in operand:
                self._put(old, key, operand[key], operand.marks[key])
            return old
        if isinstance(old, set):
            old.clear()
            old.update(value)
            return old
        return value

    def _delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            self._delete_target(target)

    def _delete_target(self, target: ast.expr) -> None:
        if isinstance(target, ast.Name):
            if target.id not in self.scopes[0]:
                raise self.source.error(target, f"the name '{target.id}' is not defined")
            self.scopes[0].take(target.id)
        elif isinstance(target, ast.Attribute):
            container = self.evaluate(target.value)
            self.check_attribute(container, target.attr)
            with self.operation(target):
                self.item(container, target.attr)
                container.take(target.attr)
        elif isinstance(target, ast.Subscript):
            container, index = self.evaluate(target.value), self.index(target.slice)
            with self.operation(target):
                if isinstance(container, TrackedDict):
                    self.item(container, index)
                    container.take(index)
                elif isinstance(container, TrackedList):
                    del container[index]
                    del container.marks[index]
                else:
                    raise TypeError(f"elements of {type_name(container)} cannot be deleted")
        elif isinstance(target, ast.Tuple | ast.List):
            for part in target.elts:
                self._delete_target(part)

    # --- flow ---

    def _expression(self, node: ast.Expr) -> None:
        self.evaluate(node.value)

    def _if(self, node: ast.If) -> Flow:
        return self._block(node.body if self.evaluate(node.test) else node.orelse)

    def _for(self, node: ast.For) -> Flow:
        iterable = self.evaluate(node.iter)
        with self.operation(node.iter):
            pairs = list(slots(iterable, self.call_at(node.iter)))
        self._loops += 1
        flow: Flow = None
        for item, _ in pairs:
            self.bind(node.target, item, self.source.origin(node.target))
            flow = self._block(node.body)
            if flow == "break":
                break
        self._loops -= 1
        return None if flow == "break" else self._block(node.orelse)

    def _jump(self, node: ast.Break | ast.Continue) -> Flow:
        word: Flow = "break" if isinstance(node, ast.Break) else "continue"
        if not self._loops:
            raise EvaluationError(f"'{word}' outside a loop")
        return word

    def _pass(self, node: ast.Pass) -> None:
        """Do nothing."""

    # --- imports ---

    def _import(self, node: ast.Import) -> None:
        for alias in node.names:
            name = alias.asname or alias.name.partition(".")[0]
            self._bind_import(name, alias.name if alias.asname else name, alias)

    def _import_from(self, node: ast.ImportFrom) -> None:
        if node.level:
            raise self.source.error(
                node, "a relative import of a config must stand under 'with read_base():'"
            )
        for alias in node.names:
            if alias.name == "*":
                raise self.source.error(
                    node, "'import *' can only import a base config, under 'with read_base():'"
                )
            self._bind_import(alias.asname or alias.name, f"{node.module}.{alias.name}", alias)

    def _bind_import(self, name: str, dotted: str, alias: ast.alias) -> None:
        self.scopes[0].put(name, ImportedName(dotted), self.source.origin(alias))

    def _with(self, node: ast.With) -> None:
        context = node.items[0].context_expr
        if (
            len(node.items) > 1
            or node.items[0].optional_vars is not None
            or not isinstance(context, ast.Call)
            or not isinstance(context.func, ast.Name)
            or context.func.id != "read_base"
            or context.args
            or context.keywords
        ):
            raise self.source.error(node, "the only 'with' of a config is 'with read_base():'")
        for statement in node.body:
            if isinstance(statement, ast.ImportFrom):
                with self.located(statement):
                    self._import_base(statement)
            elif not isinstance(statement, ast.Pass):
                raise self.source.error(
                    statement, "under 'with read_base():' only 'from ... import ...' can stand"
                )

    def _import_base(self, node: ast.ImportFrom) -> None:
        names = self.scopes[0]
        base = self._read_module(node)
        origin = self.source.origin(node)
        for alias in node.names:
            if alias.name == "*":
                for key, value in base.values.items():
                    names.put(key, value, base.values.marks[key])
                for key, imported in base.imports.items():
                    names.put(key, imported, origin)
            elif alias.name in base.values:
                name = alias.asname or alias.name
                names.put(name, base.values[alias.name], base.values.marks[alias.name])
            elif alias.name in base.imports:
                names.put(alias.asname or alias.name, base.imports[alias.name], origin)
            else:
                hint = suggestion(alias.name, base.values)
                raise EvaluationError(f"the base config has no '{alias.name}'{hint}")


# The methods are private to Interpreter, which this table of it completes.
_STATEMENTS: dict[type[ast.stmt], Callable[[Interpreter, Any], Flow]] = {
    ast.AnnAssign: Interpreter._annotated_assign,
    ast.Assign: Interpreter._assign,
    ast.AugAssign: Interpreter._augmented_assign,
    ast.Break: Interpreter._jump,
    ast.Continue: Interpreter._jump,
    ast.Delete: Interpreter._delete,
    ast.Expr: Interpreter._expression,
    ast.For: Interpreter._for,
    ast.If: Interpreter._if,
    ast.Import: Interpreter._import,
    ast.ImportFrom: Interpreter._import_from,
    ast.Pass: Interpreter._pass,
    ast.With: Interpreter._with,
}
