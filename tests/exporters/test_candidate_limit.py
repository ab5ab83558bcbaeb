"""Fewer candidates per level for engines that cannot sort more."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
from torch import nn

from deploykit.exporters.candidate_limit import limited_candidates
from deploykit.exporters.onnx_exporter import export_onnx
from deploykit.exporters.shape_request import ShapeRequest
from deploykit.training.models.heads.dense_detections import DenseTestConfig


class Head(nn.Module):
    def __init__(self, nms_pre: int | None, dense: bool = True) -> None:
        super().__init__()
        self.test_config = DenseTestConfig(nms_pre=nms_pre)
        if dense:
            self.prior_generator = object()


@pytest.mark.parametrize("lowering", ["plugin", "primitive"])
@pytest.mark.parametrize("asked", [30000, 3841, None])
def test_larger_numbers_are_lowered_and_come_back(lowering, asked):
    detector = nn.Sequential(Head(asked), Head(1000), Head(None, dense=False))
    before = [head.test_config for head in detector]
    with (
        pytest.raises(KeyError),  # even when the export fails
        limited_candidates(detector, lowering) as limits,
    ):
        assert limits == {"nms_pre": 3840}
        assert [head.test_config.nms_pre for head in detector] == [3840, 1000, None]
        raise KeyError
    assert [head.test_config for head in detector] == before


@pytest.mark.parametrize(("lowering", "asked"), [("standard", 30000), ("primitive", 3840)])
def test_nothing_changes_without_need(lowering, asked):
    head = Head(asked)
    with limited_candidates(head, lowering) as limits:
        assert limits == {} and head.test_config.nms_pre == asked


@pytest.mark.slow
def test_an_export_says_so_and_equals_the_checkpoint_with_all_candidates(
    small_checkpoint: Path, tmp_path: Path
):
    shown: list[str] = []

    @contextmanager
    def step(name: str):
        shown.append(name)
        yield

    exported = export_onnx(
        small_checkpoint,
        tmp_path / "model.onnx",
        shape=ShapeRequest.parse(shape="320x320"),  # 4,800 (cell, class) pairs on the first level
        lowering="primitive",
        test_options={"nms_pre": 30000},
        step=step,
    )
    assert "limit nms_pre to 3840 for 'primitive'" in shown
    assert exported.parity.passed
    limits = exported.spec.lowering_limits
    assert limits == {
        "nms_pre": 3840,
        "nms_candidates": 2048,
        "nms_steps": 24,
        "nms_unresolved_at_most": 2023,
    }
    model = onnx.load(exported.path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    sorts = [node.input[1] for node in model.graph.node if node.op_type == "TopK"]
    counts = [int(onnx.numpy_helper.to_array(constants[name]).item()) for name in sorts]
    assert max(counts) == 3840
