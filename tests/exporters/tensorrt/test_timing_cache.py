"""The timing cache, against a stand-in: TensorRT-RTX has none, and TensorRT needs a GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from deploykit.errors import UsageError
from deploykit.exporters.tensorrt.timing_cache import load_timing_cache, save_timing_cache

MODULE = SimpleNamespace(__version__="11.4.0")


class TimingCache:
    def __init__(self, timings: bytes) -> None:
        self.timings = timings

    def serialize(self) -> bytes:
        return b"TIMINGS" + self.timings


class Config:
    """An ``IBuilderConfig`` as far as timing caches go.

    Content that is no cache gives ``None``; one of another GPU is not taken.
    """

    def __init__(self) -> None:
        self.cache: TimingCache | None = None

    def create_timing_cache(self, content: bytes) -> TimingCache | None:
        if content and not content.startswith(b"TIMINGS"):
            return None
        return TimingCache(content[7:])

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        if cache.timings == b"other gpu":
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.cache


def test_timings_go_from_build_to_build(tmp_path: Path):
    path = tmp_path / "folder" / "timings"
    config = Config()
    assert load_timing_cache(config, path, MODULE) == ""
    assert config.cache is not None and config.cache.timings == b""
    config.cache.timings = b"conv 3 us"
    save_timing_cache(config, path)
    again = Config()
    assert load_timing_cache(again, path, MODULE) == ""
    assert again.cache is not None and again.cache.timings == b"conv 3 us"
    assert [file.name for file in path.parent.iterdir()] == ["timings"]


@pytest.mark.parametrize("content", [b"garbage", b"TIMINGSother gpu"])
def test_a_cache_that_does_not_fit_is_a_warning_and_an_empty_one(tmp_path: Path, content: bytes):
    path = tmp_path / "timings"
    path.write_bytes(content)
    config = Config()
    warning = load_timing_cache(config, path, MODULE)
    assert str(path) in warning and "11.4.0" in warning and "replaced" in warning
    assert config.cache is not None and config.cache.timings == b""
    save_timing_cache(config, path)
    assert path.read_bytes() == b"TIMINGS"


def test_files_that_cannot_be_used_are_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"--timing-cache .* cannot be read"):
        load_timing_cache(Config(), tmp_path, MODULE)
    config = Config()
    config.cache = TimingCache(b"")
    with pytest.raises(UsageError, match=r"--timing-cache .* cannot be written"):
        save_timing_cache(config, tmp_path)


def test_a_build_without_a_cache_writes_none(tmp_path: Path):
    save_timing_cache(Config(), tmp_path / "timings")
    assert not list(tmp_path.iterdir())
