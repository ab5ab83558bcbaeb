"""Heads: features to predictions, losses and detections."""
