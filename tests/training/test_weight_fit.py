from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from deploykit.errors import CheckpointError
from deploykit.training.weight_fit import load_weights, weight_fit


def block() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))


def model(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    head = nn.ModuleDict({"cls": nn.Linear(4, classes), "reg": nn.Linear(4, 4)})
    return nn.ModuleDict({"backbone": nn.ModuleList([block(), block()]), "head": head})


def test_the_same_names_and_shapes_fit():
    fit = weight_fit(model(), model().state_dict())
    assert fit.exact and fit.fitting == len(model().state_dict()) == 18
    assert fit.summary() == ""


def test_modules_are_named_as_a_whole():
    weights = model().state_dict()
    kept = {k: v for k, v in weights.items() if not k.startswith("backbone.1.")}
    kept["neck.conv.weight"] = kept["neck.conv.bias"] = torch.ones(1)
    kept["head.reg.scale"] = torch.ones(1)
    del kept["head.cls.bias"]
    fit = weight_fit(model(), kept)
    # The counter of the batch norm is neither reported nor counted.
    assert fit.missing_groups == ("backbone.1.* (6)", "head.cls.bias")
    assert fit.unexpected_groups == ("head.reg.scale", "neck.* (2)")
    assert len(fit.missing) == 7 and len(fit.unexpected) == 3
    assert fit.summary() == (
        "7 missing (backbone.1.* (6), head.cls.bias); 3 unexpected (head.reg.scale, neck.* (2))"
    )


def test_every_missing_name_is_covered_by_exactly_one_group():
    names = list(model().state_dict())
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        keep = torch.rand(len(names), generator=generator) < 0.5
        weights = {
            name: value
            for flag, (name, value) in zip(keep, model().state_dict().items(), strict=True)
            if flag
        }
        fit = weight_fit(model(), weights)
        for name in fit.missing:
            covering = [
                group
                for group in fit.missing_groups
                if name == group or ("*" in group and name.startswith(group.split("*")[0]))
            ]
            assert len(covering) == 1, (name, fit.missing_groups)


def test_another_number_of_classes_is_refused_unless_asked_for(caplog):
    target, weights = model(5), model(3).state_dict()
    before = target["head"]["cls"].weight.clone()
    with pytest.raises(CheckpointError) as caught:
        load_weights(target, weights, "a.pth")
    assert str(caught.value).startswith(
        "a.pth does not fit the model of the config: 2 of another shape "
        "(head.cls.weight [3, 4] instead of [5, 4], head.cls.bias [3] instead of [5])"
    )
    with caplog.at_level(logging.WARNING):
        fit = load_weights(target, weights, "a.pth", allow_mismatch=True)
    assert fit.fitting == 16 and "head.cls.weight [3, 4] instead of [5, 4]" in caplog.text
    assert torch.equal(target["head"]["cls"].weight, before)
    assert torch.equal(target["backbone"][0][0].weight, weights["backbone.0.0.weight"])


def test_long_lists_are_cut():
    wrong = {f"x{number}.w": torch.ones(1) for number in range(9)}
    fit = weight_fit(model(), model().state_dict() | wrong)
    assert fit.summary() == "9 unexpected (x0.w, x1.w, x2.w, x3.w, x4.w, ...)"


def test_nothing_in_common():
    with pytest.raises(CheckpointError, match="none of its weights fits"):
        load_weights(model(), {"a": torch.ones(1)}, "a.pth", allow_mismatch=True)


def test_averages_of_mmdetection_2_are_left_out():
    weights = model().state_dict()
    averages = {f"ema_{name.replace('.', '_')}": value for name, value in weights.items()}
    assert weight_fit(model(), weights | averages).exact
