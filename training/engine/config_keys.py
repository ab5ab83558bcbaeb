"""Keys of a config that the trainer does not act on, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Keys of MMEngine's runner without an effect on the result of a training run here.
_WITHOUT_EFFECT = {
    "visualizer": "images are drawn by 'deploykit detect'",
    "vis_backends": "JSONL, text and TensorBoard logs are always written",
    "log_processor": "losses are averaged over the interval of LoggerHook",
    "launcher": "torchrun is recognised by its environment variables",
    "tta_model": "test time augmentation is not applied",
    "tta_pipeline": "test time augmentation is not applied",
    "activation_checkpointing": "only saves memory",
    "experiment_name": "runs are named by their time",
    "efficient_conv_bn_eval": "only saves memory",
}
_ENVIRONMENT_WITHOUT_EFFECT = ("mp_cfg", "dist_cfg", "resource_limit")

# Hooks whose work the trainer does itself, or that only draw or measure.
BUILT_IN_HOOKS = {
    "RuntimeInfoHook": "built in",
    "IterTimerHook": "built in",
    "DistSamplerSeedHook": "built in",
    "CheckInvalidLossHook": "built in: every iteration is checked",
    "NumClassCheckHook": "built in: checked when the run is built",
    "SyncNormHook": "built in: BatchNorm's statistics are those of process 0",
    "SyncBuffersHook": "built in: BatchNorm's statistics are those of process 0",
    "DetVisualizationHook": "images are drawn by 'deploykit detect'",
    "GroundingVisualizationHook": "images are drawn by 'deploykit detect'",
    "TrackVisualizationHook": "images are drawn by 'deploykit detect'",
    "VisualizationHook": "images are drawn by 'deploykit detect'",
    "EmptyCacheHook": "only affects memory",
    "MemoryProfilerHook": "memory is part of the log",
    "ProfilerHook": "use --profile-iterations",
}


def ignored_settings(config: Mapping[str, Any]) -> list[str]:
    """Return what a config sets that has no meaning here, each with the reason.

    Args:
        config: The config.
    """
    ignored = [
        f"{key} ({reason})"
        for key, reason in _WITHOUT_EFFECT.items()
        if config.get(key) not in (None, "none", {}, [])
    ]
    environment = config.get("env_cfg") or {}
    ignored += [f"env_cfg.{key}" for key in _ENVIRONMENT_WITHOUT_EFFECT if environment.get(key)]
    entries = [*(config.get("default_hooks") or {}).values(), *(config.get("custom_hooks") or ())]
    for entry in entries:
        name = hook_type(entry)
        if name in BUILT_IN_HOOKS:
            ignored.append(f"{name} ({BUILT_IN_HOOKS[name]})")
    return ignored


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys in which two configs differ, leaving out where and how a run starts.

    Args:
        before: The config of a run.
        now: The config that the run is resumed with.
    """
    old, new = dict(_leaves(before)), dict(_leaves(now))
    keys = [key for key in (*old, *(new.keys() - old.keys())) if old.get(key) != new.get(key)]
    return [key for key in keys if key.split(".")[0] not in ("work_dir", "resume", "load_from")]


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _leaves(entry, f"{place}.{key}" if place else str(key))
    elif isinstance(value, (list, tuple)) and value:
        for index, entry in enumerate(value):
            yield from _leaves(entry, f"{place}.{index}")
    else:
        yield place, value


def hook_type(entry: object) -> str:
    """Return the type name of a hook's config, without its scope."""
    return str(entry.get("type", "")).split(".")[-1] if isinstance(entry, Mapping) else ""
