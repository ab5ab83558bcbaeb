"""Checkpoints of untrained detectors that nevertheless detect: for parity and timing offline.

With the weights that training begins with, every prediction looks alike. Here the statistics of the
norms are those of a photograph, and the last layers are scaled until their outputs spread as those
of a trained detector do: sure of some objects, unsure of more, with masks that have edges.

    python tests/support/detector_checkpoints.py retinanet_r50_fpn_1x_coco retinanet.pth --size 320

writes one for a recipe; ``--photos photos`` writes the crops of photographs that parity is measured
on, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch

from deploykit.proposals import grid_proposals
from deploykit.training.checkpoint import write_checkpoint
from deploykit.training.config import Config, load_config
from deploykit.training.data.coco_classes import COCO_CLASSES
from deploykit.training.model_spec import num_classes
from deploykit.training.models import BaseDetector, build_detector
from deploykit.training.recipes import find_config

Inputs = dict[str, torch.Tensor]  # arguments of predict

CHINA = Path(__file__).parents[1] / "data" / "china.jpg"
# (end of the module's name, wanted mean, wanted standard deviation) of the outputs of last layers,
# in the order in which they feed one another.
SPREADS = (
    ("rpn_cls", -1.0, 2.0),
    ("rpn_reg", 0.0, 0.2),
    ("retina_cls", -4.0, 1.0),
    ("retina_reg", 0.0, 0.2),
    ("atss_cls", -4.0, 1.0),
    ("atss_reg", 0.0, 0.5),
    ("atss_centerness", 0.0, 1.0),
    ("gfl_cls", -4.0, 1.0),
    ("gfl_reg", 0.0, 2.0),
    ("bbox_head.conv_cls", -4.0, 1.0),
    ("bbox_head.conv_reg", 3.0, 0.5),
    ("bbox_head.conv_centerness", 0.0, 1.0),
    ("bbox_head.fc_cls", 0.0, 2.0),
    ("bbox_head.fc_reg", 0.0, 0.5),
    *(
        (f"bbox_head.{stage}.{layer}", 0.0, spread)
        for stage in range(3)
        for layer, spread in (("fc_cls", 2.0), ("fc_reg", 0.5))
    ),
    *((f"mask_head{stage}.conv_logits", 0.0, 2.0) for stage in ("", ".0", ".1", ".2")),
)


def photographs() -> Iterator[tuple[str, np.ndarray]]:
    """Yield 24 crops of two photographs, of several shapes and scales, uint8 BGR.

    China by Kenny Louie (CC BY 2.0, see tests/data) and Grace Hopper by James S. Davis, U.S. Navy
    (public domain), which matplotlib ships.
    """
    hopper = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    for name, path, count in (("china", CHINA, 16), ("hopper", hopper, 8)):
        image = cv2.imread(str(path))
        random = np.random.default_rng(0)
        for number in range(count):
            height, width = (int(random.uniform(0.35, 1) * side) for side in image.shape[:2])
            top = int(random.integers(0, image.shape[0] - height + 1))
            left = int(random.integers(0, image.shape[1] - width + 1))
            crop = image[top : top + height, left : left + width]
            yield f"{name}-{number:02}", np.ascontiguousarray(crop)


def write_photographs(folder: Path) -> Path:
    """Write the photographs as PNG files; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in photographs():
        cv2.imwrite(str(folder / f"{name}.png"), image)
    return folder


def load_recipe(name: str, size: int) -> Config:
    """Return a recipe whose test pipeline fits images into ``size`` x ``size`` and pads them."""
    options: dict[str, Any] = {"model.backbone.init_cfg": None}
    config = load_config(find_config(name), options)
    for loader in ("val_dataloader", "test_dataloader"):
        pipeline = config[loader]["dataset"]["pipeline"]
        nested = [inner for step in pipeline for inner in step.get("transforms", ())]
        for step in (*pipeline, *nested):
            if step["type"] == "Resize":
                step["scale"] = (size, size)
    return config


def calibrated_detector(config: Config, size: int, seed: int = 0) -> BaseDetector:
    """Build the detector of a config with weights that detect something in photographs.

    Args:
        config: The config.
        size: Side of the square input that it is calibrated with, in pixels.
        seed: Of the random weights.
    """
    torch.manual_seed(seed)
    model = build_detector(config["model"])
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter)
    crops = [cv2.resize(image, (size, size)) for _, image in list(photographs())[:24:8]]
    inputs = {"images": torch.from_numpy(np.ascontiguousarray(np.stack(crops)[..., ::-1]))}
    if model.takes_proposals:
        proposals = torch.from_numpy(grid_proposals((size, size), 200))
        inputs["proposals"] = proposals.repeat(len(crops), 1, 1)
    model.eval()
    with torch.no_grad():
        _calibrate_norms(model, inputs)
        for suffix, mean, deviation in SPREADS:
            for name, layer in model.named_modules():
                if name.endswith(suffix):
                    _calibrate_layer(model, layer, inputs, mean, deviation)
    return model


def _calibrate_norms(model: BaseDetector, inputs: Inputs) -> None:
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = None  # the plain mean over all runs, of which there is one
        norm.reset_running_stats()
    model.predict(**inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


def _calibrate_layer(
    model: BaseDetector, layer: Any, inputs: Inputs, mean: float, deviation: float
) -> None:
    outputs: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, output: outputs.append(output))
    model.predict(**inputs)
    handle.remove()
    values = torch.cat([output.flatten() for output in outputs])
    layer.weight *= deviation / values.std()
    layer.bias.copy_(mean + (layer.bias - values.mean()) * deviation / values.std())


def write_detector_checkpoint(path: Path, config: Config, size: int) -> Path:
    """Write a checkpoint of ``calibrated_detector`` with the config and class names in it."""
    model = calibrated_detector(config, size)
    classes = COCO_CLASSES[: num_classes(config)]
    meta = {"cfg": config.dumps(), "dataset_meta": {"classes": classes}}
    write_checkpoint(path, {"meta": meta, "state_dict": model.state_dict()})
    return path


def main() -> None:
    """Write a checkpoint of a recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="name of a shipped recipe or a config file")
    parser.add_argument("out", type=Path, help="the .pth file to write")
    parser.add_argument("--size", type=int, default=320, help="side of the input in pixels (320)")
    parser.add_argument("--photos", type=Path, help="folder to write photographs to")
    arguments = parser.parse_args()
    if arguments.photos is not None:
        write_photographs(arguments.photos)
    config = load_recipe(arguments.recipe, arguments.size)
    write_detector_checkpoint(arguments.out, config, arguments.size)


if __name__ == "__main__":
    main()
