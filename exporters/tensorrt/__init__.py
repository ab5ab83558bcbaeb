"""ONNX graphs to TensorRT engines, in either flavour of TensorRT."""
