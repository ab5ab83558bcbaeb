"""Imports of optional packages, with an error that names the extra to install."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from deploykit.errors import MissingDependencyError


def import_optional(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: Dotted module name, e.g. ``"torch"``.
        extra: The extra of deploykit that installs it, e.g. ``"train"``.
        purpose: What needs it, as the subject of a sentence, e.g. ``"Training"``.

    Returns:
        The imported module.

    Raises:
        MissingDependencyError: The package is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != package:
            raise
        raise MissingDependencyError(
            f"{purpose} needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'deploykit[{extra}]'"
        ) from None
