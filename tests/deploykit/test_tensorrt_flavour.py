"""Loading either flavour of TensorRT, and its log."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

import pytest

from deploykit import tensorrt_flavour
from deploykit.errors import MissingDependencyError, UsageError
from deploykit.tensorrt_flavour import (
    Message,
    collect_messages,
    default_flavour,
    load_flavour,
    logger,
    recent_messages,
    version_tuple,
)

PACKAGES = ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings")
Install = Callable[..., None]


class Blocked(MetaPathFinder):
    """Lets imports of some modules fail, as they do where a package is missing or broken."""

    def __init__(self, failures: dict[str, Exception]) -> None:
        self.failures = failures

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname in self.failures:
            raise self.failures[fullname]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """``install(name=version or exception)``: just these modules are there, or fail like that."""

    def make(**modules: str | Exception) -> None:
        failures: dict[str, Exception] = {
            name: ModuleNotFoundError(f"No module named '{name}'", name=name) for name in PACKAGES
        }
        for name in PACKAGES:
            monkeypatch.delitem(sys.modules, name, raising=False)
        for name, what in modules.items():
            if isinstance(what, Exception):
                failures[name] = what
                continue
            module = ModuleType(name)
            module.__version__ = what  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(sys, "meta_path", [Blocked(failures), *sys.meta_path])

    return make


@pytest.mark.parametrize("name", ["tensorrt", "rtx"])
def test_a_missing_flavour_names_its_extra(install: Install, name: str):
    install()
    with pytest.raises(MissingDependencyError, match=rf"not installed\. .*deploykit\[{name}\]"):
        load_flavour(name)


def test_without_any_flavour_both_extras_are_named(install: Install):
    install()
    with pytest.raises(MissingDependencyError) as caught:
        default_flavour()
    assert "deploykit[tensorrt]" in str(caught.value) and "deploykit[rtx]" in str(caught.value)


def test_libraries_that_cannot_be_loaded_are_named(install: Install):
    install(tensorrt=ImportError("libnvinfer.so.11: cannot open shared object file"))
    with pytest.raises(MissingDependencyError, match=r"libnvinfer\.so\.11.*--force-reinstall"):
        load_flavour("tensorrt")
    with pytest.raises(MissingDependencyError, match=r"libnvinfer\.so\.11"):
        default_flavour()


def test_a_package_without_its_bindings_is_broken_not_missing(install: Install):
    missing = ModuleNotFoundError("No module named 'tensorrt_bindings'", name="tensorrt_bindings")
    install(tensorrt=missing)
    with pytest.raises(MissingDependencyError, match="cannot be loaded: No module named"):
        load_flavour("tensorrt")


@pytest.mark.parametrize(
    ("name", "module", "version", "oldest"),
    [("tensorrt", "tensorrt", "10.9.0", "10.12"), ("rtx", "tensorrt_rtx", "1.6.0.1", "1.7")],
)
def test_old_versions_are_refused_with_both_versions(
    install: Install, name: str, module: str, version: str, oldest: str
):
    install(**{module: version})
    with pytest.raises(MissingDependencyError) as caught:
        load_flavour(name)
    assert version in str(caught.value) and f"needs {oldest} or newer" in str(caught.value)


def test_tensorrt_is_preferred_and_rtx_taken_where_it_is_alone(install: Install):
    install(tensorrt="11.4.0.106", tensorrt_rtx="1.7.1.116")
    assert default_flavour() == "tensorrt"


def test_the_bindings_of_rtx_alone_will_do(install: Install):
    install(tensorrt_rtx_bindings="1.7.1.116")
    assert default_flavour() == "rtx"
    assert load_flavour("rtx").__name__ == "tensorrt_rtx_bindings"


def test_unknown_flavour():
    with pytest.raises(UsageError, match="expected one of: tensorrt, rtx"):
        load_flavour("openvino")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1.7.1.116", (1, 7, 1, 116)), ("10.12.0rc1", (10, 12, 0)), ("11", (11,)), ("", ())],
)
def test_version_tuple(text: str, numbers: tuple[int, ...]):
    assert version_tuple(text) == numbers


@pytest.fixture(scope="module")
def rtx() -> ModuleType:
    return pytest.importorskip("tensorrt_rtx")


def log_an_error(rtx: ModuleType) -> None:
    """Let TensorRT itself log something: a network without outputs."""
    builder = rtx.Builder(logger(rtx))
    builder.build_serialized_network(builder.create_network(0), builder.create_builder_config())


def test_messages_are_collected_while_the_block_runs_and_not_printed(
    rtx: ModuleType, capfd: pytest.CaptureFixture[str]
):
    with collect_messages(rtx) as outer:
        log_an_error(rtx)
        seen = len(outer.messages)
        with collect_messages(rtx, "ERROR") as inner:
            log_an_error(rtx)
    log_an_error(rtx)
    assert seen > 0 and len(outer.messages) == 2 * seen
    assert inner.messages == [
        message for message in outer.messages[seen:] if message.is_at_least("ERROR")
    ]
    assert any("output" in text for text in outer.errors)
    assert {message.text for message in outer.at_least("ERROR")} <= {
        message.text for message in recent_messages(rtx)
    }
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_one_logger_per_flavour_for_the_whole_process(rtx: ModuleType):
    assert logger(rtx) is logger(load_flavour("rtx"))


def test_messages_of_many_threads_all_arrive(rtx: ModuleType):
    messages = tensorrt_flavour._messages(rtx)
    with collect_messages(rtx, "VERBOSE") as log:
        threads = [
            threading.Thread(
                target=lambda number=number: [
                    messages.add(4, f"{number} {count}") for count in range(500)
                ]
            )
            for number in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    expected = {f"{number} {count}" for number in range(4) for count in range(500)}
    assert {message.text for message in log.messages} == expected and len(log.messages) == 2000
    assert not any(message.severity == "VERBOSE" for message in recent_messages(rtx))


@pytest.mark.parametrize(("level", "name"), [(0, "INTERNAL_ERROR"), (2, "WARNING"), (9, "VERBOSE")])
def test_severities(rtx: ModuleType, level: int, name: str):
    with collect_messages(rtx, "VERBOSE") as log:
        tensorrt_flavour._messages(rtx).add(level, "text")
    assert log.messages == [Message(name, "text")]
