"""Pickles of plain containers and numpy arrays, read without executing anything in them.

MMDetection's proposal files are pickles of a dict of mmengine's ``InstanceData``. The few globals
that such a file needs are replaced by our own, which hold values and do nothing; every other one is
refused.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from deploykit.errors import DatasetError
from deploykit.inert_pickle import NUMPY, InertObject, bytes_of_text

_ALLOWED: dict[tuple[str, str], Any] = {
    **NUMPY,
    ("_codecs", "encode"): bytes_of_text,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("collections", "OrderedDict"): dict,
    ("mmengine.structures.instance_data", "InstanceData"): InertObject,
    ("mmengine.structures", "InstanceData"): InertObject,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(
                f"it holds {module}.{name}, which is not on the list of what is safe to read"
            )
        return found


def read_pickle(file: Path) -> Any:
    """Return what a pickle of plain containers, numpy arrays and ``InstanceData`` holds.

    ``InstanceData`` come back as dicts of their attributes, arrays as something that
    ``numpy.asarray`` takes.

    Raises:
        DatasetError: The file is damaged, or holds anything else.
        OSError: It cannot be read.
    """
    with file.open("rb") as stream:
        try:
            return _PlainUnpickler(stream).load()
        except OSError:
            raise
        except Exception as error:  # an unpickler on damaged bytes can raise nearly anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DatasetError(
                f"{file}: not a file of proposals, or damaged: {reason}; it may hold dicts, lists "
                f"and numpy arrays"
            ) from None
