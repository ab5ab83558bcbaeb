from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from deploykit.benchmark import machine
from deploykit.benchmark.memory import peak_resident_mib, resident_mib


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("processor\t: 0\nmodel name\t: Xeon(R) Gold @ 2.60GHz\n", "Xeon(R) Gold @ 2.60GHz"),
        ("processor\t: 0\nModel\t\t: Raspberry Pi 5\n", "Raspberry Pi 5"),
    ],
)
def test_the_processor_is_read_from_proc(tmp_path, text, model):
    write(tmp_path, "proc/cpuinfo", text)
    assert machine.cpu_model(tmp_path) == model


def test_without_proc_the_processor_still_has_a_name(tmp_path):
    assert machine.cpu_model(tmp_path)


def test_a_containers_quota_limits_the_usable_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert machine.usable_cores(tmp_path) == 8
    write(tmp_path, "sys/fs/cgroup/cpu.max", "150000 100000\n")
    assert machine.usable_cores(tmp_path) == 1.5
    write(tmp_path, "sys/fs/cgroup/cpu.max", "max 100000\n")
    assert machine.usable_cores(tmp_path) == 8


def test_the_memory_is_the_machines_or_the_containers(tmp_path):
    assert machine.memory_mib(tmp_path) is None
    write(tmp_path, "proc/meminfo", "MemTotal:       16384000 kB\nMemFree: 1 kB\n")
    assert machine.memory_mib(tmp_path) == 16000
    write(tmp_path, "sys/fs/cgroup/memory.max", f"{2 << 30}\n")
    assert machine.memory_mib(tmp_path) == 2048
    write(tmp_path, "sys/fs/cgroup/memory.max", "max\n")
    assert machine.memory_mib(tmp_path) == 16000


def test_gpus_are_those_of_nvidia_smi():
    commands = []

    def run(command):
        commands.append(command)
        return "NVIDIA H200, 143771, 570.86.15\nNVIDIA T4, 15360, 570.86.15\n"

    first, second = machine.list_gpus(run)
    assert first == machine.Gpu("NVIDIA H200", 143771, "570.86.15")
    assert second.name == "NVIDIA T4"
    assert commands[0][0] == "nvidia-smi"
    assert machine.list_gpus(lambda _: "") == ()
    assert machine.list_gpus(lambda _: "No devices were found\n") == ()


def test_the_memory_in_use_on_a_gpu():
    assert machine.gpu_memory_used_mib(1, lambda command: f"{512 + ('--id=1' in command)}\n") == 513
    assert machine.gpu_memory_used_mib(0, lambda _: "[N/A]\n") is None


def test_packages_that_are_not_installed_are_left_out():
    versions = machine.package_versions(("numpy", "no-such-package"))
    assert versions == {"numpy": np.__version__}


def test_this_machine_can_be_described(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = machine.describe_machine(num_threads=2)
    assert found.cpu and found.system and found.python
    assert 0 < found.usable_cores <= found.logical_cores
    assert found.packages["numpy"] == np.__version__
    assert found.threads["OMP_NUM_THREADS"] == "1"
    assert found.threads["network"] == "2" and int(found.threads["opencv"]) >= 0
    assert machine.describe_machine().threads["network"] == "engine default"


def test_resident_memory_is_read_from_the_status_file(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t  204800 kB\nVmRSS:\t  102400 kB\n")
    assert resident_mib(status) == 100
    assert peak_resident_mib(status) == 200


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_the_peak_follows_an_allocation():
    before = peak_resident_mib()
    block = np.ones(64 << 20, np.uint8)  # 64 MiB, every page touched
    after = peak_resident_mib()
    assert block[0] == 1
    assert after >= resident_mib() > 0
    assert after >= before
    assert after > 64
