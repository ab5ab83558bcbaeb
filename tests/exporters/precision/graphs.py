"""Small graphs whose nodes say which module they come from."""

import onnx
import onnx_ir as ir
import onnxruntime
from onnx import parser

from deploykit.exporters.graph_cleanup import MODULE_KEY


def model_of(text, modules, initializers=None, opset=18):
    """Parse a graph; ``modules`` names the module of each node in order, or ``None``."""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
    for name, array in (initializers or {}).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node, module in zip(model.graph.node, modules, strict=True):
        node.name = f"{module or 'predict'}/{node.op_type}"
        if module:
            node.metadata_props.add(key=MODULE_KEY, value=module)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def run(model, **feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def node_types(model):
    """Return the element types of each node's outputs, by node name."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    values = (*inferred.graph.value_info, *inferred.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return {
        node.name: {ir.DataType(types[name]).name for name in node.output}
        for node in inferred.graph.node
    }
