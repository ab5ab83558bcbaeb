"""Runs each probe in a process of its own, so that a library that crashes takes only that down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

# "absent": an optional package or device is not there. "failed": it is there and does not work.
Status = Literal["works", "absent", "failed"]
TIMEOUT_SECONDS = 120.0
# What a probe prints before its answer, so that a chatty library does not spoil it.
ANSWER = "deploykit-doctor:"


@dataclass(frozen=True)
class Finding:
    """What one probe found.

    Args:
        name: What was tried.
        status: Whether it works.
        detail: Versions and devices, or the reason, in one line.
        advice: What to do about it; empty when it works.
        needed: Whether deploykit cannot detect anything without it.
    """

    name: str
    status: Status
    detail: str
    advice: str = ""
    needed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Probe:
    """One thing to try.

    Args:
        name: What is tried, for the report.
        key: Function of ``deploykit.doctor.probes``.
        argument: Its argument, if it takes one.
        needed: See ``Finding``.
    """

    name: str
    key: str
    argument: str = ""
    needed: bool = False


def examine(
    probes: Sequence[Probe],
    report: Callable[[Finding], None] | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> list[Finding]:
    """Try one thing after the other.

    Args:
        probes: What to try.
        report: Called with each finding as soon as it is known.
        timeout: Seconds after which a probe counts as failed.
    """
    findings = []
    for probe in probes:
        finding = _run(probe, timeout)
        if report is not None:
            report(finding)
        findings.append(finding)
    return findings


def _run(probe: Probe, timeout: float) -> Finding:
    command = [sys.executable, "-m", "deploykit.doctor", probe.key, probe.argument]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(  # noqa: S603  # our own module
            command, capture_output=True, text=True, timeout=timeout, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return _failed(probe, f"no answer within {timeout:.0f} s")
    answers = [line for line in done.stdout.splitlines() if line.startswith(ANSWER)]
    if done.returncode or not answers:
        return _failed(probe, _why_it_died(done))
    answer = json.loads(answers[-1].removeprefix(ANSWER))
    return Finding(
        probe.name, answer["status"], answer["detail"], answer["advice"], needed=probe.needed
    )


def _failed(probe: Probe, detail: str) -> Finding:
    return Finding(probe.name, "failed", detail, "install the package again", probe.needed)


def _why_it_died(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"the process was killed by {signal.Signals(-done.returncode).name}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"the process ended with exit code {done.returncode}"
