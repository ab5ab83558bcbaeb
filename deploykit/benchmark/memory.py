"""Resident memory of the running process."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident_mib(status: Path = _STATUS) -> float | None:
    """Return the resident memory of this process in MiB; ``None`` where the system hides it.

    Where there is no status file it is the peak so far, which before any release is the same.

    Args:
        status: The status file of the process (Linux).
    """
    return _field_mib(status, "VmRSS") or _peak_from_resource()


def peak_resident_mib(status: Path = _STATUS) -> float | None:
    """Return the highest resident memory of this process since its start, in MiB.

    On Linux it is ``VmHWM``. ``getrusage`` would be wrong there: its ``ru_maxrss`` survives
    ``exec`` and so begins at the memory of the process that started this one.

    Args:
        status: The status file of the process (Linux).
    """
    return _field_mib(status, "VmHWM") or _peak_from_resource()


def _field_mib(status: Path, field: str) -> float | None:
    try:
        match = re.search(rf"^{field}:\s*(\d+) kB", status.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) / 1024 if match else None


def _peak_from_resource() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
