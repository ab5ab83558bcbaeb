"""``EngineSpec``: what is known about a TensorRT engine, kept in a JSON file beside it.

``NAME.engine`` is a plain TensorRT plan, which ``trtexec`` loads as well. ``NAME.engine.json`` says
what the plan cannot: the model, how it was built, and on what it runs. The hash in it ties the two
together, so that an engine that was cut off, changed or swapped is refused before TensorRT sees it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit.atomic_file import atomic_path
from deploykit.errors import BackendError, SpecError
from deploykit.spec import ModelSpec

ENGINE_SPEC_VERSION = 1


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a graph.

    Args:
        name: Its name.
        dtype: Element type, e.g. ``"uint8"``.
        shape: Sizes; a string names a dynamic axis.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class PluginKernel:
    """A kernel of ours that is baked into an engine.

    Args:
        name: Name of the kernel.
        sha256: Hash of its source.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class PrecisionUsed:
    """In what precision an engine computes.

    Args:
        source: ``"engine"`` when TensorRT's inspector told it; ``"graph"`` when the engine could
            not be loaded where it was built, and these are the types written in the strongly typed
            graph it was built from.
        types: How often each type occurs: of the layers of the engine, or of the results of the
            nodes of the graph.
    """

    source: str
    types: dict[str, int]


@dataclass(frozen=True)
class BuildFlags:
    """How an engine was asked for.

    Args:
        workspace: Limit of the scratch memory in bytes, or ``None`` for TensorRT's own.
        version_compatible: Whether later TensorRT versions of the same major one load it.
        hardware_compatible: Whether other GPUs than the one it was built on load it (``tensorrt``:
            compute capability 8.0 and newer).
        compute_capabilities: Of the GPUs that a TensorRT-RTX engine holds code for, e.g. ``"8.6"``;
            empty where it is compiled when it is loaded, or for the GPU of the builder.
        tf32: Whether fp32 convolutions may round to TF32.
    """

    workspace: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()
    tf32: bool = False


@dataclass(frozen=True)
class BuildRecord:
    """What happened in the build.

    Args:
        seconds: How long it took, parsing included.
        messages: TensorRT's log, information and more severe, as ``"SEVERITY: text"``.
    """

    seconds: float
    messages: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """The messages that are warnings or errors."""
        return tuple(text for text in self.messages if not text.startswith("INFO: "))


