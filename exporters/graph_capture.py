"""From a detector in PyTorch to an ONNX graph whose seam operators are still opaque nodes."""

from __future__ import annotations

import re
import traceback
import warnings
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.onnx.errors import OnnxExporterError

from deploykit.errors import ExportError
from deploykit.exporters.translations import translation_table
from deploykit.proposals import grid_proposals
from deploykit.spec import DimRange, InputSpec, ModelSpec

# ONNX Runtime's CUDA provider has no kernel for Resize from opset 19 and ReduceMax from opset 20.
OPSET = 18
IMAGES, IMAGE_SIZES = "images", "image_sizes"


class _Predict(nn.Module):
    """A detector's ``predict`` as ``forward``, which is what ``torch.export`` traces."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(
        self, images: Tensor, image_sizes: Tensor | None = None, proposals: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.detector(images, image_sizes, proposals)
        return outputs


def capture(detector: nn.Module, spec: ModelSpec) -> ir.Model:
    """Export ``predict`` to ONNX with ``torch.export`` and PyTorch's dynamo exporter.

    Args:
        detector: A detector in eval mode, on the CPU.
        spec: Its spec with the input shapes to export.

    Returns:
        The graph, not optimised, with ``deploykit::BatchedNMS`` nodes. Inputs are ``images`` uint8
        [B, H, W, 3] and, where the spec says so, ``image_sizes`` int32 [B, 2] and ``proposals``
        float32 [B, P, 4]; outputs are named by the spec. Every node knows its PyTorch module in its
        metadata.

    Raises:
        ExportError: PyTorch cannot trace the model, or an operator has no ONNX form.
    """
    program = _trace(_Predict(detector).eval(), spec.input)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own internals
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table=translation_table(),
                input_names=list(spec.input.names),
                output_names=list(spec.output.names),
                optimize=False,
                verbose=False,
            )
    except OnnxExporterError as error:
        raise ExportError(_untranslatable(error)) from error
    if exported is None:
        raise ExportError("PyTorch's ONNX exporter returned nothing")
    model: ir.Model = exported.model
    _name_axes(model, spec.input)
    return model


def example_inputs(spec: InputSpec, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
    """Return random images of a shape, and sizes and proposals where the model takes them.

    Args:
        spec: The input of the model.
        batch: Number of images.
        height: In pixels.
        width: In pixels.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (batch, height, width, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    inputs = [images]
    if spec.image_sizes_input:
        inputs.append(torch.tensor([[height, width]], dtype=torch.int32).repeat(batch, 1))
    if spec.proposals:
        boxes = torch.from_numpy(grid_proposals((height, width), spec.proposals))
        inputs.append(boxes.repeat(batch, 1, 1))
    return tuple(inputs)


def _trace(model: nn.Module, spec: InputSpec) -> ExportedProgram:
    # An axis of length 1 would be taken for a constant, so a dynamic batch is traced with 2 images,
    # and dynamic sizes with the largest: feature maps that have one cell at others have more there.
    batch = spec.batch.opt if spec.batch.is_static else max(2, spec.batch.opt)
    inputs = example_inputs(spec, batch, spec.height.max, spec.width.max)
    images = {
        axis: dim
        for axis, dim in (
            (0, _dim("batch", spec.batch)),
            (1, _dim("height", spec.height, spec.divisor)),
            (2, _dim("width", spec.width, spec.divisor)),
        )
        if dim is not None
    }
    others = {axis: dim for axis, dim in images.items() if axis == 0}
    named = dict(zip(spec.names, inputs, strict=True))
    shapes = {name: images if name == IMAGES else others for name in named}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(model, (), kwargs=named, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export raises whatever the model's code or its tracer raises
        raise ExportError(
            f"PyTorch cannot trace the model for input {spec.batch}x{spec.height}x{spec.width}: "
            f"{_first_line(error)}"
        ) from error


def _dim(name: str, sizes: DimRange, divisor: int = 1) -> Any:
    """Return the symbol of a dynamic axis in units of the divisor, or ``None`` for a static one."""
    if sizes.is_static:
        return None
    symbol = Dim(f"{name}_by_{divisor}", min=sizes.min // divisor, max=sizes.max // divisor)
    return divisor * symbol if divisor > 1 else symbol


def _name_axes(model: ir.Model, spec: InputSpec) -> None:
    """Name the dynamic axes: PyTorch's symbols ``s34``, ``32*s77`` say nothing to a reader."""
    images = model.graph.inputs[0]
    if images.shape is None:
        raise ExportError("the exported graph does not know the shape of its input")
    names: dict[str, str] = {}
    axes = (("batch", spec.batch), ("height", spec.height), ("width", spec.width))
    for axis, (name, sizes) in enumerate(axes):
        if not sizes.is_static:
            symbol = re.search(r"[a-z]+\d+", str(images.shape[axis]))
            if symbol is not None:
                names[symbol[0]] = name if axis == 0 else f"{name}_by_{spec.divisor}"
            images.shape[axis] = name
    if not names:
        return
    pattern = re.compile(rf"\b({'|'.join(names)})\b")
    values = [output for node in model.graph.all_nodes() for output in node.outputs]
    for value in (*model.graph.inputs, *values):
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and size.value is not None and value.shape:
                renamed = pattern.sub(lambda found: names[found[1]], str(size.value))
                value.shape[axis] = ir.SymbolicDim(renamed)


def _untranslatable(error: OnnxExporterError) -> str:
    """Say which operator of which module has no ONNX form."""
    cause: BaseException = error
    node: torch.fx.Node | None = None
    while True:
        # The exporter's message names a node of a graph that it made itself and does not hand out;
        # the node, which knows its module, is in the frame that raised.
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            found = frame.f_locals.get("node")
            node = found if isinstance(found, torch.fx.Node) else node
        if cause.__cause__ is None:
            break
        cause = cause.__cause__
    what = "the model"
    if node is not None:
        path = module_path([scope for scope, _ in node.meta.get("nn_module_stack", {}).values()])
        what = f"the operator {node.target}" + (f" in module '{path}'" if path else "")
    return f"{what} cannot be written as ONNX opset {OPSET}: {_first_line(cause)}"


def module_path(scopes: list[str]) -> str:
    """Return the path of the innermost module of the detector among PyTorch's scopes."""
    paths = [scope.removeprefix("detector.") for scope in scopes if scope.startswith("detector.")]
    return paths[-1] if paths else ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
