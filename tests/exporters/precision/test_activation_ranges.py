import numpy as np
import pytest
from graphs import model_of

from deploykit.errors import ExportError
from deploykit.exporters.precision.activation_ranges import activation_ranges

GRAPH = "g (float[N,3] x) => (float[N,3] y) { a = Neg(x) b = Sqrt(x) c = Add(a, b) y = Relu(c) }"


@pytest.fixture
def model():
    return model_of(GRAPH, ["backbone"] * 4)


def test_the_largest_magnitude_over_all_runs(model):
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.uniform(0, 9, (n, 3)).astype(np.float32)} for n in (1, 4, 2)]
    ranges = activation_ranges(model, ["a", "b"], feeds)
    assert ranges == {
        "a": max(float(feed["x"].max()) for feed in feeds),
        "b": pytest.approx(max(float(np.sqrt(feed["x"]).max()) for feed in feeds)),
    }


def test_not_a_number_counts_as_infinite(model):
    feeds = [{"x": np.asarray([[-4, 1, 1]], np.float32)}, {"x": np.ones((1, 3), np.float32)}]
    ranges = activation_ranges(model, ["a", "b"], feeds)
    assert ranges == {"a": 4.0, "b": np.inf}


def test_nothing_to_measure_on(model):
    with pytest.raises(ExportError, match="without an image"):
        activation_ranges(model, ["a"], [])


def test_a_graph_that_does_not_run(model):
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ExportError, match="cannot be measured"):
        activation_ranges(model, ["b"], [{"x": np.ones((1, 3), np.float32)}])
