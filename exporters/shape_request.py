"""Which input shapes an export is asked for, and what they mean for the input spec."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from deploykit.errors import UsageError
from deploykit.input_size import parse_input_size
from deploykit.spec import DimRange, InputSpec


@dataclass(frozen=True)
class ShapeRequest:
    """The input shapes that an artefact shall take, in pixels.

    Args:
        height: Heights; with ``None`` for both axes the fixed size that the test pipeline pads to,
            or where it pads to none, every size up to the longest edge that it produces.
        width: Widths.
        batch: Batch sizes.
    """

    height: DimRange | None = None
    width: DimRange | None = None
    batch: DimRange = field(default_factory=lambda: DimRange.fixed(1))

    @classmethod
    def parse(
        cls, shape: str | None = None, dynamic: str | None = None, batch: str = "1"
    ) -> ShapeRequest:
        """Read the shapes of a command line.

        Args:
            shape: A static size, ``"HEIGHTxWIDTH"``.
            dynamic: A range of sizes, ``"HxW:HxW:HxW"`` (smallest, optimal, largest).
            batch: A batch size, or ``"MIN:OPT:MAX"``.

        Raises:
            UsageError: The text is not a shape, both forms are given, or min <= opt <= max is
                violated.
        """
        if shape is not None and dynamic is not None:
            raise UsageError("give --shape or --dynamic, not both")
        batches = _parse_batch(batch)
        if shape is not None:
            height, width = _parse_size("--shape", shape)
            return cls(DimRange.fixed(height), DimRange.fixed(width), batches)
        if dynamic is None:
            return cls(batch=batches)
        sizes = [_parse_size("--dynamic", part) for part in dynamic.split(":")]
        if len(sizes) != 3:
            raise UsageError(
                "--dynamic needs three sizes MIN:OPT:MAX, such as 320x320:640x640:1280x1280, got "
                f"'{dynamic}'"
            )
        heights, widths = zip(*sizes, strict=True)
        return cls(
            _range("the heights of --dynamic", heights),
            _range("the widths of --dynamic", widths),
            batches,
        )

    def apply(self, spec: InputSpec) -> InputSpec:
        """Return the input spec of an artefact with these shapes.

        Images are prepared as the test pipeline prepares them wherever the artefact takes what
        comes out. Otherwise they are fitted into the optimal size.

        Args:
            spec: The input spec of the checkpoint.

        Raises:
            UsageError: A size is not a multiple of the divisor, or larger than the model takes, or
                a batch size is.
        """
        height, width = self._sizes(spec)
        _check_axis("height", height, spec.height, spec.divisor)
        _check_axis("width", width, spec.width, spec.divisor)
        if self.batch.max > spec.batch.max:
            raise UsageError(f"the model takes batches of 1 to {spec.batch.max}, got {self.batch}")
        result = replace(spec, batch=self.batch, height=height, width=width)
        optimum = (height.opt, width.opt)
        if not _takes_pipeline(spec, height, width):
            result = replace(result, scale=optimum[::-1])
            if spec.pad_size is not None:
                result = replace(result, pad_size=optimum)
        return replace(result, pad_size=optimum) if _is_static(height, width) else result

    def _sizes(self, spec: InputSpec) -> tuple[DimRange, DimRange]:
        if self.height is not None and self.width is not None:
            return self.height, self.width
        if spec.pad_size is not None:
            return DimRange.fixed(spec.pad_size[0]), DimRange.fixed(spec.pad_size[1])
        if spec.resize == "stretch":
            return DimRange.fixed(spec.height.opt), DimRange.fixed(spec.width.opt)
        longest = max(spec.height.opt, spec.width.opt)  # a portrait is as high as others are wide
        return replace(spec.height, max=longest), replace(spec.width, max=longest)


def _is_static(height: DimRange, width: DimRange) -> bool:
    return height.is_static and width.is_static


def _takes_pipeline(spec: InputSpec, height: DimRange, width: DimRange) -> bool:
    """Return whether everything that the test pipeline produces fits into the sizes."""
    usual = (spec.height.opt, spec.width.opt)
    if spec.pad_size is not None or spec.resize == "stretch" or _is_static(height, width):
        return usual[0] in height and usual[1] in width
    return min(height.max, width.max) >= max(usual)


def _check_axis(name: str, sizes: DimRange, allowed: DimRange, divisor: int) -> None:
    for size in (sizes.min, sizes.opt, sizes.max):
        if size % divisor:
            below = size // divisor * divisor
            choice = f"{below} or {below + divisor}" if below else f"{divisor}"
            raise UsageError(
                f"the input {name} must be a multiple of {divisor}, got {size}; try {choice}"
            )
    if sizes.max > allowed.max:
        raise UsageError(
            f"the model takes an input {name} of at most {allowed.max}, got {sizes.max}"
        )


def _parse_size(option: str, text: str) -> tuple[int, int]:
    try:
        return parse_input_size(text)
    except UsageError as error:
        raise UsageError(f"{option}: {error}") from None


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
