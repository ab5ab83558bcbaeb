"""Logging and checkpoints."""

default_scope = "mmdet"
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=50),
    checkpoint=dict(type="CheckpointHook", interval=1),
)
load_from = None
resume = False
