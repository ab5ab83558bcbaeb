"""What the doctor tries. Each probe runs in a process of its own and really does the work."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deploykit.doctor.examination import Probe, Status
from deploykit.errors import BackendError, MissingDependencyError
from deploykit.optional_imports import import_optional

# ONNX, opset 18: y = Relu(MatMul(x, x)) for x float32 [4, 4]. The runtime cannot make it itself.
TINY_MODEL = base64.b64decode(
    "CAg6VQoTCgF4CgF4EgFtIgZNYXRNdWw6AAoOCgFtEgF5IgRSZWx1OgASBHRpbnlaEwoBeBIOCgwIARIICgIIBAoCCARi"
    "EwoBeRIOCgwIARIICgIIBAoCCARCBAoAEBI="
)


class Answer(NamedTuple):
    """The outcome of a probe; see ``Finding``."""

    status: Status
    detail: str
    advice: str = ""


def all_probes() -> list[Probe]:
    """Return what the doctor tries on this machine, in order."""
    probes = [
        Probe("OpenCV", "opencv", needed=True),
        Probe("ONNX Runtime", "onnxruntime", needed=True),
    ]
    probes += [Probe(f"ONNX Runtime, {name}", "provider", name) for name in _providers()]
    return [
        *probes,
        Probe("PyTorch", "torch"),
        Probe("PyTorch, CUDA", "torch_cuda"),
        Probe("export to ONNX", "export"),
        Probe("COCO metrics", "coco"),
        Probe("video", "video"),
        Probe("NVIDIA driver", "driver"),
        Probe("CUDA compiler (NVRTC)", "nvrtc"),
        Probe("TensorRT", "tensorrt", "tensorrt"),
        Probe("TensorRT-RTX", "tensorrt", "rtx"),
        Probe("NMS and RoIAlign plugins", "plugins"),
    ]


def run_probe(key: str, argument: str) -> Answer:
    """Run the probe of this key."""
    return _PROBES[key](argument)


def failure(error: Exception) -> Answer:
    """Return the answer that an exception of a probe stands for."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, MissingDependencyError):
        detail, _, advice = text.partition(". ")
        return Answer("absent", detail, advice)
    return Answer("failed", text, "install the package again, or report this line")


def _providers() -> list[str]:
    try:
        import onnxruntime
    except Exception:  # the probe of ONNX Runtime itself tells why
        return []
    # Azure's runs nothing here: it calls services over the network.
    return [name for name in onnxruntime.get_available_providers() if not name.startswith("Azure")]


def _opencv(_: str) -> Answer:
    import cv2

    image = np.full((16, 16, 3), 128, np.uint8)
    encoded = cv2.imencode(".jpg", image)[1]
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    if decoded is None or decoded.shape != image.shape:
        return Answer("failed", f"OpenCV {cv2.__version__} cannot read back a JPEG it wrote")
    return Answer("works", f"{cv2.__version__}: wrote and read a JPEG")


def _onnxruntime(_: str) -> Answer:
    ort = import_optional("onnxruntime", "all", "Running an .onnx file")
    providers = ort.get_available_providers()
    short = ", ".join(name.removesuffix("ExecutionProvider") for name in providers)
    advice = ""
    if "CUDAExecutionProvider" not in providers:
        advice = "for NVIDIA GPUs: pip install 'deploykit[gpu]'"
    return Answer("works", f"{ort.__version__}, providers: {short}", advice)


def _provider(name: str) -> Answer:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(TINY_MODEL, options, providers=[name])
    if session.get_providers()[0] != name:
        fallback = session.get_providers()[0]
        return Answer(
            "absent",
            f"offered, but ONNX Runtime fell back to {fallback}",
            "it needs its device and libraries, for CUDA: the NVIDIA driver, CUDA and cuDNN",
        )
    x = np.arange(16, dtype=np.float32).reshape(4, 4) - 8
    (y,) = session.run(None, {"x": x})
    if not np.allclose(y, np.maximum(x @ x, 0), rtol=1e-2):
        return Answer("failed", "ran a model and got a wrong result", "update the driver")
    return Answer("works", "ran a model")


def _torch(_: str) -> Answer:
    torch = import_optional("torch", "train", "Training")
    torchvision = import_optional("torchvision", "train", "Training")
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 30, 30]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    if kept != [0, 2]:
        return Answer("failed", "torchvision's NMS gives a wrong result", "install both again")
    return Answer(
        "works",
        f"{torch.__version__}, torchvision {torchvision.__version__}, "
        f"{torch.get_num_threads()} threads",
    )


def _torch_cuda(_: str) -> Answer:
    torch = import_optional("torch", "train", "Training")
    if torch.version.cuda is None:
        return Answer("absent", "this PyTorch is built without CUDA")
    if not torch.cuda.is_available():
        return Answer(
            "absent",
            f"built for CUDA {torch.version.cuda}, but it finds no GPU it can use",
            "training on a CPU works, slowly",
        )
    names = []
    for index in range(torch.cuda.device_count()):
        x = torch.eye(64, device=f"cuda:{index}") * 2
        if not bool((x @ x == 2 * x).all()):
            return Answer("failed", f"cuda:{index} multiplies wrongly", "update the driver")
        names.append(torch.cuda.get_device_name(index))
    return Answer("works", f"CUDA {torch.version.cuda}: {', '.join(names)}")


