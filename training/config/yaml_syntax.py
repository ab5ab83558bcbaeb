"""YAML as the syntax tree of a Python expression, so that it is read as the other configs are."""

from __future__ import annotations

import ast
import importlib
from typing import Any

from deploykit.errors import ConfigError
from deploykit.training.config.limits import Budget, EvaluationError, check_depth
from deploykit.training.config.source import Source

SUFFIXES = (".yaml", ".yml")


def yaml_expression(source: Source, budget: Budget) -> ast.expr:
    """Return the expression that a YAML config amounts to, with the positions of its parts.

    Args:
        source: The config. Tags other than those of plain values are refused, aliases are expanded.
        budget: Pays for every node.

    Raises:
        ConfigError: PyYAML is not installed, or it is not one document of plain values.
        EvaluationError: It is larger than the budget allows, or nested too deeply.
    """
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError:
        raise ConfigError(
            "reading a YAML config needs PyYAML: pip install pyyaml, or convert it to .py or .json",
            source.label,
        ) from None
    loader = yaml.SafeLoader(source.text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise ConfigError("the config is empty", source.label)
        return _Translator(yaml, loader, source, budget).expression(root, 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else ()
        raise ConfigError(f"not valid YAML: {error.problem}", source.label, *place) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise ConfigError(f"not valid YAML: {line}", source.label) from None
    finally:
        loader.dispose()


class _Translator:
    def __init__(self, yaml: Any, loader: Any, source: Source, budget: Budget) -> None:
        self._yaml, self._loader = yaml, loader
        self._source, self._budget = source, budget
        self._lines = source.text.split("\n")

    def expression(self, node: Any, depth: int) -> ast.expr:
        self._budget.spend(1)
        check_depth(depth)
        if isinstance(node, self._yaml.SequenceNode):
            self._require(node, "seq")
            elements = [self.expression(item, depth + 1) for item in node.value]
            return self._placed(ast.List(elements, ast.Load()), node)
        if isinstance(node, self._yaml.MappingNode):
            template = self._template(node)
            if template is not None:
                return template
            self._require(node, "map")
            self._loader.flatten_mapping(node)  # merges what "<<" names
            keys: list[ast.expr | None] = [self.expression(key, depth + 1) for key, _ in node.value]
            values = [self.expression(value, depth + 1) for _, value in node.value]
            return self._placed(ast.Dict(keys, values), node)
        self._require(node, "str", "int", "float", "bool", "null")
        return self._placed(ast.Constant(self._loader.construct_object(node)), node)

    def _template(self, node: Any) -> ast.expr | None:
        """Return what ``{{ x }}`` means, which to YAML is a mapping with a mapping as its key."""
        for _ in range(2):
            if not isinstance(node, self._yaml.MappingNode) or len(node.value) != 1:
                return None
            node, value = node.value[0]
            if value.tag != "tag:yaml.org,2002:null":
                return None
        if not isinstance(node, self._yaml.ScalarNode):
            return None
        text = "{{" + node.value + "}}"
        try:
            expression: ast.expr = ast.parse(text, mode="eval").body
        except SyntaxError:
            raise EvaluationError(f"'{text}' is no known template") from None
        for part in ast.walk(expression):
            if isinstance(part, ast.expr):
                self._placed(part, node)
        return expression

    def _require(self, node: Any, *kinds: str) -> None:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind not in kinds:
            mark = node.start_mark
            raise ConfigError(
                f"the YAML tag '{kind}' cannot stand in a config; write a plain value",
                self._source.label,
                mark.line + 1,
                mark.column + 1,
            )

    def _placed(self, expression: ast.expr, node: Any) -> ast.expr:
        mark = node.start_mark
        line = self._lines[mark.line] if mark.line < len(self._lines) else ""
        # Python counts columns in bytes.
        expression.lineno = expression.end_lineno = mark.line + 1
        expression.col_offset = expression.end_col_offset = len(line[: mark.column].encode())
        return expression
