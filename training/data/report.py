"""``AnnotationReport``: what was wrong with a data set, by name and count."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)

EXAMPLES_KEPT = 3


@dataclass(frozen=True)
class ProblemKind:
    """A kind of problem.

    Args:
        meaning: What is wrong, to be read after a count, and what was done about it.
        harmless: Whether nothing was lost and nothing is wrong with the file as such.
    """

    meaning: str
    harmless: bool = False


PROBLEM_KINDS = {
    # The annotation file
    "invalid_image": ProblemKind("image entries without a usable id, name or size: left out"),
    "duplicate_image_id": ProblemKind("image ids used again: the last entry counts"),
    "missing_file": ProblemKind("image files that do not exist: left out"),
    "invalid_annotation": ProblemKind("annotations of the wrong form: left out"),
    "duplicate_annotation_id": ProblemKind("annotation ids used again: kept, ids do not matter"),
    "repeated_annotation": ProblemKind("annotations repeated word for word: kept once"),
    "unknown_image": ProblemKind("annotations of images that are not listed: left out"),
    "unknown_category": ProblemKind("annotations of categories that are not listed: left out"),
    "invalid_category": ProblemKind("category entries without a usable id or name: left out"),
    "duplicate_category": ProblemKind("category ids or names used again"),
    "invalid_box": ProblemKind("boxes that are missing or not four finite numbers: left out"),
    "empty_box": ProblemKind("boxes or areas without extent, or under one pixel: left out"),
    "box_outside_image": ProblemKind("boxes wholly outside their image: left out"),
    "box_beyond_image": ProblemKind("boxes reaching over the edge of their image: clipped", True),
    "image_without_objects": ProblemKind("images without objects of the classes", True),
    # Found while reading images
    "unreadable_image": ProblemKind("images that cannot be read"),
    "wrong_image_size": ProblemKind(
        "images of another size than annotated: the file's size counts"
    ),
    "invalid_mask": ProblemKind("masks that cannot be used: the object is ignored"),
}


@dataclass
class Problem:
    """How often one kind of problem occurred.

    Args:
        count: Number of occurrences.
        examples: The first few, in words.
    """

    count: int = 0
    examples: list[str] = field(default_factory=list)


class AnnotationReport:
    """Counts the problems of a data set and keeps a few examples of each kind.

    Args:
        source: What is reported on, e.g. the annotation file.

    Example:
        >>> report = AnnotationReport("train.json")
        >>> report.add("empty_box", "annotation 7 of image 3: 0 x 12")
        >>> report.counts
        {'empty_box': 1}
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: dict[str, Problem] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "problems": self.problems}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def add(self, kind: str, example: str) -> None:
        """Count one occurrence of ``kind`` (a key of ``PROBLEM_KINDS``)."""
        if kind not in PROBLEM_KINDS:
            raise KeyError(f"unknown kind of problem: {kind}")
        with self._lock:
            problem = self.problems.setdefault(kind, Problem())
            problem.count += 1
            if len(problem.examples) < EXAMPLES_KEPT and example not in problem.examples:
                problem.examples.append(example)

    def extend(self, problems: Iterable[tuple[str, str]]) -> None:
        """Count (kind, example) pairs."""
        for kind, example in problems:
            self.add(kind, example)

    @property
    def counts(self) -> dict[str, int]:
        """Occurrences per kind, harmless ones included."""
        return {kind: problem.count for kind, problem in self.problems.items()}

    @property
    def has_errors(self) -> bool:
        """Whether anything but harmless observations was found."""
        return any(not PROBLEM_KINDS[kind].harmless for kind in self.problems)

    def lines(self) -> list[str]:
        """Return one line per kind: count, meaning, and a few examples; harmless ones last."""
        ordered = sorted(self.problems.items(), key=lambda item: PROBLEM_KINDS[item[0]].harmless)
        lines = []
        for kind, problem in ordered:
            examples = "; ".join(problem.examples)
            more = "; ..." if problem.count > len(problem.examples) else ""
            meaning = PROBLEM_KINDS[kind].meaning
            lines.append(f"{problem.count} {kind} ({meaning}): {examples}{more}")
        return lines

    def summary(self) -> str:
        """Return the whole report as text, one line per kind of problem."""
        if not self.problems:
            return f"{self.source}: no problems found"
        return "\n  ".join([f"{self.source}:", *self.lines()])

    def first_errors(self) -> str:
        """Return the kinds that are not harmless in one line."""
        return "; ".join(
            f"{problem.count} {kind} ({problem.examples[0]})"
            for kind, problem in self.problems.items()
            if not PROBLEM_KINDS[kind].harmless
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain types."""
        problems = {
            kind: {"count": problem.count, "examples": list(problem.examples)}
            for kind, problem in self.problems.items()
        }
        return {"source": self.source, "problems": problems}

    def log(self) -> None:
        """Log the report once: a warning if there are errors, else an information."""
        if self.problems:
            level = logging.WARNING if self.has_errors else logging.INFO
            logger.log(level, "%s", self.summary())
