"""Detectors: backbone, neck and head as one model."""
