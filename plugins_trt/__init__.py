"""The NMS and RoIAlign operators for TensorRT: references, kernels and registration."""
