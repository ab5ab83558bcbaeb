"""Which of the input shapes that a graph takes an engine shall take."""

from __future__ import annotations

from dataclasses import dataclass

from deploykit.errors import UsageError
from deploykit.exporters.shape_request import ShapeRequest
from deploykit.spec import DimRange, InputSpec


@dataclass(frozen=True)
class ShapeChoice:
    """Shapes of an engine; ``None`` stands for all that the graph takes.

    Args:
        height: Heights in pixels.
        width: Widths in pixels.
        batch: Batch sizes.
    """

    height: DimRange | None = None
    width: DimRange | None = None
    batch: DimRange | None = None

    @classmethod
    def parse(
        cls, shape: str | None = None, dynamic: str | None = None, batch: str | None = None
    ) -> ShapeChoice:
        """Read the shapes of a command line, as ``ShapeRequest.parse`` does.

        Raises:
            UsageError: They make no sense.
        """
        request = ShapeRequest.parse(shape, dynamic, batch or "1")
        return cls(request.height, request.width, request.batch if batch else None)

    def apply(self, spec: InputSpec, source: str) -> InputSpec:
        """Return the input of the engine.

        Args:
            spec: The input of the graph.
            source: Where the graph comes from, for messages.

        Raises:
            UsageError: The graph does not take the shapes.
        """
        request = ShapeRequest(
            self.height or spec.height, self.width or spec.width, self.batch or spec.batch
        )
        asked = request.apply(spec)
        for name in ("batch", "height", "width"):
            wanted: DimRange = getattr(asked, name)
            taken: DimRange = getattr(spec, name)
            if wanted.min < taken.min or wanted.max > taken.max:
                raise UsageError(
                    f"{source} takes a {name} of {taken}, not {wanted}; choose from that, or give "
                    "the checkpoint in its place"
                )
        return asked
