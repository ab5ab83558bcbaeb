"""TensorRT and TensorRT-RTX as a backend."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.engine_spec import EngineSpec, read_engine
from deploykit.errors import SpecError, UsageError
from deploykit.optional_imports import import_optional
from deploykit.runtimes.tensorrt.cuda_device import CudaDevice
from deploykit.runtimes.tensorrt.engine import TensorRTEngine
from deploykit.runtimes.tensorrt.engine_checks import check_device, check_tensors, check_version
from deploykit.runtimes.tensorrt.session import EngineSession, SessionOptions
from deploykit.tensorrt_flavour import FLAVOURS, load_flavour

_NAMES = {"tensorrt": "tensorrt", "rtx": "tensorrt-rtx"}
_IMAGES, _IMAGE_SIZES, _PROPOSALS = "images", "image_sizes", "proposals"


class TensorRTBackend:
    """Runs an ``.engine`` file with its ``.engine.json``, of either flavour of TensorRT.

    It may be shared by threads: each inference borrows a lane (a CUDA stream, execution contexts,
    buffers) from a bounded pool, in the order the threads came.

    Args:
        path: The engine.
        device: ``"auto"`` (the first GPU), ``"cuda"`` or ``"cuda:N"``.
        num_threads: Accepted as the other backends accept it; a GPU has no use for it.
        lanes: Most inferences at a time; each lane takes the engine's scratch memory.
        cuda_graphs: Whether to capture CUDA graphs.
        max_graphs: Most graphs of one lane, each for one set of input shapes.
        batch_buckets: Batch sizes to run for engines with a dynamic batch: a batch in between is
            filled up with zeros. By default powers of two, the smallest and the largest batch.
        kernel_cache: A file where TensorRT-RTX keeps the kernels that it compiles for this GPU when
            an engine first runs, so that it need not do so in the next process.

    Raises:
        BackendError: The engine is damaged or does not fit the installed TensorRT, the GPU or the
            driver, or there is none of them.
        SpecError: The engine has no spec, or one of a flavour that is not known.
        MissingDependencyError: TensorRT or cuda-bindings is not installed.
        UsageError: Options that make no sense.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        num_threads: int | None = None,
        lanes: int = 2,
        cuda_graphs: bool = True,
        max_graphs: int = 8,
        batch_buckets: Sequence[int] | None = None,
        kernel_cache: str | os.PathLike[str] | None = None,
    ) -> None:
        buckets = None if batch_buckets is None else tuple(batch_buckets)
        options = SessionOptions(lanes, cuda_graphs, max_graphs, buckets)
        index = _device_index(device)
        self.path = Path(path)
        self.engine_spec, plan = read_engine(self.path)
        self.spec = self.engine_spec.model
        self.name = _NAMES.get(self.engine_spec.flavour, "")
        kernels = None if kernel_cache is None else Path(kernel_cache)
        gpu, engine = _load(self.engine_spec, plan, self.path, index, kernels)
        self.device = f"cuda:{index}"
        try:
            self._session = EngineSession(gpu, engine, self.path, options)
        except BaseException:
            with gpu.activated():
                engine.free()
            raise
        # TensorRT's objects have to go in order and while the device is active, even if nobody
        # closes this one, and before the process ends.
        self._finalizer = weakref.finalize(self, self._session.close)

    def infer(
        self,
        images: Any,
        image_sizes: Any = None,
        proposals: Any = None,
        *,
        stream: object = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """Run the network on one batch; see ``Backend.infer``.

        Args:
            images: uint8 [B, H, W, 3], RGB: a numpy array, or C-contiguous on this GPU with
                ``__dlpack__`` or ``__cuda_array_interface__`` (PyTorch, CuPy, PyCUDA...).
            image_sizes: int32 [B, 2], on the host or on the GPU; by default all of each image.
            proposals: float32 [B, P, 4], on the host or on the GPU, for models that take them.
            stream: The CUDA stream after whose work arrays on the GPU are complete: a handle, or a
                stream of PyTorch, CuPy, PyCUDA; the legacy default stream if ``None``.

        Returns:
            Arrays of the host; see ``Backend.infer``.

        Raises:
            UsageError: An array or a stream that cannot be used.
            BackendError: The engine takes no such shape, failed, or is closed.
        """
        outputs = self._session.run(self._inputs(images, image_sizes, proposals), stream)
        return {name: outputs[name] for name in self.spec.output.names}

    def infer_device(
        self,
        images: Any,
        image_sizes: Any = None,
        proposals: Any = None,
        *,
        stream: object = None,
        out: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Queue the network on one batch and leave the outputs on the GPU.

        It returns before the GPU is done. What the caller queues on ``stream`` afterwards finds the
        outputs complete, and may overwrite ``images``.

        Args:
            images: As for ``infer``.
            image_sizes: As for ``infer``.
            proposals: As for ``infer``.
            stream: As for ``infer``; the outputs are complete on it, too.
            out: C-contiguous arrays on the GPU that the outputs of these names are written to, in
                the order of ``stream``: it saves the allocation of new ones, and their release,
                for which the driver waits until the GPU is idle.

        Returns:
            ``DeviceArray`` under the names of ``spec.output.names``, or ``out``.

        Raises:
            UsageError: An array or a stream that cannot be used.
            BackendError: The engine takes no such shape, failed, or is closed.
        """
        inputs = self._inputs(images, image_sizes, proposals)
        outputs = self._session.run_on_device(inputs, stream, out)
        return {name: outputs[name] for name in self.spec.output.names if name in outputs}

    def close(self) -> None:
        """Free the engine, once the inferences that are under way in other threads are done.

        Outputs that ``infer_device`` gave stay valid.
        """
        self._session.close()
        self._finalizer.detach()

    def _inputs(self, images: Any, image_sizes: Any, proposals: Any) -> dict[str, Any]:
        inputs = {_IMAGES: images}
        if self.spec.input.image_sizes_input:
            if image_sizes is None:
                batch, height, width = (int(size) for size in images.shape[:3])
                image_sizes = np.tile(np.array([height, width], np.int32), (batch, 1))
            inputs[_IMAGE_SIZES] = image_sizes
        if self.spec.input.proposals:
            inputs[_PROPOSALS] = proposals
        return inputs

    def __enter__(self) -> TensorRTBackend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _load(
    spec: EngineSpec, plan: bytes, path: Path, index: int, kernels: Path | None
) -> tuple[CudaDevice, TensorRTEngine]:
    """Return the device and the engine on it, everything checked in the order of its cost."""
    if spec.flavour not in FLAVOURS:
        raise SpecError(
            f"{path} is for the TensorRT flavour '{spec.flavour}'; this deploykit knows "
            f"{', '.join(FLAVOURS)}"
        )
    trt = load_flavour(spec.flavour)
    check_version(spec, trt.__version__, path)
    import_optional("cuda.bindings.driver", spec.flavour, "Running an engine")
    device = CudaDevice(index)
    check_device(spec, device, path)
    # A version-compatible engine brings the runtime of the version that built it.
    foreign = spec.build_flags.version_compatible and spec.tensorrt_version != trt.__version__
    with device.activated():
        engine = TensorRTEngine(
            trt, spec.flavour, plan, path, host_code=foreign, kernel_cache=kernels
        )
        try:
            check_tensors(spec.model, engine.tensors, path)
        except BaseException:
            engine.free()
            raise
    return device, engine


def _device_index(device: str) -> int:
    match = re.fullmatch(r"auto|cuda(?::(\d+))?", device)
    if not match:
        hint = "" if device != "cpu" else "; on the CPU run the .onnx file of the model"
        raise UsageError(
            f"an engine cannot run on device '{device}'; expected auto, cuda or cuda:N{hint}"
        )
    return int(match[1] or 0)
