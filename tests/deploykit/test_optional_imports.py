from __future__ import annotations

import math
import subprocess
import sys

import pytest

from deploykit.errors import MissingDependencyError
from deploykit.optional_imports import import_optional


def test_an_installed_module_is_returned():
    assert import_optional("math", "train", "Counting") is math


def test_a_missing_package_names_the_extra_to_install():
    with pytest.raises(MissingDependencyError) as info:
        import_optional("no_such_package_at_all.part", "train", "Training")
    assert "Training needs the package 'no_such_package_at_all'" in str(info.value)
    assert "pip install 'deploykit[train]'" in str(info.value)


def test_an_import_error_inside_an_installed_package_is_not_disguised(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import a_module_that_it_lacks\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_it_lacks"):
        import_optional("broken_package", "train", "Training")


def test_the_export_extra_reads_checkpoints_without_the_packages_of_the_train_extra():
    """Loading a checkpoint asks the data pipeline for its resize, and so imports it."""
    code = (
        "import sys; blocked = ('pycocotools', 'faster_coco_eval', 'tensorboard', 'matplotlib'); "
        "sys.modules.update(dict.fromkeys(blocked)); "
        "import deploykit.training.model_spec, deploykit.training.data; "
        "import deploykit.exporters.onnx_exporter"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
