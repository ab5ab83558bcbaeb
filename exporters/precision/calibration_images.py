"""Images to measure value ranges on, as inputs of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from deploykit.errors import UsageError
from deploykit.exporters.parity_images import Image, choose_images, dataset_images
from deploykit.exporters.precision.activation_ranges import Feeds
from deploykit.exporters.precision.options import PrecisionOptions
from deploykit.image_selection import select_images
from deploykit.proposals import stand_in_proposals
from deploykit.runtimes.preprocess import Preprocessor
from deploykit.runtimes.proposals import with_proposals
from deploykit.runtimes.sources import load_image
from deploykit.spec import InputSpec


def calibration_images(
    options: PrecisionOptions, config: Mapping[str, Any]
) -> tuple[list[Image], str]:
    """Choose images to measure ranges on.

    Args:
        options: What the user asked for.
        config: The model's config, whose training images are the second choice.

    Returns:
        The images, evenly spread over what there is, and in words where they come from; none for
        fp32.

    Raises:
        MediaError: A named file or folder is missing, or there is no image in it.
        UsageError: int8 is asked for and there are no real images.
    """
    if options.precision == "fp32":
        return [], "none"
    if not options.images:
        paths = dataset_images(config, ("train_dataloader",))
        if paths:
            chosen: list[Image] = list(select_images(paths, options.max_images))
            return chosen, f"{len(chosen)} of {len(paths)} images of the training set"
    images, source = choose_images(options.images, config, options.max_images)
    if options.precision == "int8" and not isinstance(images[0], Path):
        raise UsageError(
            "int8 needs images like those that will be detected in, and neither the training nor "
            "the validation set of the config is on disk; name some with --calibration-images"
        )
    return images, source


def graph_inputs(images: Sequence[Image], spec: InputSpec) -> list[Feeds]:
    """Prepare images as inputs of an exported graph.

    Args:
        images: Paths or BGR arrays.
        spec: The input of the graph; one that takes several images at a time gets several.
    """
    preprocess = Preprocessor(spec)
    rows = spec.batch.min
    feeds: list[Feeds] = []
    for start in range(0, len(images), rows):
        group = list(islice(cycle([*images[start : start + rows], *images]), rows))
        loaded = [load_image(image) for image in group]
        prepared = with_proposals(preprocess(loaded), *stand_in_proposals(spec, loaded), spec=spec)
        given: dict[str, Any] = {
            "images": prepared.images,
            "image_sizes": prepared.image_sizes,
            "proposals": prepared.proposals,
        }
        feeds.append({name: given[name] for name in spec.names})
    return feeds
