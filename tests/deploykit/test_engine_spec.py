"""Engines and the specs beside them."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit import cli
from deploykit.engine_spec import (
    BuildFlags,
    BuildRecord,
    EngineSpec,
    PluginKernel,
    PrecisionUsed,
    TensorInfo,
    engine_spec_path,
    read_engine,
    read_engine_spec,
    write_engine,
)
from deploykit.errors import BackendError, DeploykitError, SpecError
from deploykit.inspection import inspect_model
from deploykit.spec import DimRange, InputSpec, ModelSpec

PLAN = bytes(range(256)) * 40


def spec_of(plan: bytes) -> EngineSpec:
    return EngineSpec(
        model=ModelSpec(
            architecture="RTMDet",
            classes=("circle", "étoile"),
            input=InputSpec(DimRange(1, 2, 4), DimRange.fixed(64), DimRange.fixed(96)),
            palette=((1, 2, 3), (4, 5, 6)),
            lowering="primitive",
        ),
        flavour="rtx",
        tensorrt_version="1.7.1.116",
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        engine_bytes=len(plan),
        onnx_sha256="0" * 64,
        inputs=(TensorInfo("images", "uint8", ("batch", 64, 96, 3)),),
        outputs=(TensorInfo("boxes", "float32", ("batch", 100, 4)),),
        plugins=(PluginKernel("nms_mask", "a" * 64),),
        precision_used=PrecisionUsed("graph", {"float32": 12, "int64": 3}),
        build_flags=BuildFlags(workspace=1 << 30, compute_capabilities=("8.6", "8.9")),
        build_log=BuildRecord(1.5, ("INFO: hello", "WARNING: careful")),
    )


SPEC = spec_of(PLAN)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "model.engine"
    write_engine(path, PLAN, SPEC)
    return path


def test_round_trip(engine: Path):
    assert read_engine_spec(engine) == SPEC
    assert read_engine(engine) == (SPEC, PLAN)
    assert sorted(file.name for file in engine.parent.iterdir()) == [
        "model.engine",
        "model.engine.json",
    ]
    assert json.loads(engine_spec_path(engine).read_text())["model"]["architecture"] == "RTMDet"
    assert SPEC.build_log.warnings == ("WARNING: careful",)


def test_an_engine_with_the_spec_of_another_is_not_written(tmp_path: Path):
    with pytest.raises(SpecError, match="does not describe the engine"):
        write_engine(tmp_path / "model.engine", PLAN + b"x", SPEC)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failing", ["model.engine", "model.engine.json"])
def test_a_failed_write_leaves_the_old_pair_or_one_that_is_refused(
    engine: Path, failing: str, monkeypatch: pytest.MonkeyPatch
):
    rename = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(target).name == failing:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail)
    plan = PLAN[::-1]
    with pytest.raises(OSError, match="No space left"):
        write_engine(engine, plan, spec_of(plan))
    names = {file.name for file in engine.parent.iterdir()}
    assert names == {"model.engine", "model.engine.json"}  # nothing temporary is left
    if failing == "model.engine":
        assert read_engine(engine) == (SPEC, PLAN)
    else:
        with pytest.raises(BackendError, match="SHA-256"):
            read_engine(engine)


def test_truncated_engine_is_refused_with_both_sizes(engine: Path):
    engine.write_bytes(PLAN[:-1])
    with pytest.raises(BackendError, match=r"has 10,239 bytes, but its spec says 10,240"):
        read_engine(engine)


@given(place=st.integers(0, len(PLAN) - 1), bit=st.integers(0, 7))
def test_every_flipped_bit_is_noticed(
    place: int, bit: int, tmp_path_factory: pytest.TempPathFactory
):
    path = tmp_path_factory.mktemp("flip") / "model.engine"
    write_engine(path, PLAN, SPEC)
    changed = bytearray(PLAN)
    changed[place] ^= 1 << bit
    path.write_bytes(changed)
    with pytest.raises(BackendError) as caught:
        read_engine(path)
    assert SPEC.engine_sha256[:16] in str(caught.value)
    assert hashlib.sha256(changed).hexdigest()[:16] in str(caught.value)


def test_missing_engine_and_missing_spec(engine: Path):
    with pytest.raises(BackendError, match="this is missing"):
        read_engine(engine.with_name("other.engine"))
    with pytest.raises(BackendError, match="this is a directory"):
        read_engine(engine.parent)
    engine_spec_path(engine).unlink()
    with pytest.raises(SpecError, match=r"no spec beside it: expected model\.engine\.json"):
        read_engine(engine)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not the spec of an engine"),
        ("[]", "is not the spec of an engine"),
        ("{}", "is not the spec of an engine"),
        ('{"version": 99}', "engine spec version 99; this deploykit reads versions up to 1"),
        ('{"version": 1}', "holds a model spec that cannot be read"),
        (SPEC.to_json().replace('"plugins"', '"kernels"'), "incomplete engine spec"),
        (SPEC.to_json().replace('"tf32"', '"tf33"'), "incomplete engine spec"),
    ],
)
def test_damaged_specs_are_one_clear_error(engine: Path, text: str, message: str):
    engine_spec_path(engine).write_text(text)
    with pytest.raises(SpecError, match=message) as caught:
        read_engine(engine)
    assert "\n" not in str(caught.value)


@given(content=st.binary(max_size=60))
def test_any_bytes_as_spec_are_refused_by_our_errors(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
):
    path = tmp_path_factory.mktemp("fuzz") / "model.engine"
    path.write_bytes(PLAN)
    engine_spec_path(path).write_bytes(content)
    with pytest.raises(DeploykitError):
        read_engine(path)


def test_inspect_shows_the_engine(engine: Path, capsys: pytest.CaptureFixture[str]):
    found = inspect_model(engine)
    assert (found.kind, found.spec, found.sha256) == ("engine", SPEC.model, SPEC.engine_sha256)
    assert found.inputs == SPEC.inputs
    assert cli.main(["inspect", str(engine)]) == 0
    shown = capsys.readouterr().out
    for text in (
        "TensorRT-RTX 1.7.1.116",
        "compute capability 8.6, 8.9",
        "float32 12, int64 3",
        "nms_mask",
        "1 warnings",
        "uint8 [batch, 64, 96, 3]",
        "étoile",
    ):
        assert text in shown.replace("\n", " "), text
    assert cli.main(["inspect", "--json", str(engine)]) == 0
    assert json.loads(capsys.readouterr().out)["spec"]["lowering"] == "primitive"


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"build_flags": BuildFlags()}, "any GPU that TensorRT-RTX supports"),
        (
            {
                "compute_capability": "8.6",
                "device_name": "RTX A4000",
                "build_flags": BuildFlags(hardware_compatible=True),
            },
            "compute capability 8.6 (RTX A4000), and 8.0 or newer",
        ),
    ],
)
def test_inspect_says_where_an_engine_runs(engine: Path, changes: dict[str, Any], place: str):
    write_engine(engine, PLAN, replace(SPEC, **changes))
    assert inspect_model(engine).facts["runs on"] == place


def test_inspect_of_an_engine_for_one_gpu(engine: Path):
    spec = replace(
        SPEC,
        flavour="tensorrt",
        compute_capability="8.6",
        device_name="RTX A4000",
        driver_version="13.0",
        precision_used=PrecisionUsed("engine", {"float16": 70}),
    )
    write_engine(engine, PLAN, spec)
    facts = inspect_model(engine).facts
    assert facts["runs on"] == "compute capability 8.6 (RTX A4000)"
    assert facts["driver"] == "13.0"
    assert facts["types in the engine"] == {"float16": 70}


def test_inspect_of_a_damaged_engine_is_one_line_and_exit_2(
    engine: Path, capsys: pytest.CaptureFixture[str]
):
    engine.write_bytes(PLAN + b"!")
    assert cli.main(["inspect", str(engine)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("deploykit: error: ") and error.count("\n") == 1
