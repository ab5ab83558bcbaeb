"""Which input shapes an export is asked for, and what they mean for the input spec."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from deploykit.errors import UsageError
from deploykit.spec import DimRange, InputSpec

_SIZE = re.compile(r"(\d+)x(\d+)", re.IGNORECASE)
Size = tuple[int, int]


@dataclass(frozen=True)
class ShapeRequest:
    """The input shapes that an artefact shall take, in pixels.

    Args:
        height: Heights.
        width: Widths.
        batch: Batch sizes.
    """

    height: DimRange
    width: DimRange
    batch: DimRange = field(default_factory=lambda: DimRange.fixed(1))

    @property
    def is_static(self) -> bool:
        """Whether there is one shape only."""
        return self.height.is_static and self.width.is_static and self.batch.is_static

    @property
    def sizes(self) -> tuple[Size, Size, Size]:
        """The smallest, optimal and largest (height, width)."""
        height, width = self.height, self.width
        return (height.min, width.min), (height.opt, width.opt), (height.max, width.max)

    def __str__(self) -> str:
        size = ":".join(dict.fromkeys(f"{height}x{width}" for height, width in self.sizes))
        return f"{size}, batch {self.batch}"

    def apply(self, spec: InputSpec) -> InputSpec:
        """Return the input spec of an artefact with these shapes.

        The optimal size becomes the size that images are resized and padded to, except where the
        test pipeline's own size gives the same shape: then its exact numbers stay, so that images
        are prepared as they were in training.

        Args:
            spec: The input spec of the checkpoint.

        Raises:
            UsageError: A size is not a multiple of the divisor, or a batch size is out of range.
        """
        self._check(spec)
        height, width = self.height.opt, self.width.opt
        unchanged = (height, width) == (spec.height.opt, spec.width.opt)
        static = self.height.is_static and self.width.is_static
        return replace(
            spec,
            batch=self.batch,
            height=self.height,
            width=self.width,
            scale=spec.scale if unchanged else (width, height),
            pad_size=(height, width) if static or spec.pad_size is not None else None,
        )

    def _check(self, spec: InputSpec) -> None:
        axes = (("height", self.height, spec.height), ("width", self.width, spec.width))
        for axis, sizes, allowed in axes:
            for size in (sizes.min, sizes.opt, sizes.max):
                if size % spec.divisor:
                    below = max(size // spec.divisor, 1) * spec.divisor
                    raise UsageError(
                        f"the input {axis} must be a multiple of {spec.divisor}, got {size}; "
                        f"try {below} or {below + spec.divisor}"
                    )
            if sizes.max > allowed.max:
                raise UsageError(
                    f"the model takes an input {axis} of at most {allowed.max}, got {sizes.max}"
                )
        if self.batch.max > spec.batch.max:
            raise UsageError(f"the batch must be between 1 and {spec.batch.max}, got {self.batch}")


def parse_shape_request(
    spec: InputSpec, shape: str | None = None, dynamic: str | None = None, batch: str = "1"
) -> ShapeRequest:
    """Read the shapes of a command line.

    Args:
        spec: The input spec of the checkpoint, for what is not given: the fixed size that the test
            pipeline pads to; else every size up to the largest that the pipeline can produce.
        shape: A static size, ``"HEIGHTxWIDTH"``.
        dynamic: A range of sizes, ``"HxW:HxW:HxW"`` (smallest, optimal, largest).
        batch: A batch size, or ``"MIN:OPT:MAX"``.

    Raises:
        UsageError: The text is not a shape, both forms are given, or min <= opt <= max is violated.
    """
    if shape is not None and dynamic is not None:
        raise UsageError("give --shape or --dynamic, not both")
    batches = _parse_batch(batch)
    if shape is not None:
        height, width = _parse_size("--shape", shape)
        return ShapeRequest(DimRange.fixed(height), DimRange.fixed(width), batches)
    if dynamic is not None:
        sizes = [_parse_size("--dynamic", part) for part in dynamic.split(":")]
        if len(sizes) != 3:
            raise UsageError(
                f"--dynamic must be three sizes MIN:OPT:MAX, such as "
                f"320x320:640x640:1280x1280, got '{dynamic}'"
            )
        heights, widths = zip(*sizes, strict=True)
        return ShapeRequest(
            _range("--dynamic heights", heights), _range("--dynamic widths", widths), batches
        )
    if spec.pad_size is not None:
        height, width = spec.pad_size
        return ShapeRequest(DimRange.fixed(height), DimRange.fixed(width), batches)
    longest = max(spec.height.opt, spec.width.opt)  # a portrait is as high as a landscape is wide
    return ShapeRequest(
        replace(spec.height, max=longest), replace(spec.width, max=longest), batches
    )


def _parse_size(option: str, text: str) -> Size:
    match = _SIZE.fullmatch(text.strip())
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if 0 in size:
        raise UsageError(f"{option} needs HEIGHTxWIDTH in pixels, such as 640x640, got '{text}'")
    return size


def _parse_batch(text: str) -> DimRange:
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"--batch needs a number or MIN:OPT:MAX, such as 1:4:16, got '{text}'")
    sizes = [int(part) for part in parts]
    return _range("--batch", sizes if len(sizes) == 3 else sizes * 3)


def _range(name: str, sizes: tuple[int, ...] | list[int]) -> DimRange:
    smallest, optimal, largest = sizes
    if not 1 <= smallest <= optimal <= largest:
        raise UsageError(
            f"{name} must satisfy 1 <= min <= opt <= max, got {smallest}:{optimal}:{largest}"
        )
    return DimRange(smallest, optimal, largest)
