"""PyTorch as a backend: the reference that every other engine is compared with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deploykit.errors import BackendError, UsageError
from deploykit.optional_imports import import_optional
from deploykit.runtimes.backend import one_line

if TYPE_CHECKING:
    from deploykit.training.model_spec import LoadedModel


class PyTorchBackend:
    """Runs the ``predict`` of a checkpoint in eager PyTorch.

    Inferences of several threads run one after the other.

    Args:
        path: A ``.pth`` checkpoint that holds its config (as deploykit and MMDetection write it).
        device: Any torch device, or ``"auto"`` for CUDA where there is one, else the CPU.
        num_threads: Threads that PyTorch uses on the CPU, **in the whole process**: PyTorch knows
            no other way.
        channels_last: Whether the weights are laid out channels-last. Convolutions are faster so on
            most hardware; the results differ in the last bits.
        loaded: The model of the checkpoint, if the caller has loaded it already (with another
            config or other test options than those in the file, for example).

    Raises:
        BackendError: The device is not available.
        CheckpointError: The checkpoint is damaged or does not fit its model.
    """

    name = "pytorch"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        num_threads: int | None = None,
        channels_last: bool = False,
        loaded: LoadedModel | None = None,
    ) -> None:
        torch: Any = import_optional("torch", "train", "Running a .pth checkpoint")
        from deploykit.training.model_spec import load_model

        self.path = Path(path)
        self.device = _choose_device(torch, device)
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        if loaded is None:
            loaded = load_model(self.path, device=self.device)
        self.spec = loaded.spec
        self._torch = torch
        model: Any = loaded.model.to(self.device)
        self._model = model.to(memory_format=torch.channels_last) if channels_last else model
        self._lock = Lock()

    def infer(
        self,
        images: npt.NDArray[np.uint8],
        image_sizes: npt.NDArray[np.int32],
        proposals: npt.NDArray[np.float32] | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """Run the network on one batch; see ``Backend.infer``."""
        return self._infer(images, image_sizes, proposals)

    def infer_with_noise(
        self,
        images: npt.NDArray[np.uint8],
        image_sizes: npt.NDArray[np.int32],
        proposals: npt.NDArray[np.float32] | None = None,
        *,
        noise: float,
        seed: int,
    ) -> dict[str, npt.NDArray[Any]]:
        """Run the network with noise in its layers, to see which results rounding decides.

        Args:
            images: See ``Backend.infer``.
            image_sizes: See ``Backend.infer``.
            proposals: See ``Backend.infer``.
            noise: Every number that a layer with weights computes is multiplied by a random one
                within 1 - noise and 1 + noise.
            seed: The same seed gives the same noise.

        Raises:
            BackendError: The engine failed or is closed.
        """
        return self._infer(images, image_sizes, proposals, noise, seed)

    def _infer(
        self,
        images: npt.NDArray[np.uint8],
        image_sizes: npt.NDArray[np.int32],
        proposals: npt.NDArray[np.float32] | None,
        noise: float | None = None,
        seed: int = 0,
    ) -> dict[str, npt.NDArray[Any]]:
        torch = self._torch
        with self._lock, torch.inference_mode():
            if self._model is None:
                raise BackendError(f"{self.path} is closed; open it again to detect")
            try:
                batch = torch.from_numpy(images).to(self.device)
                sizes = None
                if self.spec.input.image_sizes_input:
                    sizes = torch.from_numpy(image_sizes).to(self.device)
                inputs: tuple[Any, ...] = (batch, sizes)
                if proposals is not None:
                    inputs += (torch.from_numpy(proposals).to(self.device),)
                with nullcontext() if noise is None else self._noise(noise, seed):
                    outputs = self._model.predict(*inputs)
                return {
                    name: output.cpu().numpy()
                    for name, output in zip(self.spec.output.names, outputs, strict=True)
                }
            except RuntimeError as error:  # torch's own failures, out of memory among them
                raise BackendError(
                    f"PyTorch failed on {self.path} with an input of shape {list(images.shape)}: "
                    f"{one_line(error)}"
                ) from error

    @contextmanager
    def _noise(self, noise: float, seed: int) -> Iterator[None]:
        torch = self._torch
        generator = torch.Generator().manual_seed(seed)

        def multiply(module: Any, inputs: Any, output: Any) -> Any:
            factors = torch.empty(output.shape).uniform_(1 - noise, 1 + noise, generator=generator)
            return output * factors.to(output.device, output.dtype)

        layers = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
        hooks = [
            module.register_forward_hook(multiply)
            for module in self._model.modules()
            if isinstance(module, layers)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def close(self) -> None:
        """Release the model; an inference that is under way finishes first."""
        with self._lock:
            self._model = None


def _choose_device(torch: Any, device: str) -> str:
    """Return the name of a torch device that exists."""
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(
            f"unknown device '{device}'; expected auto, cpu, cuda, cuda:N or another torch device"
        ) from None
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            raise BackendError(
                f"device '{device}' is not available: PyTorch sees {count} CUDA device(s)"
            )
        return f"cuda:{chosen.index or 0}"
    return str(chosen)
