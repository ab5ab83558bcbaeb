"""Exporters: checkpoint to ONNX (and later TensorRT), with the parity of every stage measured."""
