from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import SpecError
from deploykit.spec import SPEC_VERSION, DimRange, InputSpec, ModelSpec, OutputSpec

dims = st.lists(st.integers(1, 4096), min_size=3, max_size=3).map(lambda v: DimRange(*sorted(v)))
colours = st.tuples(*[st.integers(0, 255)] * 3)
inputs = st.builds(
    InputSpec,
    batch=dims,
    height=dims,
    width=dims,
    resize=st.sampled_from(["keep_ratio", "stretch", "none"]),
    scale=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    pad_size=st.none() | st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    pad_value=colours,
    image_sizes_input=st.booleans(),
    proposals=st.integers(0, 2000),
)
specs = st.builds(
    ModelSpec,
    architecture=st.text(max_size=20),
    classes=st.lists(st.text(max_size=10), max_size=5).map(tuple),
    input=inputs,
    output=st.builds(OutputSpec, max_per_img=st.integers(1, 1000)),
    palette=st.lists(colours, max_size=3).map(tuple),
    score_threshold=st.floats(0, 1),
    versions=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    parity=st.none() | st.just({"passed": True, "max_box_error": 0.01}),
)


@given(specs)
def test_json_round_trip_gives_an_equal_spec(spec):
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_a_dimension_is_static_when_its_three_sizes_are_equal():
    assert DimRange.fixed(4).is_static and str(DimRange.fixed(4)) == "4"
    dynamic = DimRange(1, 4, 16)
    assert not dynamic.is_static and str(dynamic) == "1:4:16"
    assert 16 in dynamic and 17 not in dynamic and 0 not in dynamic


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 3), (1, 4, 3), (-1, 1, 1)])
def test_impossible_dimensions_are_refused(sizes):
    with pytest.raises(SpecError, match="min <= opt <= max"):
        DimRange(*sizes)


def minimal() -> dict:
    dim = DimRange.fixed(1)
    spec = ModelSpec(architecture="X", classes=("a",), input=InputSpec(dim, dim, dim))
    return json.loads(spec.to_json())


def test_a_newer_layout_is_refused_with_both_versions():
    text = json.dumps(minimal() | {"version": SPEC_VERSION + 1})
    with pytest.raises(SpecError, match=rf"version {SPEC_VERSION + 1}.*up to {SPEC_VERSION}"):
        ModelSpec.from_json(text)


@pytest.mark.parametrize(
    "text",
    ["", "not json", "[]", "null", "{}", '{"version": "x"}', '{"version": 1}'],
)
def test_damaged_text_is_a_spec_error_that_names_its_source(text):
    with pytest.raises(SpecError, match="model.onnx"):
        ModelSpec.from_json(text, source="model.onnx")


@pytest.mark.parametrize("key", ["classes", "input", "output", "palette", "architecture"])
def test_a_missing_part_is_a_spec_error(key):
    data = minimal()
    del data[key]
    with pytest.raises(SpecError):
        ModelSpec.from_json(json.dumps(data))
