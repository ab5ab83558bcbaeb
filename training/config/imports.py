"""Imports: never done, only read.

A name imported from a package other than Python's own is the name of a type, as in MMEngine's
"pure Python" configs (``type=RTMDet``); it becomes the string ``"RTMDet"``. A few pure functions of
the standard library can be called. Nothing else of an import can be used; unused ones are ignored.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deploykit.training.config.functions import CONSTANTS, LIBRARY
from deploykit.training.config.limits import EvaluationError

# Packages that compute values rather than name types.
_COMPUTING = frozenset({"numpy"})


@dataclass(frozen=True)
class ImportedName:
    """What a name stands for after an import: a dotted path."""

    dotted: str


def imported_value(dotted: str) -> Any:
    """Return what an imported name means as a value: a constant, or the name of a type.

    Raises:
        EvaluationError: It is a module, or something that would have to be computed.
    """
    if dotted in CONSTANTS:
        return CONSTANTS[dotted]
    package, _, name = dotted.partition(".")
    if package in sys.stdlib_module_names or package in _COMPUTING:
        usable = ", ".join(sorted([*LIBRARY, *CONSTANTS]))
        raise EvaluationError(
            f"'{dotted}' cannot be used: a config is read, not run; usable imports: {usable}"
        )
    if not name:
        raise EvaluationError(f"the package '{dotted}' is no value; name a type in it")
    last = name.rpartition(".")[2]
    if last.startswith("__"):
        raise EvaluationError(f"the attribute '{last}' cannot be used in a config")
    return last


def module_path(module: str, level: int, path: Path | None) -> Path:
    """Return the config file that an import under ``with read_base():`` names.

    Args:
        module: Dotted module name, without leading dots.
        level: Number of leading dots.
        path: The importing file.

    Raises:
        EvaluationError: The import is relative but there is no file, or the package of an absolute
            import is not installed.
    """
    parts = module.split(".")
    if level:
        if path is None:
            raise EvaluationError("a relative import needs a config that is a file")
        folder = path.parent
        for _ in range(level - 1):
            folder = folder.parent
        return folder.joinpath(*parts).with_suffix(".py")
    if len(parts) < 2:
        raise EvaluationError(f"'{module}' is a package, not a config file in one")
    return package_folder(parts[0], module).joinpath(*parts[1:]).with_suffix(".py")


def scoped_path(name: str) -> Path:
    """Return the file that a base like ``"mmdet::_base_/default_runtime.py"`` names.

    Raises:
        EvaluationError: It is malformed, or the package is not installed.
    """
    package, _, relative = name.partition("::")
    if not package.isidentifier() or not relative or "::" in relative:
        raise EvaluationError(f"'{name}' is no base of another package: write package::folder/x.py")
    folder = package_folder(_DISTRIBUTED_AS.get(package, package), name, ".mim/configs/")
    return folder / ".mim" / "configs" / relative


# Where the scope of MMEngine and the importable package have different names.
_DISTRIBUTED_AS = {"mmcls": "mmpretrain", "mmedit": "mmagic"}


def package_folder(package: str, wanted: str, subfolder: str = "") -> Path:
    """Return the folder of an installed package, without importing it.

    Args:
        package: The package.
        wanted: What is looked for, for the message.
        subfolder: The part of the package that ``wanted`` is in, for the message.

    Raises:
        EvaluationError: It is not installed.
    """
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    locations = list(spec.submodule_search_locations or ()) if spec else []
    if not locations:
        raise EvaluationError(
            f"'{wanted}' would be looked up in {package}/{subfolder} of an installed '{package}', "
            "which is not installed here; install it, or copy the file and give its path"
        )
    return Path(locations[0])
