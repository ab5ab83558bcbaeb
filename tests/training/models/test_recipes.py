from __future__ import annotations

import hashlib

import pytest
import torch

from deploykit.training.models import build_detector

# sha256[:16] of the sorted lines "key shape" of the state dict that MMDetection 3.3.0 builds from
# rtmdet_*_8xb32-300e_coco.py, the number of keys, and the number of parameters.
LAYOUTS = {
    "rtmdet_tiny": ("5f6a8fff8ec39ca9", 476, 4_896_168),
    "rtmdet_s": ("9620fa9f22b09b1b", 512, 8_886_924),
    "rtmdet_m": ("86a2a9b39f8f9306", 692, 24_709_188),
    "rtmdet_l": ("ca3a3fe94534dc8e", 872, 52_315_804),
    "rtmdet_x": ("3b3a19ff707abc51", 1052, 94_855_572),
}
P6_LAYOUT = ("98f17dd0e451e80f", 1376, 152_528_936)


def layout(model_config) -> tuple[str, int, int]:
    with torch.device("meta"):
        model = build_detector(model_config)
    state = model.state_dict()
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in state.items())
    # Sorting by key and by line differ where one key is a prefix of another.
    lines.sort(key=lambda line: line.split(" ")[0])
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return digest, len(state), sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", LAYOUTS)
def test_state_dict_layout_is_that_of_mmdetection(recipe, name):
    assert layout(recipe(name)["model"]) == LAYOUTS[name]


def test_p6_variant_of_the_largest_model(recipe):
    model = recipe("rtmdet_x")["model"]
    model["backbone"] |= {"arch": "P6", "out_indices": (2, 3, 4, 5)}
    model["neck"]["in_channels"] = [320, 640, 960, 1280]
    model["bbox_head"]["anchor_generator"]["strides"] = [8, 16, 32, 64]
    assert layout(model) == P6_LAYOUT


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_schedule(recipe, name):
    config = recipe(name)
    assert config["train_cfg"]["max_epochs"] == 300
    assert config["train_dataloader"]["batch_size"] == 32
    assert config["optim_wrapper"]["optimizer"] == {
        "type": "AdamW",
        "lr": 0.004,
        "weight_decay": 0.05,
    }
    warmup, cosine = config["param_scheduler"]
    assert (warmup["type"], warmup["start_factor"], warmup["end"]) == ("LinearLR", 1e-5, 1000)
    assert (cosine["begin"], cosine["end"], cosine["T_max"]) == (150, 300, 150)
    assert cosine["eta_min"] == pytest.approx(0.0002)
    average, switch = config["custom_hooks"]
    assert (average["ema_type"], average["momentum"]) == ("ExpMomentumEMA", 0.0002)
    assert switch["switch_epoch"] == 280


@pytest.mark.parametrize(
    ("name", "low", "cached_mosaic", "cached_mixup"),
    [("rtmdet_tiny", 0.5, 20, 10), ("rtmdet_s", 0.5, None, 20), ("rtmdet_l", 0.1, None, 20)],
)
def test_published_augmentation(recipe, name, low, cached_mosaic, cached_mixup):
    config = recipe(name)
    pipeline = config["train_dataloader"]["dataset"]["pipeline"]
    steps = {step["type"]: step for step in pipeline}
    assert list(steps) == [
        "LoadImageFromFile",
        "LoadAnnotations",
        "CachedMosaic",
        "RandomResize",
        "RandomCrop",
        "YOLOXHSVRandomAug",
        "RandomFlip",
        "Pad",
        "CachedMixUp",
        "PackDetInputs",
    ]
    assert steps["RandomResize"]["ratio_range"] == (low, 2.0)
    assert steps["CachedMosaic"].get("max_cached_images") == cached_mosaic
    assert steps["CachedMixUp"]["max_cached_images"] == cached_mixup
    second_stage = [step["type"] for step in config["custom_hooks"][1]["switch_pipeline"]]
    assert second_stage == [name for name in steps if not name.startswith("Cached")]
