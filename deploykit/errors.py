"""The exceptions that deploykit raises for bad input and missing parts.

Every message says what was wrong, what was expected and what to do. The command line prints the
message alone, without a traceback, and exits with code 2.
"""

from __future__ import annotations


class DeploykitError(Exception):
    """Base class of every error a user can cause or mend."""


class UsageError(DeploykitError):
    """Arguments that do not make sense, alone or together."""


class ConfigError(DeploykitError):
    """A config file that cannot be read, resolved or built.

    Args:
        message: What is wrong, what was expected, what to do.
        filename: The config file, if known.
        line: 1-based line of the construct, if known.
        column: 1-based column of the construct, if known.
    """

    def __init__(
        self,
        message: str,
        filename: str | None = None,
        line: int | None = None,
        column: int | None = None,
    ) -> None:
        self.filename, self.line, self.column = filename, line, column
        place = ":".join(str(part) for part in (filename, line, column) if part is not None)
        super().__init__(f"{place}: {message}" if place else message)


class CheckpointError(DeploykitError):
    """A checkpoint that is damaged, unsafe to read, or does not fit the model."""


class SpecError(DeploykitError):
    """An artefact without a usable model spec, or one that a newer version wrote."""


class DatasetError(DeploykitError):
    """Annotations or a data set that cannot be used."""


class MediaError(DeploykitError):
    """An image or video that is missing, unreadable or of an unsupported kind."""


class TrainingError(DeploykitError):
    """Training cannot go on (for example a non-finite loss)."""


class ExportError(DeploykitError):
    """A model that could not be converted."""


class ParityError(DeploykitError):
    """A conversion whose result differs from its reference by more than the tolerance."""


class BackendError(DeploykitError):
    """An inference backend that is missing, refused an artefact, or failed while running."""


class DownloadError(DeploykitError):
    """A file that could not be fetched, or is not the one that was published."""


class MissingDependencyError(DeploykitError):
    """An optional package is not installed; the message names the extra that brings it."""
