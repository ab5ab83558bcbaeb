"""Backbones: images to features of several strides."""
