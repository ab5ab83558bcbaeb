"""``BatchedNMS`` as NonMaxSuppression: when the rest of the candidates is looked at."""

from __future__ import annotations

from nms_cases import build

PREFIX = 12


def test_second_look_is_left_out_where_it_cannot_be_needed():
    small = {node.op_type for node in build(PREFIX, 0.5, 5, dims=(1, PREFIX)).graph.node}
    large = {node.op_type for node in build(PREFIX, 0.5, 5, dims=(1, PREFIX + 1)).graph.node}
    assert "If" not in small
    assert "If" in large
