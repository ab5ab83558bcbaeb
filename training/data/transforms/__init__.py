"""The transforms of the data pipeline, registered by MMDetection's type names."""

from deploykit.training.data.transforms.flip import RandomFlip
from deploykit.training.data.transforms.loading import LoadAnnotations, LoadImageFromFile
from deploykit.training.data.transforms.pack import PackDetInputs
from deploykit.training.data.transforms.pad import Pad
from deploykit.training.data.transforms.resize import (
    FixScaleResize,
    RandomChoiceResize,
    RandomResize,
    Resize,
)
from deploykit.training.data.transforms.transform import CachingTransform, Pipeline, Transform

__all__ = [
    "CachingTransform",
    "FixScaleResize",
    "LoadAnnotations",
    "LoadImageFromFile",
    "PackDetInputs",
    "Pad",
    "Pipeline",
    "RandomChoiceResize",
    "RandomFlip",
    "RandomResize",
    "Resize",
    "Transform",
]
