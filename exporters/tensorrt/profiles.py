"""Optimisation profiles: which input shapes an engine takes, and which one it is tuned for."""

from __future__ import annotations

from typing import Any

from deploykit.errors import ExportError
from deploykit.spec import InputSpec

IMAGES, IMAGE_SIZES, PROPOSALS = "images", "image_sizes", "proposals"
Shape = tuple[int, ...]


def input_shapes(spec: InputSpec) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Return the smallest, optimal and largest shape of each input of a detector.

    Args:
        spec: The input of the artefact.
    """
    batch, height, width = spec.batch, spec.height, spec.width
    shapes: dict[str, tuple[Shape, Shape, Shape]] = {
        IMAGES: (
            (batch.min, height.min, width.min, 3),
            (batch.opt, height.opt, width.opt, 3),
            (batch.max, height.max, width.max, 3),
        )
    }
    if spec.image_sizes_input:
        shapes[IMAGE_SIZES] = ((batch.min, 2), (batch.opt, 2), (batch.max, 2))
    if spec.proposals:
        rows = (spec.proposals, 4)
        shapes[PROPOSALS] = ((batch.min, *rows), (batch.opt, *rows), (batch.max, *rows))
    return shapes


def add_profile(builder: Any, config: Any, network: Any, spec: InputSpec) -> None:
    """Add the optimisation profile of a detector to a builder configuration.

    A network without a dynamic axis needs none.

    Args:
        builder: An ``IBuilder``.
        config: Its ``IBuilderConfig``.
        network: The parsed network.
        spec: The input of the artefact.

    Raises:
        ExportError: The network's inputs are not those of the spec, or do not take its shapes.
    """
    shapes = input_shapes(spec)
    inputs = {tensor.name: tuple(tensor.shape) for tensor in _inputs(network)}
    if inputs.keys() != shapes.keys():
        raise ExportError(
            f"the graph has the inputs {', '.join(inputs)}, but its spec says "
            f"{', '.join(shapes)}; export it again with: deploykit convert --to onnx"
        )
    for name, shape in inputs.items():
        for wanted in shapes[name]:
            if not _takes(shape, wanted):
                raise ExportError(
                    f"the input '{name}' of the graph has the shape {_text(shape)}, but its spec "
                    f"asks for {_text(wanted)}; export it again with: deploykit convert --to onnx"
                )
    if not any(-1 in shape for shape in inputs.values()):
        return
    profile = builder.create_optimization_profile()
    for name, (smallest, optimal, largest) in shapes.items():
        profile.set_shape(name, smallest, optimal, largest)
    if config.add_optimization_profile(profile) < 0:
        raise ExportError(f"TensorRT refuses the optimisation profile {shapes}")


def _inputs(network: Any) -> list[Any]:
    return [network.get_input(index) for index in range(network.num_inputs)]


def _takes(shape: Shape, wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(
        size in (-1, asked) for size, asked in zip(shape, wanted, strict=True)
    )


def _text(shape: Shape) -> str:
    return f"[{', '.join('?' if size < 0 else str(size) for size in shape)}]"
