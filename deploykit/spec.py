"""``ModelSpec``: how an artefact describes itself.

The same JSON travels in a checkpoint's ``meta["deploykit"]``, in an ONNX file's
``metadata_props["deploykit"]`` and beside or inside an engine, so that whoever loads the artefact
knows its classes, its input and its outputs without the config it came from.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from deploykit.errors import SpecError

SPEC_VERSION = 1
METADATA_KEY = "deploykit"


@dataclass(frozen=True)
class DimRange:
    """The sizes that one axis of the input may take; static when all three are equal.

    Args:
        min: Smallest size.
        opt: Size that the artefact is optimised and measured for.
        max: Largest size.
    """

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise SpecError(
                f"a dimension range must satisfy 1 <= min <= opt <= max, got "
                f"{self.min}:{self.opt}:{self.max}"
            )

    @classmethod
    def fixed(cls, size: int) -> DimRange:
        """Return the range that holds ``size`` alone."""
        return cls(size, size, size)

    @property
    def is_static(self) -> bool:
        """Whether the range holds one size."""
        return self.min == self.max

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and self.min <= size <= self.max

    def __str__(self) -> str:
        return str(self.opt) if self.is_static else f"{self.min}:{self.opt}:{self.max}"


@dataclass(frozen=True)
class InputSpec:
    """What the host has to do with an image, and which shapes the artefact takes.

    The network input is uint8 ``[batch, height, width, 3]`` in RGB; mean, standard deviation and
    the network's own channel order are applied inside the graph. Sizes are in pixels.

    Args:
        batch: Batch sizes the artefact takes.
        height: Heights the artefact takes (multiples of ``divisor``).
        width: Widths the artefact takes (multiples of ``divisor``).
        resize: ``"keep_ratio"`` scales the image to fit ``scale``; ``"stretch"`` resizes it to
            exactly ``scale``; ``"none"`` leaves it.
        scale: (width, height) that the resize aims at. For ``"keep_ratio"`` the larger number
            bounds the long edge and the smaller one the short edge, whatever the orientation.
        interpolation: OpenCV interpolation of the resize.
        pad_size: (height, width) that every image is padded to at the bottom and right, or ``None``
            to pad to the next multiple of ``divisor``.
        pad_value: Padding value in RGB, 0..255.
        divisor: What height and width must be multiples of.
        image_sizes_input: Whether the graph has a second input ``image_sizes`` int32 [batch, 2]
            with (height, width) of the unpadded image (for models that pad after normalising or
            that clip boxes to the unpadded image).
        proposals: P where the graph's last input is ``proposals`` float32 [batch, P, 4]: xyxy in
            pixels of the network input, rows without area are empty. 0 where there is none.
    """

    batch: DimRange
    height: DimRange
    width: DimRange
    resize: Literal["keep_ratio", "stretch", "none"] = "keep_ratio"
    scale: tuple[int, int] = (640, 640)
    interpolation: Literal["nearest", "bilinear", "bicubic", "area", "lanczos"] = "bilinear"
    pad_size: tuple[int, int] | None = None
    pad_value: tuple[int, int, int] = (114, 114, 114)
    divisor: int = 32
    image_sizes_input: bool = False
    proposals: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the graph's inputs, in order."""
        sizes = ("image_sizes",) if self.image_sizes_input else ()
        return ("images", *sizes, *(("proposals",) if self.proposals else ()))

    @property
    def is_static(self) -> bool:
        """Whether batch, height and width are all fixed."""
        return self.batch.is_static and self.height.is_static and self.width.is_static


@dataclass(frozen=True)
class OutputSpec:
    """The fixed-shape outputs of ``predict``.

    Args:
        names: Output names in order: ``boxes`` f32 [B,K,4] (xyxy, pixels of the network input),
            ``scores`` f32 [B,K], ``labels`` int32 [B,K] (-1 in empty rows), ``num_dets`` int32 [B]
            and, for instance segmentation, ``masks`` f32 [B,K,h,w] (logits in the frame of each
            box).
        max_per_img: K, the number of rows per image.
    """

    names: tuple[str, ...] = ("boxes", "scores", "labels", "num_dets")
    max_per_img: int = 100


@dataclass(frozen=True)
class ModelSpec:
    """Everything a runtime needs to know about an artefact.

    Args:
        architecture: Detector type, e.g. ``"RTMDet"``.
        classes: Class names; the label of a detection indexes them.
        palette: One RGB colour per class, or empty.
        input: The network input and the host's part in preparing it.
        output: The outputs of ``predict``.
        score_threshold: Score below which ``Detector`` drops detections unless told otherwise.
        precision: ``"fp32"``, ``"fp16"``, ``"int8"``...
        lowering: How the operators of the seam were exported: ``"eager"`` (a checkpoint),
            ``"standard"``, ``"plugin"`` or ``"primitive"``.
        lowering_limits: How far those operators are exact; empty if they always are, which is so in
            a checkpoint and in ``"standard"``. With ``"plugin"`` it is about the functions that an
            engine without the plugins runs. ``nms_candidates``: suppression looks at so many of the
            best candidates; ``nms_steps``: chains of up to so many suppressions among neighbours in
            rank are followed; ``nms_unresolved_at_most``: how many candidates may be decided
            wrongly where a chain is longer; ``nms_pre``: candidates per feature level, where the
            config asks for more.
        checkpoint_sha256: Hash of the checkpoint file an exported artefact was made from.
        config_sha256: Hash of the resolved config text.
        versions: Package versions that wrote the artefact.
        parity: The parity record of the conversion, once measured (see ``deploykit.parity``).
        version: Version of this JSON layout.
    """

    architecture: str
    classes: tuple[str, ...]
    input: InputSpec
    output: OutputSpec = field(default_factory=OutputSpec)
    palette: tuple[tuple[int, int, int], ...] = ()
    score_threshold: float = 0.3
    precision: str = "fp32"
    lowering: str = "eager"
    lowering_limits: dict[str, int] = field(default_factory=dict)
    checkpoint_sha256: str = ""
    config_sha256: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    parity: dict[str, Any] | None = None
    version: int = SPEC_VERSION

    def to_json(self, indent: int | None = None) -> str:
        """Return the spec as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=indent, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, source: str = "the artefact") -> ModelSpec:
        """Read a spec back from JSON text.

        Args:
            text: What ``to_json`` wrote.
            source: Where the text came from, for messages.

        Raises:
            SpecError: The text is not a spec, or a newer deploykit wrote it.
        """
        try:
            data = json.loads(text)
            version = int(data["version"])
        except (ValueError, TypeError, KeyError) as error:
            raise SpecError(f"{source} holds a model spec that cannot be read: {error!r}") from None
        if version > SPEC_VERSION:
            raise SpecError(
                f"{source} was written with model spec version {version}; this deploykit reads "
                f"versions up to {SPEC_VERSION}. Upgrade deploykit."
            )
        try:
            inputs = dict(data["input"])
            for axis in ("batch", "height", "width"):
                inputs[axis] = DimRange(**inputs[axis])
            for key in ("scale", "pad_size", "pad_value"):
                inputs[key] = None if inputs[key] is None else tuple(inputs[key])
            output = dict(data["output"])
            output["names"] = tuple(output["names"])
            data = dict(data) | {
                "input": InputSpec(**inputs),
                "output": OutputSpec(**output),
                "classes": tuple(data["classes"]),
                "palette": tuple((int(r), int(g), int(b)) for r, g, b in data["palette"]),
            }
            return cls(**data)
        except (TypeError, KeyError, ValueError) as error:
            raise SpecError(f"{source} holds an incomplete model spec: {error!r}") from None
