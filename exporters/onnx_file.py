"""ONNX files that describe themselves and notice damage."""

from __future__ import annotations

from pathlib import Path

import onnx

from deploykit.onnx_seal import BLANK_SEAL, SEAL_KEY, seal
from deploykit.spec import METADATA_KEY, ModelSpec


def set_spec(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Make a spec the metadata of a model, in place of any other metadata."""
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=spec.to_json())
    model.metadata_props.add(key=SEAL_KEY, value=BLANK_SEAL)


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model that has a spec, with its checksum.

    Raises:
        OSError: The file cannot be written.
    """
    path.write_bytes(seal(model.SerializeToString(deterministic=True)))
