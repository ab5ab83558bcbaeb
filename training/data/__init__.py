"""Data: COCO data sets, the transform pipeline, samplers and the loader."""

from deploykit.training.data import transforms
from deploykit.training.data.build import build_dataloader, build_dataset
from deploykit.training.data.coco import CocoDataset
from deploykit.training.data.collate import collate
from deploykit.training.data.dataset import DetectionDataset, PipelineDataset, UnusableSampleError
from deploykit.training.data.loader import DetectionLoader
from deploykit.training.data.multi_image_mix import MultiImageMixDataset
from deploykit.training.data.report import AnnotationReport
from deploykit.training.data.sample import ImageRecord, Sample
from deploykit.training.data.samplers import (
    AspectRatioBatchSampler,
    DefaultSampler,
    InfiniteSampler,
)
from deploykit.training.data.wrappers import ClassBalancedDataset, ConcatDataset, RepeatDataset

__all__ = [
    "AnnotationReport",
    "AspectRatioBatchSampler",
    "ClassBalancedDataset",
    "CocoDataset",
    "ConcatDataset",
    "DefaultSampler",
    "DetectionDataset",
    "DetectionLoader",
    "ImageRecord",
    "InfiniteSampler",
    "MultiImageMixDataset",
    "PipelineDataset",
    "RepeatDataset",
    "Sample",
    "UnusableSampleError",
    "build_dataloader",
    "build_dataset",
    "collate",
    "transforms",
]
