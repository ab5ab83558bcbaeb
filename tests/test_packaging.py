from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"deploykit": "deploykit"} | {
    name: f"deploykit/{name}" for name in ("training", "exporters", "runtimes", "plugins_trt")
}
SUFFIXES = {".py", ".json", ".html", ".typed", ".cu", ".cuh", ".h"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    # A copy, so that building leaves nothing in the tree and old build folders cannot hide a fault.
    source = tmp_path_factory.mktemp("source")
    for name in (*FOLDERS, "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, source / name)
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--installer=uv", "--outdir", out, source],
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_every_source_file_under_one_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, installed in FOLDERS.items():
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and file.suffix in SUFFIXES:
                assert f"{installed}/{file.relative_to(ROOT / folder).as_posix()}" in names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"deploykit", f"deploykit-{wheel.name.split('-')[1]}.dist-info"}


@pytest.mark.slow
def test_the_wheel_runs_in_an_empty_environment_without_the_training_extra(wheel, tmp_path):
    environment = tmp_path / "venv"
    python = environment / "bin" / "python"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", environment], check=True)
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", python, wheel], check=True)
    found = subprocess.run(
        [python, "-c", "import importlib.util as u; print(u.find_spec('torch'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "None\n"
    command = environment / "bin" / "deploykit"
    shown = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    assert "detect" in shown.stdout
    trained = subprocess.run([command, "train", "rtmdet_tiny"], capture_output=True, text=True)
    assert trained.returncode == 2
    assert "pip install 'deploykit[train]'" in trained.stderr
    assert "Traceback" not in trained.stderr
