"""The genuine Python classes of TensorRT where its libraries are not installed.

``tensorrt_bindings`` links to three libraries that are not on PyPI. Empty ones stand in for them;
the plugin registry is the real one of ``tensorrt-lean-cu13-libs``. Plugins can be registered and
their Python methods called; there is no builder, no parser and no runtime.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

_LIBRARIES = {
    "nvinfer": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
    ),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
    "nvonnxparser": (
        "createNvOnnxParser_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "getNvOnnxParserVersion",
    ),
}
_REGISTRY = """
#include <dlfcn.h>
void* getPluginRegistry(void) {
  void* library = dlopen("%s", RTLD_NOW | RTLD_LOCAL);
  void* (*get)(void) = library ? (void* (*)(void))dlsym(library, "getPluginRegistry") : 0;
  return get ? get() : 0;
}
"""
PACKAGES = ("tensorrt_bindings", "tensorrt_lean_libs")


def missing_packages() -> list[str]:
    """Return which packages and programs the tests of registration need and do not find."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    return missing + [name for name in ("gcc",) if shutil.which(name) is None]


def load(folder: Path) -> ModuleType:
    """Return ``tensorrt_bindings`` with its ``plugin`` module. ``tensorrt`` stays unimportable.

    Args:
        folder: Where to put the libraries.
    """
    if "tensorrt_bindings" not in sys.modules:
        (lean,) = Path(find_spec("tensorrt_lean_libs").origin).parent.glob("libnvinfer_lean.so.*")
        suffix = lean.name.removeprefix("libnvinfer_lean.")
        for name, symbols in _LIBRARIES.items():
            source = "".join(f"void* {symbol}(void) {{ return 0; }}\n" for symbol in symbols)
            if name == "nvinfer":
                source += _REGISTRY % lean
            library = folder / f"lib{name}.{suffix}"
            command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-x", "c", "-"]
            subprocess.run([*command, "-o", library, "-ldl"], input=source, text=True, check=True)
            ctypes.CDLL(str(library))
    module = import_module("tensorrt_bindings")
    saved = sys.modules.get("tensorrt")
    sys.modules["tensorrt"] = module  # the plugin module imports it under this name
    try:
        import_module("tensorrt_bindings.plugin")
    finally:
        if saved is None:
            del sys.modules["tensorrt"]
        else:
            sys.modules["tensorrt"] = saved
    return module
