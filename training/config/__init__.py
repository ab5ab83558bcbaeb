"""Reads MMDetection's Python configs by interpreting their syntax tree; nothing is executed."""

from deploykit.training.config.config import Config, load_config
from deploykit.training.config.dump import render
from deploykit.training.config.options import parse_options
from deploykit.training.config.tracked import Origin

__all__ = ["Config", "Origin", "load_config", "parse_options", "render"]
