"""The TensorRT backend, for TensorRT and TensorRT-RTX. Imports no torch."""
