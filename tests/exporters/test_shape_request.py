"""Shapes of the command line, and what they do to an input spec."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deploykit.errors import UsageError
from deploykit.exporters.shape_request import ShapeRequest
from deploykit.spec import DimRange, InputSpec

PADDED = InputSpec(
    batch=DimRange(1, 1, 64),
    height=DimRange(32, 640, 4096),
    width=DimRange(32, 640, 4096),
    scale=(640, 640),
    pad_size=(640, 640),
)
UNPADDED = replace(
    PADDED,
    height=DimRange(32, 800, 4096),
    width=DimRange(32, 1344, 4096),
    scale=(1333, 800),
    pad_size=None,
)


def apply(spec=PADDED, **options):
    return ShapeRequest.parse(**options).apply(spec)


def test_default_is_the_size_that_the_pipeline_pads_to():
    assert apply() == replace(
        PADDED,
        batch=DimRange.fixed(1),
        height=DimRange.fixed(640),
        width=DimRange.fixed(640),
    )


def test_default_without_padding_takes_landscapes_and_portraits():
    result = apply(UNPADDED)
    assert result.height == DimRange(32, 800, 1344)
    assert result.width == DimRange(32, 1344, 1344)
    assert (result.scale, result.pad_size) == ((1333, 800), None)


def test_default_of_a_stretching_pipeline_is_static():
    spec = replace(UNPADDED, resize="stretch", scale=(512, 320))
    spec = replace(spec, height=DimRange(32, 320, 4096), width=DimRange(32, 512, 4096))
    result = apply(spec)
    assert (str(result.height), str(result.width), result.pad_size) == ("320", "512", (320, 512))


def test_static_shape_is_height_by_width_and_sets_the_scale():
    result = apply(shape="320x480", batch="4")
    assert (str(result.batch), str(result.height), str(result.width)) == ("4", "320", "480")
    assert result.pad_size == (320, 480)
    assert result.scale == (480, 320)


def test_static_shape_of_the_pipeline_keeps_its_exact_scale():
    result = apply(UNPADDED, shape="800x1344")
    assert result.scale == (1333, 800)
    assert result.pad_size == (800, 1344)


def test_dynamic_range_that_holds_the_pipeline_keeps_it():
    result = apply(dynamic="320x320:512x512:1280x1280", batch="1:4:16")
    assert result.height == DimRange(320, 512, 1280)
    assert result.batch == DimRange(1, 4, 16)
    assert (result.scale, result.pad_size) == ((640, 640), (640, 640))
    result = apply(UNPADDED, dynamic="320x320:640x640:1344x1344")
    assert (result.scale, result.pad_size) == ((1333, 800), None)


def test_dynamic_range_that_does_not_hold_the_pipeline_fits_into_the_optimum():
    result = apply(dynamic="128x128:256x320:512x512")
    assert (result.scale, result.pad_size) == ((320, 256), (256, 320))
    result = apply(UNPADDED, dynamic="128x128:256x320:512x512")
    assert (result.scale, result.pad_size) == ((320, 256), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "640"}, "--shape: expected HEIGHTxWIDTH"),
        ({"shape": "0x640"}, "--shape: expected HEIGHTxWIDTH"),
        ({"shape": "640x640", "dynamic": "32x32:64x64:96x96"}, "not both"),
        ({"shape": "630x640"}, "height must be a multiple of 32, got 630; try 608 or 640"),
        ({"shape": "640x16"}, "width must be a multiple of 32, got 16; try 32"),
        ({"shape": "8192x640"}, "height of at most 4096, got 8192"),
        ({"dynamic": "320x320:640x640"}, "--dynamic needs three sizes"),
        ({"dynamic": "320x320:640x64:128x128"}, r"1 <= min <= opt <= max, got 320:640:128"),
        ({"dynamic": "320x320:64x640:640x640"}, "heights of --dynamic"),
        ({"dynamic": "320x320:640x640:1000x1280"}, "multiple of 32, got 1000"),
        ({"batch": "0"}, "--batch must satisfy"),
        ({"batch": "4:2:8"}, "--batch must satisfy"),
        ({"batch": "1:2"}, "--batch needs a number or MIN:OPT:MAX"),
        ({"batch": "-1"}, "--batch needs a number"),
        ({"batch": "65"}, "batches of 1 to 64, got 65"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        apply(**options)
