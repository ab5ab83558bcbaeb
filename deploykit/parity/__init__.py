"""Parity: do two artefacts of a model find the same objects? Measured, with a verdict.

>>> from deploykit.parity import ParityTolerances
>>> ParityTolerances(box=0.2).score
0.001
"""

from __future__ import annotations

from deploykit.parity.compare import compare
from deploykit.parity.report import ParityReport
from deploykit.parity.tolerances import ParityTolerances

__all__ = ["ParityReport", "ParityTolerances", "compare"]
