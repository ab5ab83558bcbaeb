from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import ConfigError
from deploykit.training.engine.optim_wrapper import OptimWrapper, build_optim_wrapper

CPU = torch.device("cpu")


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1))


def make_data(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, 4, generator=generator) for _ in range(count)]


def wrap(model: nn.Module, **options: object) -> OptimWrapper:
    config = dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9), **options)
    return build_optim_wrapper(model, config, CPU)


def descend(wrapper: OptimWrapper, model: nn.Module, data: list[Tensor]) -> None:
    for batch in data:
        with wrapper.autocast():
            loss = model(batch).square().mean()
        wrapper.backward(loss)
        wrapper.step()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("counts", [1, 2, 3, 4, 7, 20])
def test_accumulation_averages_gradients(counts: int) -> None:
    """Each step takes the mean gradient of its iterations; the last one of those that are left."""
    data = make_data(10)
    model = make_model()
    wrapper = wrap(model, accumulative_counts=counts)
    wrapper.start(0, len(data))
    descend(wrapper, model, data)

    reference = make_model()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for start in range(0, len(data), counts):
        group = data[start : start + counts]
        optimizer.zero_grad()
        torch.stack([reference(batch).square().mean() for batch in group]).mean().backward()
        optimizer.step()
    torch.testing.assert_close(weights(model), weights(reference))


@pytest.mark.parametrize("stop", range(1, 7))
def test_state_holds_gradients_that_are_not_used_yet(stop: int) -> None:
    data = make_data(8)
    model = make_model()
    wrapper = wrap(model, accumulative_counts=3)
    wrapper.start(0, len(data))
    descend(wrapper, model, data[:stop])
    state = copy.deepcopy(wrapper.state_dict())
    saved = copy.deepcopy(model.state_dict())
    descend(wrapper, model, data[stop:])

    again = make_model()
    again.load_state_dict(saved)
    resumed = wrap(again, accumulative_counts=3)
    resumed.load_state_dict(state)
    resumed.start(stop, len(data))
    descend(resumed, again, data[stop:])
    assert torch.equal(weights(again), weights(model))


def test_clipping_by_norm_and_the_norm_before_it() -> None:
    model = make_model()
    wrapper = wrap(model, clip_grad=dict(max_norm=0.01, norm_type=2))
    wrapper.start(0, 10)
    model(make_data(1)[0]).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    before = weights(model)
    assert wrapper.grad_norm is None
    wrapper.step()
    assert wrapper.grad_norm is not None
    assert wrapper.grad_norm.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (weights(model) - before).norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_clipping_by_value() -> None:
    model = make_model()
    wrapper = wrap(model, clip_grad=dict(type="value", clip_value=0.001))
    wrapper.start(0, 10)
    model(make_data(1)[0]).sum().backward()
    before = weights(model)
    wrapper.step()
    assert (weights(model) - before).abs().max().item() == pytest.approx(0.1 * 0.001, rel=1e-3)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights() -> None:
    model = make_model()
    config = dict(type="AmpOptimWrapper", optimizer=dict(type="SGD", lr=0.1))
    wrapper = build_optim_wrapper(model, config, CPU)
    assert wrapper.dtype == torch.bfloat16
    assert not wrapper.skips_overflow
    with wrapper.autocast():
        assert model(make_data(1)[0]).dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_named_precision(name: str, dtype: torch.dtype) -> None:
    config = dict(type="AmpOptimWrapper", dtype=name, optimizer=dict(type="SGD", lr=0.1))
    wrapper = build_optim_wrapper(make_model(), config, CPU)
    with wrapper.autocast():
        assert make_model()(make_data(1)[0]).dtype == dtype


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(), "'optimizer'"),
        (dict(a=dict(optimizer={}), b=dict(optimizer={})), "several optimizers"),
        (dict(type="ApexOptimWrapper"), "ApexOptimWrapper"),
        (dict(constructor="LearningRateDecayOptimizerConstructor"), "constructor"),
        (dict(accumulative_counts=0), "accumulative_counts"),
        (dict(clip_gard=dict(max_norm=1)), "no option 'clip_gard'"),
        (dict(clip_grad=dict(max_norm=0)), "positive"),
        (dict(clip_grad=dict(norm_type=2)), "max_norm"),
        (dict(clip_grad=dict(type="value", max_norm=1)), "clip_value"),
        (dict(clip_grad=dict(type="quantile")), "'norm' or 'value'"),
        (dict(dtype="bfloat16"), "no option 'dtype'"),
        (dict(type="AmpOptimWrapper", dtype="int8"), "unknown dtype"),
        (dict(type="AmpOptimWrapper", dtype="float16"), "needs a GPU"),
        (dict(type="AmpOptimWrapper", loss_scale="static"), "loss_scale"),
    ],
)
def test_bad_configs(config: dict, message: str) -> None:
    if "a" not in config and config:
        config = dict(optimizer=dict(type="SGD", lr=0.1), **config)
    with pytest.raises(ConfigError, match=message):
        build_optim_wrapper(make_model(), config, CPU)
