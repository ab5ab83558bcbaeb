"""Checkpoints, configs in checkpoints and config files that try to run code."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deploykit.errors import CheckpointError, ConfigError, DeploykitError
from deploykit.training.checkpoint import read_checkpoint
from deploykit.training.config import Config
from deploykit.training.model_spec import load_model

MARK = "attacked"  # the file that each payload would make


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class StateOf:
    """Pickles as an object of a class with a state, which goes to ``__setstate__``."""

    def __init__(self, create: Any, arguments: tuple[Any, ...], state: Any) -> None:
        self.reduced = create, arguments, state

    def __reduce__(self) -> Any:
        return self.reduced


def payloads() -> dict[str, Any]:
    import builtins
    import functools
    import importlib
    import operator
    import os
    import runpy
    import shutil
    import subprocess
    import webbrowser

    write = f"open('{MARK}', 'w').close()"
    return {
        "os.system": Call(os.system, f"touch {MARK}"),
        "os.mkdir": Call(os.mkdir, MARK),
        "eval": Call(builtins.eval, write),
        "exec": Call(builtins.exec, write),
        "compile": Call(builtins.compile, write, "x", "exec"),
        "open": Call(open, MARK, "w"),
        "__import__": Call(builtins.__import__, "os"),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", MARK]),
        "subprocess.check_output": Call(subprocess.check_output, ["touch", MARK]),
        "torch.load": Call(torch.load, "inner.pth"),
        "torch.hub.load": Call(torch.hub.load, "repo", "model"),
        "torch.jit.load": Call(torch.jit.load, "inner.pt"),
        "pickle.loads": Call(pickle.loads, pickle.dumps(Call(os.mkdir, MARK))),
        "partial": Call(functools.partial, os.mkdir, MARK),
        "methodcaller": Call(operator.methodcaller, "system", f"touch {MARK}"),
        "attrgetter": Call(operator.attrgetter, "system"),
        "import_module": Call(importlib.import_module, "os"),
        "runpy": Call(runpy.run_path, "inner.py"),
        "rmtree": Call(shutil.rmtree, "folder"),
        "webbrowser": Call(webbrowser.open, "http://127.0.0.1"),
        "getattr of os": Call(getattr, Call(builtins.__import__, "os"), "system"),
        "getattr of a tensor": Call(getattr, torch.zeros(1), "numpy"),
        "getattr of a class": Call(getattr, torch.Tensor, "__init__"),
        "setattr": Call(setattr, torch.zeros(1), "x", 1),
        "__setstate__": StateOf(functools.partial, (print,), (os.mkdir, (MARK,), {}, {})),
        "slots of the state": StateOf(torch.nn.Module, (), {"_forward_hooks": {}}),
        "a type made on the way": Call(type, "Mine", (object,), {}),
    }


NAMES = list(payloads())


def save(content: Any, path: Path, form: str) -> None:
    """Write a checkpoint in one of the formats of PyTorch, or as a bare pickle."""
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=4))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "inner.py").write_text(f"open('{MARK}', 'w')")
    return tmp_path


def refused(read: Callable[[], Any], folder: Path) -> str:
    """Check that reading is refused in one line and that nothing ran; return the line."""
    modules = set(sys.modules)
    with pytest.raises(DeploykitError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    assert not (folder / MARK).exists() and (folder / "folder").is_dir()
    assert not {name for name in set(sys.modules) - modules if name.startswith("evil")}
    return message


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("name", NAMES)
def test_payloads_in_checkpoints(empty_folder: Path, name: str, form: str):
    path = empty_folder / "evil.pth"
    weights = {"w": torch.ones(2)}
    save({"state_dict": weights, "meta": {"x": payloads()[name]}}, path, form)
    message = refused(lambda: read_checkpoint(path), empty_folder)
    assert message.startswith(str(path))
    if form != "pickle":
        assert "safe to read" in message


@pytest.mark.parametrize("place", ["state_dict", "message_hub", "optimizer"])
def test_the_place_does_not_matter(empty_folder: Path, place: str):
    content = {"state_dict": {"w": torch.ones(1)}, place: {"w": [(payloads()["eval"],)]}}
    torch.save(content, "evil.pth")
    assert "eval" in refused(lambda: read_checkpoint("evil.pth"), empty_folder)


def write_archive(path: Path, data: bytes) -> None:
    """Write a checkpoint with hand-made pickle instructions."""
    torch.save({"w": torch.ones(1)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, old in entries.items():
            archive.writestr(name, data if name.endswith("data.pkl") else old)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


HISTORY = b"cmmengine.logging.history_buffer\nHistoryBuffer\n"
GETATTR = b"c__builtin__\ngetattr\n"
ARRAY = b"cnumpy._core.multiarray\n_reconstruct\n"
INSTRUCTIONS = {
    # The stand-ins for getattr and HistoryBuffer must not become a way to the real ones.
    "the result of getattr is called": GETATTR + HISTORY + text("min") + b"\x86R(tR",
    "getattr of the result of getattr": GETATTR
    + GETATTR + HISTORY + text("__init__") + b"\x86R" + text("__globals__") + b"\x86R",
    "getattr of an instance": GETATTR + HISTORY + b")\x81" + text("__class__") + b"\x86R",
    "getattr with a default": GETATTR + HISTORY + text("a") + text("b") + b"\x87R",
    "a nested name": b"cmmengine.logging.history_buffer\nHistoryBuffer.min.__globals__\n",
    "objects in an array": ARRAY + b"cnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R"
    + b"(K\x01K\x01\x85cnumpy\ndtype\n" + text("O8") + b"\x85R\x89]tb",
    "a protocol of functions": b"cposix\nsystem\n" + text(f"touch {MARK}") + b"\x85R",
    "an old class": b"(" + text(f"touch {MARK}") + b"ios\nsystem\n",
    "an instruction for objects": b"(cos\nsystem\n" + text(f"touch {MARK}") + b"o",
    "a name from the stack": text("os") + text("system") + b"\x93" + text("x") + b"\x85R",
    "an extension code": b"\x82\x01",
    "a foreign identifier": text("file:///etc/passwd") + b"Q",
    "the builtins by another name": b"c__builtin__\neval\n" + text("1") + b"\x85R",
}  # fmt: skip


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_hand_made_instructions(empty_folder: Path, name: str):
    path = empty_folder / "evil.pth"
    write_archive(path, b"\x80\x02}" + text("w") + INSTRUCTIONS[name] + b"s.")
    refused(lambda: read_checkpoint(path), empty_folder)


def test_what_the_stand_ins_allow(empty_folder: Path):
    """The counterpart of the refusals: harmless instructions of the same making are read."""
    path = empty_folder / "good.pth"
    write_archive(path, b"\x80\x02}" + text("w") + GETATTR + HISTORY + text("min") + b"\x86Rs.")
    assert read_checkpoint(path) == {"w": "min"}


def test_torchscript_archives_are_refused(empty_folder: Path):
    module = torch.jit.script(torch.nn.Linear(1, 1))
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    Path("script.pth").write_bytes(buffer.getvalue())
    with pytest.raises(
        CheckpointError, match=r"script\.pth: this is a TorchScript program"
    ) as caught:
        read_checkpoint("script.pth")
    assert "\n" not in str(caught.value)


CONFIG_PAYLOADS = [
    f"import os\nos.system('touch {MARK}')",
    f"__import__('os').system('touch {MARK}')",
    f'x = eval(\'open("{MARK}", "w")\')',
    f'exec(\'open("{MARK}", "w")\')',
    f"x = open('{MARK}', 'w')",
    f"import subprocess\nx = subprocess.run(['touch', '{MARK}'])",
    "import torch\nx = torch.load('inner.pth', weights_only=False)",
    "x = ().__class__.__base__.__subclasses__()",
    "x = getattr(getattr('', '__class__'), '__mro__')",
    "x = '{0.__class__}'.format(1)",
    f"x = (lambda: open('{MARK}', 'w'))()",
    f"def f():\n    open('{MARK}', 'w')\nf()",
    f"class A:\n    open('{MARK}', 'w')",
    f"x = [open('{MARK}', 'w') for _ in range(1)]",
    f"x = f\"{{open('{MARK}', 'w')}}\"",
    f"x = dict(a=print, b=open)['b']('{MARK}', 'w')",
]


@pytest.mark.parametrize("payload", CONFIG_PAYLOADS)
def test_payloads_in_configs(empty_folder: Path, payload: str):
    config = f"model = dict(type='RetinaNet')\n{payload}\n"
    refused(lambda: Config.from_text(config), empty_folder)
    for key in ("cfg", "config"):
        path = empty_folder / f"{key}.pth"
        torch.save({"meta": {key: config}, "state_dict": {"w": torch.ones(1)}}, path)
        message = refused(lambda path=path: load_model(path), empty_folder)
        assert f"{key}.pth (meta.{key})" in message


def test_custom_imports_are_not_imported(empty_folder: Path, monkeypatch: pytest.MonkeyPatch):
    (empty_folder / "evil_module.py").write_text(f"open('{MARK}', 'w').close()")
    monkeypatch.syspath_prepend(str(empty_folder))
    config = Config.from_text("custom_imports = dict(imports=['evil_module'])\nmodel = dict()")
    assert config.custom_imports == ("evil_module",)
    path = empty_folder / "a.pth"
    torch.save({"meta": {"cfg": config.dumps()}, "state_dict": {"w": torch.ones(1)}}, path)
    with pytest.raises((ConfigError, CheckpointError)):
        load_model(path)
    assert not (empty_folder / MARK).exists() and "evil_module" not in sys.modules
