"""MMEngine's "pure Python" configs: bases by import, types by name."""

from __future__ import annotations

import sys

import pytest

from deploykit.errors import ConfigError
from deploykit.training.config import Config, load_config

FILES = {
    "_base_/runtime.py": """
from mmengine.hooks import LoggerHook
hooks = dict(logger=dict(type=LoggerHook, interval=50))
resume = False
""",
    "_base_/model.py": """
from torch.nn import SiLU as Activation
from mmdet.models import RTMDet, heads
model = dict(
    type=RTMDet, act=dict(type=Activation), head=dict(type=heads.RTMDetHead, n=80)
)
schedule = [dict(end=5)]
""",
}


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_pure_python_config(folder):
    (folder / "rtmdet").mkdir()
    path = folder / "rtmdet" / "tiny.py"
    path.write_text("""
from mmengine.config import read_base

with read_base():
    from .._base_.model import *
    from .._base_.runtime import hooks as default_hooks

from mmdet.engine import EMA
import mmdet.structures
import torch.optim as optim

model.update(dict(head=dict(n=3)))
model.act.inplace = True
schedule[0].end = 7
hook = dict(type=EMA, box=mmdet.structures.BoxList, base=RTMDet)
optimizer = dict(type=optim.AdamW)
""")
    before = set(sys.modules)
    assert load_config(path) == {
        "model": {
            "type": "RTMDet",
            "act": {"type": "SiLU", "inplace": True},
            "head": {"type": "RTMDetHead", "n": 3},
        },
        "schedule": [{"end": 7}],
        "default_hooks": {"logger": {"type": "LoggerHook", "interval": 50}},
        "hook": {"type": "EMA", "box": "BoxList", "base": "RTMDet"},
        "optimizer": {"type": "AdamW"},
    }
    assert not {"mmengine", "mmdet", "mmcv"} & (set(sys.modules) - before)


def test_assigning_a_name_of_the_base_replaces_it(folder):
    (folder / "a.py").write_text(
        "with read_base():\n    from ._base_.model import model\nmodel = dict(x=1)\n"
    )
    assert load_config(folder / "a.py") == {"model": {"x": 1}}


def test_merge_method(folder):
    (folder / "a.py").write_text("""
with read_base():
    from ._base_.model import model
model.merge(dict(head=dict(_delete_=True, type='X'), act=5, new=dict(_delete_=True, a=1)))
""")
    assert load_config(folder / "a.py") == {
        "model": {"type": "RTMDet", "act": 5, "head": {"type": "X"}, "new": {"a": 1}}
    }


def test_a_base_by_the_absolute_name_of_an_installed_package(folder, monkeypatch):
    package = folder / "site" / "oddconfigs"
    (package / "configs").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "configs" / "base.py").write_text("a = 1")
    monkeypatch.syspath_prepend(str(folder / "site"))
    text = "with read_base():\n    from oddconfigs.configs.base import *\nb = 2"
    assert Config.from_text(text) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from .x import y", "1:1: a relative import of a config must stand under 'with read_base"),
        ("from mmdet.models import *", "1:1: 'import \\*' can only import a base config"),
        (
            "with read_base():\n    from .gone import *",
            "2:5: the base config '.*gone.py' does not exist",
        ),
        (
            "with read_base():\n    from ._base_.model import modle",
            "2:5: the base config has no 'modle'; did you mean 'model'",
        ),
        ("with read_base():\n    from . import model", "2:5: write 'from .module import ...'"),
        (
            "with read_base():\n    from nopackage.configs.x import *",
            "2:5: .* installed 'nopackage'",
        ),
        ("with read_base():\n    from alone import *", "2:5: 'alone' is a package"),
        ("with read_base():\n    from .a import *", "2:5: the bases form a circle: a.py -> a.py"),
        ("import mmdet\na = mmdet", "2:5: the package 'mmdet' is no value"),
        (
            "from mmdet.models import RTMDet\na = RTMDet(x=1)",
            "2:5: 'mmdet.models.RTMDet\\(\\)' cannot be called",
        ),
        ("from mmdet import models\na = models.__path__", "2:5: the attribute '__path__'"),
        ("import numpy as np\na = [np.pi]", "2:6: 'numpy.pi' cannot be used"),
        ("from functools import partial\na = partial", "2:5: 'functools.partial' cannot be used"),
    ],
)
def test_errors(folder, text, message):
    (folder / "a.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(folder / "a.py")


def test_unused_imports_are_ignored():
    text = """
import os, sys
import numpy as np
from functools import partial
from __future__ import annotations
a = 1
"""
    assert Config.from_text(text) == {"a": 1}


def test_an_old_style_config_may_import_types():
    text = (
        "from mmpretrain.models import build_classifier, Bottleneck\nmodel = dict(block=Bottleneck)"
    )
    assert Config.from_text(text) == {"model": {"block": "Bottleneck"}}