def _export(_: str) -> Answer:
    torch = import_optional("torch", "export", "Exporting a checkpoint")
    onnx = import_optional("onnx", "export", "Exporting a checkpoint")
    onnxscript = import_optional("onnxscript", "export", "Exporting a checkpoint")
    program = torch.onnx.export(
        torch.nn.Linear(4, 4), (torch.ones(1, 4),), dynamo=True, verbose=False, opset_version=18
    )
    onnx.checker.check_model(program.model_proto)
    versions = f"onnx {onnx.__version__}, onnxscript {onnxscript.__version__}"
    return Answer("works", f"{versions}: exported a layer")


def _coco(_: str) -> Answer:
    import_optional("faster_coco_eval", "train", "Measuring COCO metrics")
    return Answer("works", f"faster-coco-eval {metadata.version('faster-coco-eval')}")


def _video(_: str) -> Answer:
    import cv2

    parts = [f"OpenCV {cv2.__version__}"]
    with tempfile.TemporaryDirectory(prefix="deploykit-") as folder:
        path = str(Path(folder) / "video.mp4")
        writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
        for value in range(5):
            writer.write(np.full((48, 64, 3), 40 * value, np.uint8))
        writer.release()
        capture = cv2.VideoCapture(path)
        count = 0
        while capture.read()[0]:
            count += 1
        capture.release()
    if count != 5:
        return Answer("failed", f"wrote 5 frames with OpenCV and read {count}")
    try:
        av = import_optional("av", "video", "Writing H.264")
    except MissingDependencyError as error:
        return Answer("works", f"{parts[0]}: wrote and read a video", str(error).split(". ")[-1])
    parts.append(f"PyAV {av.__version__}")
    if "h264" not in av.codecs_available:
        return Answer("works", ", ".join(parts), "this PyAV has no H.264")
    return Answer("works", f"{', '.join(parts)}: wrote and read a video; H.264 there")


def _driver(_: str) -> Answer:
    from deploykit.runtimes.tensorrt.cuda_calls import call, load_driver

    try:
        driver = load_driver()
    except BackendError as error:
        reason = str(error).split(", but ")[-1].split(" (")[0]
        return Answer("absent", reason, "install the NVIDIA driver to use a GPU")
    version = int(call("cuDriverGetVersion"))
    attribute = driver.CUdevice_attribute
    names = []
    for index in range(int(call("cuDeviceGetCount"))):
        device = call("cuDeviceGet", index)
        name = call("cuDeviceGetName", 256, device).decode().strip("\0")
        major, minor = (
            int(call("cuDeviceGetAttribute", which, device))
            for which in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        names.append(f"{name} (compute capability {major}.{minor})")
    return Answer("works", f"CUDA {version // 1000}.{version % 1000 // 10}: {', '.join(names)}")


def _nvrtc(_: str) -> Answer:
    from deploykit.plugins_trt.nms_kernels import sort_kernel
    from deploykit.plugins_trt.nvrtc import ARCHITECTURES, compile_ptx

    ptx = compile_ptx(sort_kernel("float32"), ARCHITECTURES[0])
    return Answer("works", f"compiled a kernel for sm_{ARCHITECTURES[0]} ({len(ptx)} bytes of PTX)")


def _tensorrt(name: str) -> Answer:
    from deploykit.doctor.engine_probe import build_tiny_engine, run_tiny_engine
    from deploykit.tensorrt_flavour import load_flavour

    flavour = load_flavour(name)
    version = flavour.__version__
    engine, problem = build_tiny_engine(flavour)
    if engine is None:
        if not _gpu_count():
            return Answer("absent", f"{version}: it builds engines on the GPU, and there is none")
        return Answer("failed", f"{version}: a small engine cannot be built: {problem}")
    if not _gpu_count():
        return Answer(
            "works",
            f"{version}: built a small engine",
            "running engines needs an NVIDIA GPU, and there is none",
        )
    run_tiny_engine(name, engine)
    return Answer("works", f"{version}: built and ran a small engine")


def _plugins(_: str) -> Answer:
    from deploykit.doctor.plugin_engine import run_plugins_in_engine
    from deploykit.doctor.plugin_probe import compare_with_references, compile_kernels
    from deploykit.kernel_device import KernelDevice
    from deploykit.tensorrt_flavour import load_flavour

    compiled = f"{compile_kernels()} kernels compile"
    if not _gpu_count():
        return Answer("works", compiled, "running them needs an NVIDIA GPU, and there is none")
    done = f"{compiled}; {compare_with_references(KernelDevice())}"
    try:
        tensorrt = load_flavour("tensorrt")
    except MissingDependencyError as error:
        return Answer("works", done, f"not tried in an engine: {error}")
    return Answer("works", f"{done}; {run_plugins_in_engine(tensorrt)}")


def _gpu_count() -> int:
    from deploykit.runtimes.tensorrt.cuda_calls import call

    try:
        return int(call("cuDeviceGetCount"))
    except (BackendError, MissingDependencyError):
        return 0


_PROBES: dict[str, Callable[[str], Answer]] = {
    "opencv": _opencv,
    "onnxruntime": _onnxruntime,
    "provider": _provider,
    "torch": _torch,
    "torch_cuda": _torch_cuda,
    "export": _export,
    "coco": _coco,
    "video": _video,
    "driver": _driver,
    "nvrtc": _nvrtc,
    "tensorrt": _tensorrt,
    "plugins": _plugins,
}
