"""Evaluation: COCO metrics, and the loop that runs a model over a validation set."""

from deploykit.training.evaluation.coco_metric import CocoMetric
from deploykit.training.evaluation.coco_scores import ClassScores
from deploykit.training.evaluation.dump_proposals import DumpProposals
from deploykit.training.evaluation.ground_truth import GroundTruth
from deploykit.training.evaluation.measure import (
    EvaluationProgress,
    detections_of_batch,
    evaluate_detector,
)
from deploykit.training.evaluation.metric import Metric, build_metrics

__all__ = [
    "ClassScores",
    "CocoMetric",
    "DumpProposals",
    "EvaluationProgress",
    "GroundTruth",
    "Metric",
    "build_metrics",
    "detections_of_batch",
    "evaluate_detector",
]
