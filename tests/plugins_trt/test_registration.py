"""Our plugins in the genuine plugin registry of TensorRT, and what it would compile and launch."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import genuine_tensorrt
import numpy as np
import pytest

from deploykit.errors import BackendError, MissingDependencyError
from deploykit.plugins_trt import nms_kernels
from deploykit.plugins_trt.nms_reference import batched_nms
from deploykit.plugins_trt.nvrtc import check_parameters
from deploykit.plugins_trt.registration import PLUGINS, register_plugins
from deploykit.plugins_trt.roi_align_reference import multilevel_roi_align

SCALES = np.float32([0.25, 0.125, 0.0625])
ATTRIBUTES = {
    "NmsSort": {},
    "NmsGather": {"window": 512},
    "NmsMask": {"iou_threshold": 0.5},
    "NmsScan": {"iou_threshold": 0.5, "max_out": 20, "window": 512},
    "MultilevelRoIAlign3": {
        "output_height": 7,
        "output_width": 5,
        "sampling_ratio": 0,
        "spatial_scales": SCALES,
        "finest_scale": 16,
        "aligned": 1,
    },
}
pytestmark = pytest.mark.skipif(
    bool(genuine_tensorrt.missing_packages()),
    reason=f"not installed: {', '.join(genuine_tensorrt.missing_packages())}",
)


@pytest.fixture(scope="module")
def tensorrt(tmp_path_factory):
    return genuine_tensorrt.load(tmp_path_factory.mktemp("libraries"))


@pytest.fixture(scope="module")
def registration(tensorrt):
    return register_plugins(tensorrt)


def field(tensorrt, name, value):
    """A field as the ONNX parser makes it: 32-bit numbers. The array must be kept alive."""
    array = np.atleast_1d(np.asarray(value))
    kind = "INT32" if array.dtype.kind == "i" else "FLOAT32"
    array = array.astype(kind.lower())
    return array, tensorrt.PluginField(name, array, getattr(tensorrt.PluginFieldType, kind))


def create(tensorrt, name, request="STRICT_AOT"):
    creator = tensorrt.get_plugin_registry().get_creator(name, "1", "deploykit")
    kept = [field(tensorrt, *item) for item in ATTRIBUTES[name].items()]
    collection = tensorrt.PluginFieldCollection([one for _, one in kept])
    return creator.create_plugin(
        name,
        "deploykit",
        collection,
        tensorrt.TensorRTPhase.BUILD,
        getattr(tensorrt.QuickPluginCreationRequest, request),
    )


def test_registering_twice_changes_nothing(tensorrt, registration):
    assert register_plugins(tensorrt, (8, 6)) is registration
    assert registration.compute_capability == (8, 6)
    assert register_plugins(tensorrt).compute_capability is None


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_the_registry_knows_every_plugin_and_its_attributes_in_order(
    tensorrt, registration, plugin
):
    creator = tensorrt.get_plugin_registry().get_creator(plugin.name, "1", "deploykit")
    assert [one.name for one in creator.field_names] == [name for name, _ in plugin.attributes]


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_survive_the_way_through_fields(tensorrt, registration, name):
    plugin = create(tensorrt, name)
    assert list(plugin.attrs) == list(ATTRIBUTES[name])
    for key, value in ATTRIBUTES[name].items():
        np.testing.assert_array_equal(plugin.attrs[key], value)
        assert isinstance(plugin.attrs[key], type(value))


@pytest.mark.parametrize("request_", ["UNKNOWN", "PREFER_JIT", "PREFER_AOT", "STRICT_AOT"])
def test_whatever_the_network_prefers_the_kernel_is_compiled_ahead(
    tensorrt, registration, request_
):
    plugin = create(tensorrt, "NmsScan", request_)
    assert isinstance(plugin, tensorrt.IPluginV3QuickAOTBuild)


def test_a_collection_does_not_keep_the_data_of_its_fields_alive(tensorrt):
    """A field only points at its array, so whoever makes a collection must keep the arrays."""
    array, one = field(tensorrt, "numbers", [1, 2, 3])
    array[0] = 7
    assert one.data.tolist() == [7, 2, 3]
    collection = tensorrt.PluginFieldCollection([one])
    watched = weakref.ref(array)
    del array, one
    assert len(collection) == 1
    assert watched() is None


# What TensorRT computes shapes with, on numbers.


def make_expressions(tensorrt, monkeypatch):
    """Return ``number(value)`` and a builder of expressions that are evaluated at once."""
    operations = tensorrt.DimensionOperation
    table = {
        operations.SUM: lambda a, b: a + b,
        operations.SUB: lambda a, b: a - b,
        operations.PROD: lambda a, b: a * b,
        operations.FLOOR_DIV: lambda a, b: a // b,
        operations.CEIL_DIV: lambda a, b: -(-a // b),
        operations.MIN: min,
        operations.MAX: max,
    }

    class Number(tensorrt.IDimensionExpr):
        def is_constant(self):
            return True

        def get_constant_value(self):
            return self.value

    def number(value):
        one = Number.__new__(Number)  # the genuine class has no constructor
        one.value = int(value)
        return one

    builder = SimpleNamespace(
        constant=number,
        operation=lambda kind, a, b: number(table[kind](a.value, b.value)),
    )
    # These two would take native expressions only.
    tensor_module = tensorrt.plugin._tensor
    monkeypatch.setattr(tensorrt, "DimsExprs", lambda length: [None] * length)
    monkeypatch.setattr(tensor_module, "SymExprImpl", lambda expression: expression._expr.value)
    return number, builder


def dynamic_desc(tensorrt, shape, dtype):
    desc = tensorrt.DynamicPluginTensorDesc()
    desc.desc.dims = tensorrt.Dims(shape)
    desc.desc.type = dtype
    desc.desc.format = tensorrt.TensorFormat.LINEAR
    return desc


class Built:
    """A plugin that has gone through what TensorRT does when it builds an engine."""

    def __init__(self, tensorrt, monkeypatch, name, shapes, dtypes):
        number, builder = make_expressions(tensorrt, monkeypatch)
        types = {
            "float32": tensorrt.DataType.FLOAT,
            "float16": tensorrt.DataType.HALF,
            "int32": tensorrt.DataType.INT32,
        }
        names = {value: key for key, value in types.items()}
        plugin = create(tensorrt, name)
        inputs = [types[dtype] for dtype in dtypes]
        outputs = plugin.get_output_data_types(inputs, [len(shape) for shape in shapes])
        expressions = [[number(side) for side in shape] for shape in shapes]
        found = plugin.get_output_shapes(expressions, [], builder)
        self.output_shapes = [tuple(side.value for side in shape) for shape in found]
        self.output_dtypes = [names[dtype] for dtype in outputs]
        all_shapes, all_types = [*shapes, *self.output_shapes], [*inputs, *outputs]
        descs = [dynamic_desc(tensorrt, *pair) for pair in zip(all_shapes, all_types, strict=True)]
        combinations = plugin.get_supported_format_combinations(descs, len(shapes))
        assert [one.type for one in combinations] == all_types
        plugin.configure_plugin(descs[: len(shapes)], descs[len(shapes) :])
        self.launches = {}
        self.tactics = plugin.get_valid_tactics() or [0]
        for tactic in self.tactics:
            plugin.set_tactic(tactic)
            params, scalars = SimpleNamespace(), Scalars()
            plugin.get_launch_params(expressions, descs, len(shapes), params, scalars, builder)
            plain = [desc.desc for desc in descs]
            kernel = plugin.get_kernel(plain[: len(shapes)], plain[len(shapes) :])
            self.launches[tactic] = params, scalars, kernel


class Scalars(dict):
    nbSymExprs = None


def assert_launch(built, expected_kernel, expected_launch, tactic=0):
    params, scalars, (name, ptx) = built.launches[tactic]
    assert name == expected_kernel.name
    assert not ptx.endswith(b"\0")
    check_parameters(ptx, expected_kernel)
    assert (params.grid_x, params.grid_y, params.grid_z) == expected_launch.grid
    assert (params.block_x, params.block_y, params.block_z) == (expected_launch.threads, 1, 1)
    assert params.shared_mem == 0
    assert scalars.nbSymExprs == len(expected_launch.scalars)
    assert [scalars[i] for i in range(len(scalars))] == list(expected_launch.scalars)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("candidates", [5, 300, 5000])
def test_what_tensorrt_launches_for_nms(tensorrt, registration, monkeypatch, candidates, dtype):
    sizes = nms_kernels.NmsSizes(3, candidates, 512)
    scratch = {
        name: (sizes.shapes[name], nms_kernels.SCRATCH_DTYPES[name]) for name in sizes.shapes
    }
    given = {
        "boxes": ((3, candidates, 4), dtype),
        "scores": ((3, candidates), dtype),
        "labels": ((3, candidates), "int32"),
    } | scratch
    kernels = {
        "NmsSort": (nms_kernels.sort_kernel(dtype), sizes.sort_launch()),
        "NmsGather": (nms_kernels.gather_kernel(dtype), sizes.gather_launch()),
        "NmsMask": (nms_kernels.mask_kernel(0.5), nms_kernels.mask_launch(3, sizes.span)),
        "NmsScan": (nms_kernels.scan_kernel(dtype, 0.5, 20, 512), sizes.scan_launch()),
    }
    for name, (kernel, launch) in kernels.items():
        inputs = [given[one] for one in kernel.inputs]
        built = Built(tensorrt, monkeypatch, name, *zip(*inputs, strict=True))
        outputs = [scratch.get(one, ((3, 20), "int32")) for one in kernel.outputs]
        assert built.output_shapes == [shape for shape, _ in outputs]
        assert built.output_dtypes == [kind for _, kind in outputs]
        assert_launch(built, kernel, launch)
        assert kernel in registration.kernels[name]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_tensorrt_launches_for_roi_align(tensorrt, registration, monkeypatch, dtype):
    shapes = [(40, 5), *((2, 96, 64 >> level, 80 >> level) for level in range(3))]
    dtypes = ["float32", dtype, dtype, dtype]
    built = Built(tensorrt, monkeypatch, "MultilevelRoIAlign3", shapes, dtypes)
    assert built.output_shapes == [(40, 96, 7, 5)]
    assert built.output_dtypes == [dtype]
    assert set(built.tactics) == {1, 2, 3}
    for tactic, groups in ((1, 6), (2, 2), (3, 1)):
        params, scalars, (name, ptx) = built.launches[tactic]
        assert name == "multilevel_roi_align"
        assert (params.grid_x, params.grid_y, params.grid_z) == (40, groups, 1)
        assert list(scalars.values()) == [2, 96, 64, 80, 32, 40, 16, 20]
        assert ptx.count(b".param .u64") + ptx.count(b".param .u32") >= 13


def test_the_gpu_of_the_engine_decides_what_is_compiled(tensorrt, registration, monkeypatch):
    shapes, dtypes = [(1, 100)], ["float32"]
    for capability, target in ((None, b"sm_75"), ((8, 9), b"sm_89"), ((12, 1), b"sm_120")):
        register_plugins(tensorrt, capability)
        built = Built(tensorrt, monkeypatch, "NmsSort", shapes, dtypes)
        assert b".target " + target in built.launches[0][2][1]
    register_plugins(tensorrt)


@pytest.mark.parametrize(
    ("name", "shapes", "dtypes", "message"),
    [
        ("NmsSort", [(1, 9)], ["int32"], "scores must be float32 or float16"),
        (
            "MultilevelRoIAlign3",
            [(4, 5), (1, 8, 8, 8), (1, 8, 4, 4), (1, 8, 2, 2)],
            ["float16", "float16", "float16", "float16"],
            "input rois is float16, expected float32",
        ),
        (
            "MultilevelRoIAlign3",
            [(4, 5), (1, 8, 8, 8), (1, 8, 4, 4), (1, 8, 2, 2)],
            ["float32", "float16", "float32", "float16"],
            "input feature_1 is float32, expected float16",
        ),
    ],
)
def test_other_types_are_refused(
    tensorrt, registration, monkeypatch, name, shapes, dtypes, message
):
    with pytest.raises(BackendError, match=message):
        Built(tensorrt, monkeypatch, name, shapes, dtypes)


def run_built(tensorrt, monkeypatch, device, name, tensors, inputs, outputs):
    """Run a kernel as TensorRT would launch it, emulated; adds its outputs to ``tensors``."""
    from deploykit.plugins_trt.kernel import Launch

    shapes = [tensors[one].shape for one in inputs]
    dtypes = [str(tensors[one].dtype) for one in inputs]
    registration = register_plugins(tensorrt)
    registration.kernels.clear()
    built = Built(tensorrt, monkeypatch, name, shapes, dtypes)
    tactic = built.tactics[0]
    params, scalars, _ = built.launches[tactic]
    for one, shape, dtype in zip(outputs, built.output_shapes, built.output_dtypes, strict=True):
        tensors[one] = device.empty(shape, dtype)
    kernel = next(
        one
        for one in registration.kernels[name]
        if dict(one.constants).get("CHANNELS", "16") == "16"
    )
    grid = params.grid_x, params.grid_y, params.grid_z
    values = tuple(scalars[i] for i in range(len(scalars)))
    device.launch(kernel, Launch(grid, params.block_x, values), tensors)


def test_the_launches_of_tensorrt_compute_nms(tensorrt, registration, monkeypatch, emulated):
    rng = np.random.default_rng(0)
    device = emulated(1)
    corner, sides = rng.uniform(0, 100, (2, 700, 2)), rng.uniform(5, 40, (2, 700, 2))
    boxes = np.concatenate([corner, corner + sides], axis=2).astype(np.float32)
    scores = rng.uniform(-0.2, 1, (2, 700)).astype(np.float32)
    labels = rng.integers(0, 2, (2, 700))
    tensors = {"boxes": device.upload(boxes), "scores": device.upload(scores)}
    tensors["labels"] = device.upload(labels.astype(np.int32))
    for plugin in PLUGINS[:4]:
        kernel = {
            "NmsSort": nms_kernels.sort_kernel("float32"),
            "NmsGather": nms_kernels.gather_kernel("float32"),
            "NmsMask": nms_kernels.mask_kernel(0.5),
            "NmsScan": nms_kernels.scan_kernel("float32", 0.5, 20, 512),
        }[plugin.name]
        assert plugin.inputs == kernel.inputs
        run_built(
            tensorrt, monkeypatch, device, plugin.name, tensors, kernel.inputs, kernel.outputs
        )
    expected = batched_nms(boxes, scores, labels, 0.5, 20)
    np.testing.assert_array_equal(tensors["indices"], expected)


def test_the_launches_of_tensorrt_compute_roi_align(tensorrt, registration, monkeypatch, emulated):
    rng = np.random.default_rng(0)
    device = emulated(1)
    features = [rng.normal(size=(2, 20, 32 >> i, 40 >> i)).astype(np.float32) for i in range(3)]
    corner = rng.uniform(0, 100, (6, 2))
    rois = np.concatenate(
        [rng.integers(0, 2, (6, 1)), corner, corner + rng.uniform(1, 90, (6, 2))], axis=1
    ).astype(np.float32)
    tensors = {f"feature_{i}": device.upload(feature) for i, feature in enumerate(features)}
    tensors["rois"] = device.upload(rois)
    inputs = ("rois", "feature_0", "feature_1", "feature_2")
    run_built(tensorrt, monkeypatch, device, "MultilevelRoIAlign3", tensors, inputs, ("crops",))
    expected = multilevel_roi_align(features, rois, (7, 5), 0, list(SCALES), 16, True)
    np.testing.assert_allclose(tensors["crops"], expected, rtol=2e-5, atol=2e-5)


def test_a_tensorrt_that_takes_no_such_plugins_is_refused():
    old = SimpleNamespace(__name__="tensorrt", __version__="10.3.0")
    with pytest.raises(MissingDependencyError, match=r"tensorrt 10\.3\.0 .* needs TensorRT 10\.12"):
        register_plugins(old)
