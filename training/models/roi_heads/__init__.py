"""RoI heads: the second stage of two-stage detectors."""
