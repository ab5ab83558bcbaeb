"""Reads a config file and the bases it inherits from."""

from __future__ import annotations

import ast
import json
import logging
import math
import os
import re
from pathlib import Path

from deploykit.errors import ConfigError
from deploykit.training.config import yaml_syntax
from deploykit.training.config.dialect import RESERVED_KEYS
from deploykit.training.config.expressions import Evaluator
from deploykit.training.config.imports import module_path, scoped_path
from deploykit.training.config.interpreter import Interpreter, Names
from deploykit.training.config.limits import (
    MAX_BASE_DEPTH,
    STEPS_PER_FILE,
    Budget,
    EvaluationError,
)
from deploykit.training.config.merge import MergeError, merged
from deploykit.training.config.source import Source, read_source
from deploykit.training.config.tracked import BaseDict, Origin, TrackedDict, copied

BASE_KEY = "_base_"
_DEPRECATION_KEY = "_deprecation_"
_LOGGER = logging.getLogger(__name__)


class Reader:
    """Reads configs, all within one budget.

    Args:
        budget: Pays for every step of every file.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._chain: list[str] = []

    def read(self, source: Source) -> TrackedDict:
        """Return the config of a source with its bases merged in.

        Raises:
            ConfigError: It, or one of its bases, cannot be read.
        """
        try:
            values = self._names(source).values
        except EvaluationError as error:
            raise ConfigError(str(error), source.label) from None
        except RecursionError:
            raise ConfigError("the config is nested too deeply", source.label) from None
        for key in values:
            if key in RESERVED_KEYS:
                raise ConfigError(f"the key '{key}' is reserved", *values.marks[key])
        return values

    def _names(self, source: Source) -> Names:
        self._budget.spend(STEPS_PER_FILE)
        if source.path is not None:
            self._chain.append(os.path.realpath(source.path))
        suffix = "" if source.path is None else source.path.suffix.lower()
        if suffix == ".json":
            names = Names(self._read_json(source), {})
        elif suffix in yaml_syntax.SUFFIXES:
            names = Names(self._read_yaml(source), {})
        else:
            names = self._read_python(source)
        if source.path is not None:
            self._chain.pop()
        return names

    # --- Python ---

    def _read_python(self, source: Source) -> Names:
        statements = source.parse().body
        base = BaseDict()
        rest: list[ast.stmt] = []
        assigned = False
        for statement in statements:
            expression = _base_expression(statement)
            if expression is None:
                rest.append(statement)
                continue
            if assigned:
                raise source.error(statement, "'_base_' is assigned twice")
            assigned = True
            base = self._bases(source, expression)
        interpreter = Interpreter(
            source, base, self._budget, lambda node: self._import(source, node)
        )
        names = interpreter.run(rest)
        self._report_deprecation(source, names.values)
        return Names(self._inherit(names.values, base), names.imports)

    def _inherit(self, values: TrackedDict, base: BaseDict) -> TrackedDict:
        for key, value in values.items():
            try:
                self._budget.charge(value)
            except EvaluationError as error:
                raise ConfigError(f"the value of '{key}': {error}", *values.marks[key]) from None
        if not base:
            return values
        try:
            return merged(values, base)
        except MergeError as error:
            raise ConfigError(str(error), *error.origin) from None

    def _report_deprecation(self, source: Source, values: TrackedDict) -> None:
        if _DEPRECATION_KEY not in values:
            return
        notice = values.take(_DEPRECATION_KEY)
        expected = notice.get("expected") if isinstance(notice, dict) else None
        hint = f"; use {expected} instead" if expected else ""
        _LOGGER.warning("the config %s is deprecated%s", source.label, hint)

    # --- bases ---

    def _bases(self, source: Source, expression: ast.expr) -> BaseDict:
        value = Evaluator(source, BaseDict(), self._budget).evaluate(expression)
        names = list(value) if isinstance(value, list | tuple) else [value]
        nodes = expression.elts if isinstance(expression, ast.List | ast.Tuple) else []
        base = BaseDict()
        for number, name in enumerate(names):
            node = nodes[number] if len(nodes) == len(names) else expression
            if not isinstance(name, str):
                raise source.error(
                    node, f"'_base_' must be a path or a list of paths, got {name!r:.80}"
                )
            try:
                path = self._base_path(source, name)
            except EvaluationError as error:
                raise source.error(node, str(error)) from None
            self._add_base(base, self._file(source, node, path).values, source, node)
        return base

    def _base_path(self, source: Source, name: str) -> Path:
        if "::" in name:
            return scoped_path(name)
        if source.path is None and not os.path.isabs(name):
            raise EvaluationError(
                f"the base '{name}' is relative, but the config is text without a file name"
            )
        path = Path(source.label if source.path else "").parent / name
        tidy = Path(os.path.normpath(path))
        # They differ where "folder/.." crosses a symbolic link.
        return tidy if os.path.exists(tidy) and os.path.samefile(tidy, path) else path

    def _add_base(
        self, base: BaseDict, values: TrackedDict, source: Source, node: ast.expr
    ) -> None:
        for key, value in values.items():
            if key in base:
                raise source.error(
                    node,
                    f"two bases set the same key '{key}': {base.marks[key]} and "
                    f"{values.marks[key]}; only one may",
                )
            TrackedDict.put(base, key, copied(value, self._budget, base=True), values.marks[key])

    def _file(self, source: Source, node: ast.expr | ast.stmt, path: Path) -> Names:
        if not os.path.exists(path):
            raise source.error(node, f"the base config '{path}' does not exist")
        resolved = os.path.realpath(path)
        if resolved in self._chain:
            circle = [*self._chain[self._chain.index(resolved) :], resolved]
            names = " -> ".join(os.path.basename(item) for item in circle)
            raise source.error(node, f"the bases form a circle: {names}")
        if len(self._chain) >= MAX_BASE_DEPTH:
            raise source.error(node, f"more than {MAX_BASE_DEPTH} levels of bases")
        try:
            base = read_source(path)
        except ConfigError as error:
            raise source.error(node, f"the base cannot be read: {error}") from None
        return self._names(base)

    def _import(self, source: Source, node: ast.ImportFrom) -> Names:
        if node.module is None:
            raise EvaluationError("write 'from .module import ...'; 'from . import' has no module")
        path = module_path(node.module, node.level, source.path)
        names = self._file(source, node, path)
        values = copied(names.values, self._budget, base=True)
        return Names(values, names.imports)

    # --- JSON ---

    def _read_json(self, source: Source) -> TrackedDict:
        _check_json(source)
        # JSON is Python with three other names, which gives every value its line and column.
        evaluator = _JsonEvaluator(source, BaseDict(), self._budget)
        expression = source.parse_expression()
        if not isinstance(expression, ast.Dict):
            raise source.error(expression, "a JSON config must be an object")
        return self._evaluated(source, expression, evaluator)

    def _read_yaml(self, source: Source) -> TrackedDict:
        expression = yaml_syntax.yaml_expression(source, self._budget)
        if not isinstance(expression, ast.Dict):
            raise source.error(expression, "a YAML config must be a mapping")
        evaluator = Evaluator(source, BaseDict(), self._budget)
        return self._evaluated(source, expression, evaluator)

    def _evaluated(self, source: Source, expression: ast.Dict, evaluator: Evaluator) -> TrackedDict:
        for key, value in zip(expression.keys, expression.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == BASE_KEY:
                evaluator.base = self._bases(source, value)
        values = evaluator.evaluate(expression)
        values.pop(BASE_KEY, None)
        return self._inherit(values, evaluator.base)


def _base_expression(node: ast.stmt) -> ast.expr | None:
    """Return what a statement assigns to ``_base_``, if it does."""
    if isinstance(node, ast.Assign):
        target = node.targets[0]
        if isinstance(target, ast.Name) and target.id == BASE_KEY and len(node.targets) == 1:
            return node.value
    return None


# The closing quote is optional: a string without one must not be tried again at each of its quotes.
_JSON_STRING_OR_TEMPLATE = re.compile(r'"(?:[^"\\\n]|\\.)*"?|\{\{[^{}]*\}\}')


def _check_json(source: Source) -> None:
    def mask(match: re.Match[str]) -> str:
        text = match[0]
        return text if text.startswith('"') else '"' + "_" * (len(text) - 2) + '"'

    try:
        json.loads(_JSON_STRING_OR_TEMPLATE.sub(mask, source.text))
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"not valid JSON: {error.msg}", source.label, error.lineno, error.colno
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not valid JSON: {error}", source.label) from None


class _JsonEvaluator(Evaluator):
    """Evaluates JSON."""

    def __init__(self, source: Source, base: BaseDict, budget: Budget) -> None:
        super().__init__(source, base, budget)
        origin = Origin(source.label, 1, 1)
        names = {
            "true": True, "false": False, "null": None, "NaN": math.nan, "Infinity": math.inf
        }  # fmt: skip
        for name, value in names.items():
            self.scopes[0].put(name, value, origin)

    def literal_text(self, node: ast.Constant, text: str) -> str:
        """Return what a JSON string says."""
        segment = self.source.segment(node)
        return str(json.loads(segment)) if "\\" in segment else text
