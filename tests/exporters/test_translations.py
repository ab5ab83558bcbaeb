"""Operators that are not written as PyTorch's exporter writes them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deploykit.exporters.translations import translation_table


class Divide(nn.Module):
    def forward(self, dividend, divisor, real):
        return tuple(
            torch.div(value, by, rounding_mode=mode)
            for value, by in ((dividend, divisor), (dividend, 80), (real, 0.75))
            for mode in ("floor", "trunc")
        )


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3), keepdim=True), x.mean((-1, 1)), x.mean(2)


def session(module, *inputs):
    program = torch.onnx.export(
        module.eval(),
        inputs,
        dynamo=True,
        opset_version=18,
        custom_translation_table=translation_table(),
        verbose=False,
    )
    proto = ir.to_proto(program.model)
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def run(loaded, *inputs):
    return loaded.run(
        None, {node.name: array for node, array in zip(loaded.get_inputs(), inputs, strict=True)}
    )


@pytest.fixture(scope="module")
def divide():
    return session(Divide(), torch.arange(1, 5), torch.arange(2, 6), torch.rand(4))


integers = st.integers(-(2**53), 2**53)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(integers, min_size=4, max_size=4),
    st.lists(integers.filter(bool), min_size=4, max_size=4),
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4),
)
def test_division_is_exact(divide, dividends, divisors, reals):
    arrays = np.array(dividends), np.array(divisors), np.array(reals, np.float32)
    found = run(divide, *arrays)
    expected = [value // by for value, by in zip(dividends, divisors, strict=True)]
    assert found[0].tolist() == expected
    for array, wanted in zip(found, Divide()(*map(torch.from_numpy, arrays)), strict=True):
        np.testing.assert_array_equal(array, wanted.numpy())


def test_mean_of_a_large_map_is_exact():
    # The sum of 25600 equal values, one added after the other, is off by 3e-5 here.
    values = np.float32([0.1, 1 / 3, 0.7, 1.1, 2.3, -0.3, 5.7, -9.1])
    features = np.broadcast_to(values[:, None, None], (1, 8, 160, 160)).copy()
    means = run(session(Mean(), torch.from_numpy(features)), features)
    for found, axes in zip(means, ((2, 3), (1, 3), (2,)), strict=True):
        expected = features.astype(np.float64).mean(axes, keepdims=axes == (2, 3))
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=2e-6)
