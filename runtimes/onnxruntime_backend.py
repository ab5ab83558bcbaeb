"""ONNX Runtime as a backend. Imports no torch."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.errors import BackendError, SpecError, UsageError
from deploykit.onnx_seal import is_damaged
from deploykit.optional_imports import import_optional
from deploykit.runtimes.backend import one_line
from deploykit.spec import METADATA_KEY, ModelSpec

# ONNX Runtime's own levels: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal. Its errors come back as
# exceptions, which we report; printing them as well would double them.
_LOG_FATAL = 4
_EXECUTION_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_IMAGES, _IMAGE_SIZES, _PROPOSALS = "images", "image_sizes", "proposals"


class OnnxRuntimeBackend:
    """Runs an ``.onnx`` file that carries a model spec.

    Args:
        path: The file; external weights beside it are found by ONNX Runtime.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"`` for CUDA where ONNX Runtime
            offers it, else the CPU.
        num_threads: Threads that one inference uses on the CPU; by default ONNX Runtime decides
            (one per physical core).
        graph_optimization: ``"all"``, ``"extended"``, ``"basic"`` or ``"disabled"``.

    Raises:
        BackendError: The file is damaged, does not fit its spec, or the device is not available.
        SpecError: The file carries no model spec.
    """

    name = "onnxruntime"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        num_threads: int | None = None,
        graph_optimization: str = "all",
    ) -> None:
        ort = import_optional("onnxruntime", "all", "Running an .onnx file")
        self.path = Path(path)
        if self.path.is_file() and is_damaged(self.path):
            raise BackendError(
                f"{self.path} is damaged or was edited: its checksum does not match; copy it again "
                f"or make it again with: deploykit convert"
            )
        options = _session_options(ort, num_threads, graph_optimization)
        kinds, index = _parse_device(device, ort.get_available_providers())
        session, kind = self._open_first(ort, options, kinds, index)
        self.device = kind if kind == "cpu" else f"{kind}:{index}"
        self.spec = self._read_spec(session)
        self._outputs = list(self.spec.output.names)
        self._check_signature(session)
        self._session: Any = session

    def infer(
        self,
        images: npt.NDArray[np.uint8],
        image_sizes: npt.NDArray[np.int32],
        proposals: npt.NDArray[np.float32] | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """Run the network on one batch; see ``Backend.infer``."""
        session = self._session
        if session is None:
            raise BackendError(f"{self.path} is closed; open it again to detect")
        feeds: dict[str, npt.NDArray[Any]] = {_IMAGES: images}
        if self.spec.input.image_sizes_input:
            feeds[_IMAGE_SIZES] = image_sizes
        if proposals is not None:
            feeds[_PROPOSALS] = proposals
        try:
            values = session.run(self._outputs, feeds)
        except Exception as error:  # ONNX Runtime's exceptions share no narrower base class
            raise BackendError(
                f"ONNX Runtime failed on {self.path} with an input of shape {list(images.shape)}: "
                f"{one_line(error)}"
            ) from error
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Release the session. Inferences that are under way in other threads finish."""
        self._session = None

    def _open_first(self, ort: Any, options: Any, kinds: list[str], index: int) -> tuple[Any, str]:
        """Return a session on the first kind of device that works, and that kind."""
        *preferred, last = kinds
        for kind in preferred:
            try:
                return self._open(ort, options, kind, index), kind
            except BackendError as error:
                warnings.warn(f"{error}; trying the {last}", RuntimeWarning, stacklevel=4)
        return self._open(ort, options, last, index), last

    def _open(self, ort: Any, options: Any, kind: str, index: int) -> Any:
        provider = _EXECUTION_PROVIDERS[kind]
        providers: list[Any] = [provider]
        if kind != "cpu":
            # Shape arithmetic has no CUDA kernels; ONNX Runtime needs the CPU for those nodes.
            providers = [(provider, {"device_id": index}), _EXECUTION_PROVIDERS["cpu"]]
        try:
            session = ort.InferenceSession(str(self.path), options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions share no narrower base class
            raise BackendError(
                f"ONNX Runtime cannot load {self.path} on {provider}; is it damaged, or not an "
                f"ONNX model? {one_line(error)}"
            ) from error
        actual = session.get_providers()[0]
        if actual != provider:
            raise BackendError(
                f"{self.path} was to run on {provider}, but ONNX Runtime fell back to {actual}; "
                f"check the CUDA and cuDNN libraries, or ask for device 'cpu'"
            )
        return session

    def _read_spec(self, session: Any) -> ModelSpec:
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise SpecError(
                f"{self.path} carries no deploykit model spec, so its classes and its input are "
                f"unknown. Make one that does with: deploykit convert CHECKPOINT --to onnx"
            )
        return ModelSpec.from_json(text, str(self.path))

    def _check_signature(self, session: Any) -> None:
        """Refuse a graph whose inputs or outputs are not those that its spec promises."""
        inputs = {node.name: node.type for node in session.get_inputs()}
        expected = {_IMAGES: "tensor(uint8)"}
        if self.spec.input.image_sizes_input:
            expected[_IMAGE_SIZES] = "tensor(int32)"
        if self.spec.input.proposals:
            expected[_PROPOSALS] = "tensor(float)"
        if inputs != expected:
            raise BackendError(f"{self.path} has the inputs {inputs}, its spec says {expected}")
        outputs = {node.name for node in session.get_outputs()}
        if missing := set(self._outputs) - outputs:
            raise BackendError(
                f"{self.path} lacks the outputs {sorted(missing)} of its spec; it has "
                f"{sorted(outputs)}"
            )


def _parse_device(device: str, available: list[str]) -> tuple[list[str], int]:
    """Return the kinds of device to try, in order, and the index among devices of that kind."""
    if device == "auto":
        return [kind for kind in ("cuda", "cpu") if _EXECUTION_PROVIDERS[kind] in available], 0
    match = re.fullmatch(r"(cpu|cuda)(?::(\d+))?", device)
    if not match or (match[1] == "cpu" and match[2]):
        raise UsageError(f"unknown device '{device}'; expected auto, cpu, cuda or cuda:N")
    provider = _EXECUTION_PROVIDERS[match[1]]
    if provider not in available:
        raise BackendError(
            f"device '{device}' needs {provider}, but this ONNX Runtime offers only "
            f"{', '.join(available)}. Install it with: pip install 'deploykit[gpu]'"
        )
    return [match[1]], int(match[2] or 0)


def _session_options(ort: Any, num_threads: int | None, graph_optimization: str) -> Any:
    levels = {
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }
    if graph_optimization not in levels:
        raise UsageError(
            f"unknown graph optimization '{graph_optimization}'; expected {', '.join(levels)}"
        )
    options = ort.SessionOptions()
    options.graph_optimization_level = levels[graph_optimization]
    options.log_severity_level = _LOG_FATAL
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    return options
