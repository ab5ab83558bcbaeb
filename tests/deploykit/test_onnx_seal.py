from __future__ import annotations

import onnx
import pytest

from deploykit.errors import SpecError
from deploykit.onnx_seal import BLANK_SEAL, SEAL_KEY, is_damaged, reseal, seal


@pytest.fixture
def model() -> onnx.ModelProto:
    weights = onnx.helper.make_tensor(
        "w", onnx.TensorProto.FLOAT, [64], [float(i) for i in range(64)]
    )
    node = onnx.helper.make_node("Identity", ["w"], ["y"])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [64])
    graph = onnx.helper.make_graph([node], "graph", [], [output], [weights])
    return onnx.helper.make_model(graph)


def test_every_flipped_byte_outside_the_marker_is_noticed(model, tmp_path):
    model.metadata_props.add(key="deploykit", value="{}")
    model.metadata_props.add(key=SEAL_KEY, value=BLANK_SEAL)
    data = seal(model.SerializeToString(deterministic=True))
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    assert not is_damaged(path)
    assert onnx.load(path).graph == model.graph
    marker = data.index(SEAL_KEY.encode())
    for position in set(range(len(data))) - set(range(marker, marker + len(SEAL_KEY) + 2)):
        changed = bytearray(data)
        changed[position] ^= 0x10
        path.write_bytes(changed)
        assert is_damaged(path), position


def test_files_without_a_seal(model, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert not is_damaged(path)
    with pytest.raises(ValueError, match="has no entry"):
        seal(path.read_bytes())


def test_a_file_that_a_tool_rewrote_is_sealed_again(model, tmp_path):
    model.metadata_props.add(key=SEAL_KEY, value=BLANK_SEAL)
    path = tmp_path / "model.onnx"
    path.write_bytes(seal(model.SerializeToString(deterministic=True)))
    edited = onnx.load(path)
    edited.graph.node[0].name = "renamed"
    onnx.save(edited, path)
    assert is_damaged(path)
    reseal(path)
    assert not is_damaged(path)
    assert onnx.load(path).graph == edited.graph
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def test_a_file_without_a_seal_cannot_be_sealed_again(model, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    with pytest.raises(SpecError, match="carries no checksum"):
        reseal(path)