@dataclass(frozen=True)
class EngineSpec:
    """Everything a runtime needs to know before it loads an engine.

    Args:
        model: The model it was built from.
        flavour: ``"tensorrt"`` or ``"rtx"``.
        tensorrt_version: Version that built it.
        engine_sha256: Hash of the engine file.
        engine_bytes: Its size.
        onnx_sha256: Hash of the ONNX file it was built from.
        inputs: Of the engine.
        outputs: Of the engine.
        compute_capability: Of the GPU it was built on and for, e.g. ``"8.6"``; ``None`` for a
            TensorRT-RTX engine, which is not tied to one.
        device_name: Of that GPU.
        driver_version: CUDA version of the driver it was built with, e.g. ``"13.0"``.
        plugins: Our kernels in it.
        precision_used: In what precision it computes.
        build_flags: How it was asked for.
        build_log: What happened in the build.
        version: Version of this JSON layout.
    """

    model: ModelSpec
    flavour: str
    tensorrt_version: str
    engine_sha256: str
    engine_bytes: int
    onnx_sha256: str
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    compute_capability: str | None = None
    device_name: str | None = None
    driver_version: str | None = None
    plugins: tuple[PluginKernel, ...] = ()
    precision_used: PrecisionUsed = field(default_factory=lambda: PrecisionUsed("graph", {}))
    build_flags: BuildFlags = field(default_factory=BuildFlags)
    build_log: BuildRecord = field(default_factory=lambda: BuildRecord(0.0))
    version: int = ENGINE_SPEC_VERSION

    def to_json(self, indent: int | None = 2) -> str:
        """Return the spec as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=indent, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, source: str = "the engine") -> EngineSpec:
        """Read a spec back from JSON text.

        Args:
            text: What ``to_json`` wrote.
            source: Where the text came from, for messages.

        Raises:
            SpecError: The text is not a spec, or a newer deploykit wrote it.
        """
        try:
            data = json.loads(text)
            version = int(data["version"])
        except (ValueError, TypeError, KeyError) as error:
            raise SpecError(
                f"{source} is not the spec of an engine ({error!r}); "
                "build the engine again with: deploykit convert --to tensorrt"
            ) from None
        if version > ENGINE_SPEC_VERSION:
            raise SpecError(
                f"{source} was written with engine spec version {version}; this deploykit reads "
                f"versions up to {ENGINE_SPEC_VERSION}. Upgrade deploykit."
            )
        model = ModelSpec.from_json(json.dumps(data.get("model")), source)
        try:
            flags = dict(data["build_flags"])
            flags["compute_capabilities"] = tuple(flags["compute_capabilities"])
            log = dict(data["build_log"])
            fields = dict(data) | {
                "model": model,
                "inputs": _tensors(data["inputs"]),
                "outputs": _tensors(data["outputs"]),
                "plugins": tuple(PluginKernel(**kernel) for kernel in data["plugins"]),
                "precision_used": PrecisionUsed(**data["precision_used"]),
                "build_flags": BuildFlags(**flags),
                "build_log": BuildRecord(log["seconds"], tuple(log["messages"])),
            }
            return cls(**fields)
        except (TypeError, KeyError, ValueError) as error:
            raise SpecError(
                f"{source} holds an incomplete engine spec ({error!r}); "
                "build the engine again with: deploykit convert --to tensorrt"
            ) from None


def _tensors(entries: list[dict[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(entry["name"], entry["dtype"], tuple(entry["shape"])) for entry in entries
    )


def engine_spec_path(engine: str | os.PathLike[str]) -> Path:
    """Return where the spec of an engine file is: ``NAME.engine.json``."""
    return Path(f"{os.fspath(engine)}.json")


def read_engine_spec(engine: str | os.PathLike[str]) -> EngineSpec:
    """Read the spec beside an engine, without a look at the engine itself.

    Raises:
        BackendError: The engine is missing.
        SpecError: Its spec is missing, damaged or of a newer version.
    """
    file, spec_file = Path(engine), engine_spec_path(engine)
    if not file.is_file():
        what = "a directory" if file.is_dir() else "missing"
        raise BackendError(f"expected an engine file, but this is {what}: {file}")
    try:
        text = spec_file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(
            f"{file} has no spec beside it: expected {spec_file.name} in the same folder. Copy it "
            "along with the engine, or build both with: deploykit convert --to tensorrt"
        ) from None
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{spec_file} is damaged ({error.reason}); build the engine again"
        ) from None
    return EngineSpec.from_json(text, str(spec_file))


def read_engine(engine: str | os.PathLike[str]) -> tuple[EngineSpec, bytes]:
    """Read an engine and its spec, and check that the two belong together.

    Args:
        engine: A ``.engine`` file with its ``.engine.json`` beside it.

    Returns:
        The spec, and the serialised engine.

    Raises:
        BackendError: The engine is missing, was cut off, changed or swapped.
        SpecError: Its spec is missing, damaged or of a newer version.
    """
    spec = read_engine_spec(engine)
    plan = Path(engine).read_bytes()
    again = "copy both files again, or build them with: deploykit convert --to tensorrt"
    if len(plan) != spec.engine_bytes:
        raise BackendError(
            f"{engine} has {len(plan):,} bytes, but its spec says {spec.engine_bytes:,}: it was "
            f"cut off, or it is another engine; {again}"
        )
    digest = hashlib.sha256(plan).hexdigest()
    if digest != spec.engine_sha256:
        raise BackendError(
            f"{engine} has the SHA-256 {digest[:16]}..., but its spec says "
            f"{spec.engine_sha256[:16]}...: it was changed, or it is another engine; {again}"
        )
    return spec, plan


def write_engine(
    engine: str | os.PathLike[str], plan: bytes | memoryview, spec: EngineSpec
) -> None:
    """Write an engine and its spec, both or neither.

    Both are complete under temporary names before the first is renamed, so a killed process leaves
    what was there before. Killed between the two renames it leaves an engine that ``read_engine``
    refuses, never one with a wrong spec.

    Args:
        engine: The ``.engine`` file to write.
        plan: The serialised engine.
        spec: Its spec; the hash and the size in it have to be those of ``plan``.

    Raises:
        SpecError: They are not.
    """
    digest = hashlib.sha256(plan).hexdigest()
    if (len(plan), digest) != (spec.engine_bytes, spec.engine_sha256):
        raise SpecError("the spec does not describe the engine that it is to be written with")
    with atomic_path(engine_spec_path(engine)) as spec_file:
        spec_file.write_text(spec.to_json(), encoding="utf-8")
        with atomic_path(engine) as file:
            file.write_bytes(plan)
