"""The transforms of the data pipeline, registered by MMDetection's type names."""

from deploykit.training.data.transforms.affine import Expand, RandomAffine
from deploykit.training.data.transforms.choice import RandomChoice
from deploykit.training.data.transforms.colour import PhotoMetricDistortion, YOLOXHSVRandomAug
from deploykit.training.data.transforms.crop import MinIoURandomCrop, RandomCrop
from deploykit.training.data.transforms.filter import FilterAnnotations
from deploykit.training.data.transforms.flip import RandomFlip
from deploykit.training.data.transforms.loading import LoadAnnotations, LoadImageFromFile
from deploykit.training.data.transforms.mixup import CachedMixUp, MixUp
from deploykit.training.data.transforms.mosaic import CachedMosaic, Mosaic
from deploykit.training.data.transforms.pack import PackDetInputs
from deploykit.training.data.transforms.pad import Pad
from deploykit.training.data.transforms.proposals import LoadProposals, ProposalBroadcaster
from deploykit.training.data.transforms.resize import (
    FixScaleResize,
    RandomChoiceResize,
    RandomResize,
    Resize,
)
from deploykit.training.data.transforms.transform import (
    CachingTransform,
    MixingTransform,
    Pipeline,
    Transform,
)

__all__ = [
    "CachedMixUp",
    "CachedMosaic",
    "CachingTransform",
    "Expand",
    "FilterAnnotations",
    "FixScaleResize",
    "LoadAnnotations",
    "LoadImageFromFile",
    "LoadProposals",
    "MinIoURandomCrop",
    "MixUp",
    "MixingTransform",
    "Mosaic",
    "PackDetInputs",
    "Pad",
    "PhotoMetricDistortion",
    "Pipeline",
    "ProposalBroadcaster",
    "RandomAffine",
    "RandomChoice",
    "RandomChoiceResize",
    "RandomCrop",
    "RandomFlip",
    "RandomResize",
    "Resize",
    "Transform",
    "YOLOXHSVRandomAug",
]
