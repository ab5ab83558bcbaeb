"""What the numbers were measured on: processor, memory, system, versions, thread settings."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_PACKAGES = (
    "deploykit",
    "numpy",
    "opencv-python-headless",
    "opencv-python",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "torchvision",
    "tensorrt",
    "tensorrt-rtx-cu13",
)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_ROOT = Path("/")

RunCommand = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class Gpu:
    """A graphics processor, as ``nvidia-smi`` describes it.

    Args:
        name: Model.
        memory_mib: Memory in MiB.
        driver: Driver version.
    """

    name: str
    memory_mib: int
    driver: str


@dataclass(frozen=True)
class Machine:
    """A description of a machine.

    Args:
        cpu: Processor model.
        logical_cores: Logical cores of the machine.
        usable_cores: Cores that this process may use: its affinity and its container's quota.
        memory_mib: Memory of the machine, or its container's limit, in MiB; ``None`` if unknown.
        governor: Frequency governor of the first core, if the system tells.
        system: Operating system and kernel.
        python: Python version.
        packages: Versions of the packages that matter.
        threads: Settings that limit numbers of threads.
        gpus: Graphics processors.
        load_average: Running processes in the last minute, when measured; ``None`` if unknown.
    """

    cpu: str
    logical_cores: int
    usable_cores: float
    memory_mib: int | None
    governor: str | None
    system: str
    python: str
    packages: dict[str, str]
    threads: dict[str, str]
    gpus: tuple[Gpu, ...]
    load_average: float | None


def describe_machine(num_threads: int | None = None) -> Machine:
    """Describe the machine that this process runs on.

    Args:
        num_threads: Threads that the networks were told to use, if any.
    """
    import cv2

    threads = {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ}
    threads["opencv"] = str(cv2.getNumThreads())
    threads["network"] = "engine default" if num_threads is None else str(num_threads)
    cores = os.cpu_count() or 1
    return Machine(
        cpu=cpu_model(),
        logical_cores=cores,
        usable_cores=usable_cores(),
        memory_mib=memory_mib(),
        governor=_first_line("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        system=platform.platform(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        packages=package_versions(),
        threads=threads,
        gpus=list_gpus(),
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def cpu_model(root: Path = _ROOT) -> str:
    """Return the name of the processor.

    Args:
        root: Root of the file system that ``/proc`` is read from.
    """
    try:
        text = (root / "proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    for key in ("model name", "Model", "Hardware"):
        match = re.search(rf"^{key}\s*:\s*(\S.*)$", text, re.MULTILINE)
        if match:
            return match[1].strip()
    if sys.platform == "darwin":
        return _output_of(("sysctl", "-n", "machdep.cpu.brand_string")).strip()
    return platform.processor() or platform.machine() or "unknown"


def usable_cores(root: Path = _ROOT) -> float:
    """Return how many cores this process may use: affinity mask and container quota.

    Args:
        root: Root of the file system that the control group is read from.
    """
    cores = float(os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        cores = float(len(os.sched_getaffinity(0)))
    quota = (_first_line("sys/fs/cgroup/cpu.max", root) or "").split()
    if len(quota) == 2 and all(part.isdecimal() for part in quota):
        cores = min(cores, int(quota[0]) / int(quota[1]))
    return cores


def memory_mib(root: Path = _ROOT) -> int | None:
    """Return the memory of the machine or, if smaller, the limit of the container, in MiB."""
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return None
    match = re.search(r"^MemTotal:\s*(\d+) kB", text, re.MULTILINE)
    sizes = [int(match[1]) // 1024] if match else []
    limit = _first_line("sys/fs/cgroup/memory.max", root) or ""
    if limit.isdecimal():
        sizes.append(int(limit) >> 20)
    return min(sizes, default=None)


def package_versions(names: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def list_gpus(run: RunCommand | None = None) -> tuple[Gpu, ...]:
    """Return the graphics processors that ``nvidia-smi`` knows; none where there is no such tool.

    Args:
        run: Runs a command and returns its output.
    """
    text = (run or _output_of)(
        (
            "nvidia-smi",
            "--query-gpu=name,memory.total,driver_version",
            "--format=csv,noheader,nounits",
        )
    )
    gpus = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 3 and cells[1].isdecimal():
            gpus.append(Gpu(cells[0], int(cells[1]), cells[2]))
    return tuple(gpus)


def gpu_memory_used_mib(index: int, run: RunCommand | None = None) -> int | None:
    """Return the memory in use on a graphics processor, by all processes, in MiB.

    Args:
        index: Which one.
        run: Runs a command and returns its output.
    """
    text = (run or _output_of)(
        ("nvidia-smi", f"--id={index}", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
    )
    value = text.strip()
    return int(value) if value.isdecimal() else None


def _output_of(command: Sequence[str]) -> str:
    """Return the output of a command; empty if it does not exist or fails."""
    program = shutil.which(command[0])
    if program is None:
        return ""
    try:
        result = subprocess.run(  # noqa: S603  (fixed arguments)
            [program, *command[1:]], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""


def _first_line(path: str, root: Path = _ROOT) -> str | None:
    try:
        return (root / path).read_text().splitlines()[0].strip()
    except (OSError, IndexError):
        return None
