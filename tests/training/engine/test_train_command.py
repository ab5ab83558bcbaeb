from __future__ import annotations

from deploykit.cli import main


def test_a_run_that_never_began_leaves_nothing_behind(tmp_path, capsys):
    words = ["train", "rtmdet_demo", "--device", "cpu", "--work-dir", str(tmp_path / "run")]
    words += ["--data-root", str(tmp_path / "nowhere")]
    assert main(words) == 2
    assert "annotation file not found" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
