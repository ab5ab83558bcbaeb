from __future__ import annotations

import hashlib
import os
import stat

import pytest

from deploykit.atomic_file import atomic_path, check_writable, sha256_of_file, write_atomic
from deploykit.errors import UsageError


def test_content_appears_under_the_final_name_with_ordinary_permissions(tmp_path):
    target = tmp_path / "new" / "model.onnx"
    write_atomic(target, b"graph")
    assert target.read_bytes() == b"graph"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask


def test_temporary_file_keeps_the_suffix_and_stays_in_the_folder(tmp_path):
    with atomic_path(tmp_path / "model.onnx") as temporary:
        assert temporary.suffix == ".onnx"
        assert temporary.parent == tmp_path
        assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, error):
    target = tmp_path / "checkpoint.pth"
    write_atomic(target, "old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_sha256_equals_hashlib_on_a_file_larger_than_one_block(tmp_path):
    data = os.urandom((1 << 20) + 17)
    (tmp_path / "blob").write_bytes(data)
    assert sha256_of_file(tmp_path / "blob") == hashlib.sha256(data).hexdigest()


def test_check_writable_leaves_nothing_and_names_what_cannot_be_written(tmp_path):
    check_writable(tmp_path / "new" / "file.json")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a folder; name a file"):
        check_writable(tmp_path)
    with pytest.raises(UsageError, match="cannot be written: .*; choose another place"):
        check_writable(tmp_path / "file" / "below.json")
