"""Runtimes: ``Detector`` and its backends, host preprocessing, image and video sources."""
