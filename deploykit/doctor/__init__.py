"""What is installed, what really works, and what to do about the rest."""

from deploykit.doctor.examination import Finding, Status, examine

__all__ = ["Finding", "Status", "examine"]
