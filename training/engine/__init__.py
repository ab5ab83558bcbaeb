"""The trainer: loop, hooks, optimizers, schedulers, averaged weights, checkpoints and logs.

Importing this package registers its hooks and schedulers.
"""

from deploykit.training.engine.build import RunOptions, build_trainer, default_work_dir
from deploykit.training.engine.checkpoint_hook import CheckpointHook
from deploykit.training.engine.ema import EMAHook
from deploykit.training.engine.hook import Hook
from deploykit.training.engine.logger_hook import LoggerHook
from deploykit.training.engine.optim_wrapper import OptimWrapper, build_optim_wrapper
from deploykit.training.engine.optimizer import build_optimizer
from deploykit.training.engine.run_log import RunLog
from deploykit.training.engine.schedule import TrainSchedule
from deploykit.training.engine.schedulers import ParamScheduler, build_schedulers
from deploykit.training.engine.standard_hooks import (
    EarlyStoppingHook,
    ParamSchedulerHook,
    PipelineSwitchHook,
)
from deploykit.training.engine.trainer import Trainer
from deploykit.training.engine.validation import Validator

__all__ = [
    "CheckpointHook",
    "EMAHook",
    "EarlyStoppingHook",
    "Hook",
    "LoggerHook",
    "OptimWrapper",
    "ParamScheduler",
    "ParamSchedulerHook",
    "PipelineSwitchHook",
    "RunLog",
    "RunOptions",
    "TrainSchedule",
    "Trainer",
    "Validator",
    "build_optim_wrapper",
    "build_optimizer",
    "build_schedulers",
    "build_trainer",
    "default_work_dir",
]
