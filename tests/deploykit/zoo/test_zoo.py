from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deploykit import Detector
from deploykit.cli import main
from deploykit.errors import DeploykitError, UsageError
from deploykit.zoo import ZooEntry, find_entry, has_entry, index, zoo_entries
from deploykit.zoo.metafiles import index_text, zoo_index

SPEC = importlib.util.find_spec("mmdet")
RUN = Path(__file__).parents[2] / "training" / "mmengine_run"


def test_published_facts():
    """From MMDetection's model zoo pages."""
    entry = find_entry("rtmdet_tiny_8xb32-300e_coco")
    assert entry.box_ap == 40.9 and entry.mask_ap is None and entry.hash_prefix == "78e30dcc"
    assert entry.url == (
        "https://download.openmmlab.com/mmdetection/v3.0/rtmdet/rtmdet_tiny_8xb32-300e_coco/"
        "rtmdet_tiny_8xb32-300e_coco_20220902_112414-78e30dcc.pth"
    )
    mask = find_entry("mask-rcnn_r50_fpn_1x_coco")
    assert (mask.box_ap, mask.mask_ap, mask.dataset) == (38.2, 34.7, "COCO")
    assert find_entry("faster-rcnn_r50_fpn_gn-ws-all_1x_coco").box_ap  # the config's name


def test_every_entry_can_be_fetched_and_checked():
    entries = zoo_entries()
    assert len(entries) > 500
    unchecked = [name for name, entry in entries.items() if not entry.hash_prefix]
    assert len(unchecked) == 2  # two of DDQ were published without a hash
    assert all(entry.url.startswith("https://") for entry in entries.values())
    files = [entry.file_name for entry in entries.values()]
    assert all(re.fullmatch(r"[\w.+-]+\.pth", name) for name in files)


@pytest.mark.skipif(SPEC is None, reason="needs the files of mmdet")
def test_the_index_is_what_the_metafiles_say():
    folder = Path(SPEC.origin).parent / ".mim"
    assert index.INDEX_FILE.read_text() == index_text(zoo_index(folder))
    without = [e for e in zoo_entries().values() if not (folder / "configs" / e.config).is_file()]
    assert len(without) <= 1


def test_unknown_names():
    assert has_entry("retinanet_r50_fpn_1x_coco") and not has_entry("retinanet")
    with pytest.raises(UsageError, match="Did you mean retinanet_r50_fpn_1x_coco"):
        find_entry("retinanet_r50_fpn_1x_coko")


@pytest.mark.parametrize(
    "content",
    [
        "cos\nsystem\n(S'touch attacked'\ntR.",
        "import os; os.mkdir('attacked')",
        "[]",
        '{"a": {"config": "a.py", "url": "file:///etc/passwd", "results": {}, "dataset": ""}}',
        '{"a": {"config": "a.py", "url": "https://h/../../x.sh", "results": {}, "dataset": ""}}',
        '{"a": {"config": "a.py", "url": "https://h/a.pth", "results": {"x": "y"}, "dataset": ""}}',
        '{"a": {"__class__": "x"}}',
    ],
)
def test_hostile_index_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "index.json"
    file.write_text(content)
    with pytest.raises(UsageError) as caught:
        index.read_index(file)
    assert "\n" not in str(caught.value) and not (tmp_path / "attacked").exists()


def test_list_filters(capsys: pytest.CaptureFixture[str]):
    def names(*arguments: str) -> list[str]:
        assert main(["zoo", "list", *arguments, "--json"]) == 0
        return [entry["name"] for entry in json.loads(capsys.readouterr().out)]

    every = names()
    assert every == sorted(zoo_entries())
    assert names("rtmdet_t*") == [name for name in every if name.startswith("rtmdet_t")]
    assert names("RTMDET") == [name for name in every if "rtmdet" in name]
    good = names("--min-ap", "50", "--sort", "ap")
    scores = [zoo_entries()[name].box_ap for name in good]
    assert min(scores) >= 50 and scores == sorted(scores, reverse=True)
    assert all(zoo_entries()[name].mask_ap for name in names("--masks"))
    assert all("LVIS" in zoo_entries()[name].dataset for name in names("--dataset", "lvis"))
    assert main(["zoo", "list", "rtmdet_tiny_8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["name", "box", "AP"] and " 40.9 " in lines[1]
    assert main(["zoo", "list", "no-such-model"]) == 2


def test_listing_loads_nothing_heavy():
    code = (
        "import sys; from deploykit.cli import main; main(['zoo', 'list']);"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'cv2', 'yaml'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(zoo_entries()) + 1


@pytest.fixture
def published(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ZooEntry:
    """A zoo of one model, served on this machine."""
    data = (RUN / "tiny_retinanet.pth").read_bytes()
    entry = server.publish("tiny-retinanet_r18_coco", data)
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "zoo_entries", lambda: {entry.name: entry})
    return entry


def test_download_and_show(
    published: ZooEntry, server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["zoo", "show", published.name]) == 0
    assert "not downloaded" in capsys.readouterr().out
    assert main(["zoo", "download", published.name]) == 0
    file = Path(capsys.readouterr().out.strip())
    assert file == tmp_path / "cache" / "zoo" / published.file_name
    assert file.read_bytes() == (RUN / "tiny_retinanet.pth").read_bytes()
    assert main(["zoo", "show", published.name]) == 0
    assert "(downloaded)" in capsys.readouterr().out
    assert main(["zoo", "download", published.name, "--out", str(tmp_path / "here")]) == 0
    assert (tmp_path / "here" / published.file_name).is_file()
    shutil.rmtree(tmp_path / "cache")
    server.files.clear()
    assert main(["zoo", "download", published.name]) == 2
    captured = capsys.readouterr()
    assert "the server answered 404" in captured.err and "Traceback" not in captured.err


def test_a_detector_by_name(published: ZooEntry, server):
    with np.load(RUN / "tiny_retinanet.npz") as file:
        image, boxes = file["image_bgr"], file["boxes"]
    for _ in range(2):
        with Detector(
            published.name, device="cpu", score_threshold=0, input_size=(128, 128)
        ) as detector:
            found = detector(image)
        np.testing.assert_allclose(found.boxes, boxes, atol=0.05, rtol=0)
    assert len(server.requests) == 1


def test_a_detector_by_an_unknown_name(published: ZooEntry, tmp_path: Path):
    with pytest.raises(DeploykitError, match="expected a file in"):
        Detector("no-such-model")
