from __future__ import annotations

import json

import numpy as np
import pytest

from deploykit.benchmark_nms import crowd, main
from deploykit.errors import BackendError
from deploykit.kernel_device import KernelDevice
from deploykit.plugins_trt.nms_reference import batched_nms


def has_gpu():
    try:
        KernelDevice()
    except BackendError:
        return False
    return True


def test_the_scene_is_crowded_and_has_no_ties():
    boxes, scores = crowd(500)
    assert boxes.shape == (1, 500, 4) and boxes.dtype == np.float32
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    assert len(np.unique(scores)) == 500 and (scores > 0).all()
    kept = (batched_nms(boxes, scores, np.zeros((1, 500), np.int64), 0.5, 500) >= 0).sum()
    assert 50 < kept < 400


def test_without_a_gpu_it_says_so_in_one_line(capsys):
    if has_gpu():
        pytest.skip("there is a GPU")
    assert main(["--boxes", "100"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "NVIDIA" in line


@pytest.mark.gpu
def test_it_times_both_and_they_agree(capsys):
    if not has_gpu():
        pytest.skip("needs an NVIDIA GPU")
    assert main(["--boxes", "100", "3000", "--rounds", "5", "--json"]) == 0
    timings = json.loads(capsys.readouterr().out)["timings"]
    assert [timing["boxes"] for timing in timings] == [100, 3000]
    assert all(timing["ratio"] > 0 and len(timing["stages"]) == 4 for timing in timings)
