"""A tiny RTMDet and a drawn data set, small enough to train in seconds."""

from __future__ import annotations

import copy
import json
import multiprocessing
from collections.abc import Callable, Iterator
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from deploykit.training.config import Config
from deploykit.training.data.drawn_dataset import write_drawn_dataset
from deploykit.training.engine import Hook, RunLog, RunOptions, Trainer, build_trainer
from deploykit.training.registry import HOOKS

CLASSES = ("box", "ball")
PAD = dict(type="Pad", size=(64, 64), pad_val=dict(img=(114, 114, 114)))
TRAIN_PIPELINE = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="CachedMosaic", img_scale=(64, 64), pad_val=114.0, max_cached_images=6),
    dict(type="RandomResize", scale=(128, 128), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(64, 64)),
    dict(type="YOLOXHSVRandomAug"),
    dict(type="RandomFlip", prob=0.5),
    PAD,
    dict(type="CachedMixUp", img_scale=(64, 64), ratio_range=(1.0, 1.0), max_cached_images=5),
    dict(type="PackDetInputs"),
]
LAST_PIPELINE = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(64, 64), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    PAD,
    dict(type="PackDetInputs"),
]
TEST_PIPELINE = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(64, 64), keep_ratio=True),
    PAD,
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]


def model_config() -> dict[str, Any]:
    norm, act = dict(type="BN"), dict(type="SiLU", inplace=True)
    return dict(
        type="RTMDet",
        data_preprocessor=dict(
            type="DetDataPreprocessor",
            mean=[103.53, 116.28, 123.675],
            std=[57.375, 57.12, 58.395],
            bgr_to_rgb=False,
        ),
        backbone=dict(
            type="CSPNeXt",
            arch="P5",
            expand_ratio=0.5,
            deepen_factor=0.1,
            widen_factor=0.0625,
            channel_attention=True,
            norm_cfg=norm,
            act_cfg=act,
        ),
        neck=dict(
            type="CSPNeXtPAFPN",
            in_channels=[16, 32, 64],
            out_channels=16,
            num_csp_blocks=1,
            expand_ratio=0.5,
            norm_cfg=norm,
            act_cfg=act,
        ),
        bbox_head=dict(
            type="RTMDetSepBNHead",
            num_classes=len(CLASSES),
            in_channels=16,
            feat_channels=16,
            stacked_convs=1,
            share_conv=True,
            exp_on_reg=False,
            anchor_generator=dict(type="MlvlPointGenerator", offset=0, strides=[8, 16, 32]),
            bbox_coder=dict(type="DistancePointBBoxCoder"),
            loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
            loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
            norm_cfg=norm,
            act_cfg=act,
        ),
        train_cfg=dict(assigner=dict(type="DynamicSoftLabelAssigner", topk=13)),
        test_cfg=dict(
            nms_pre=1000, score_thr=0.001, nms=dict(type="nms", iou_threshold=0.65), max_per_img=50
        ),
    )


PROCESS = """
import multiprocessing, os, sys
from deploykit import cli

def main(arguments, environment):
    # Processes of the server would start their loader workers through it as well.
    multiprocessing.set_start_method("fork", force=True)
    os.environ.update(environment)
    sys.exit(cli.main(arguments))
"""

StartProcess = Callable[..., BaseProcess]


@pytest.fixture(scope="session")
def start_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartProcess]:
    """Return a function that runs ``deploykit`` in a process of its own.

    Processes are forked from a server that has imported torch, which saves the time to do so.
    """
    folder = tmp_path_factory.mktemp("process")
    (folder / "deploykit_process.py").write_text(PROCESS)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deploykit.training.engine"])

    def start(*arguments: object, **environment: object) -> BaseProcess:
        main = import_module("deploykit_process").main
        words = [str(argument) for argument in arguments]
        variables = {name: str(value) for name, value in environment.items()}
        process = context.Process(target=main, args=(words, variables))
        process.start()
        return process

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)  # processes inherit the path
        yield start


@pytest.fixture(scope="session")
def drawn_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a drawn data set: 12 training and 5 validation images."""
    folder = tmp_path_factory.mktemp("drawn")
    write_drawn_dataset(folder, CLASSES, counts=(12, 5), size=(60, 80), objects=(1, 4))
    return folder


@pytest.fixture(scope="session")
def make_config(drawn_data: Path) -> Callable[..., Config]:
    """Return a function that makes a config: RTMDet's recipe in miniature, plus changes."""

    def loader(split: str, **options: Any) -> dict[str, Any]:
        is_train = split == "train"
        return dict(
            batch_size=4,
            num_workers=0,
            sampler=dict(type="DefaultSampler", shuffle=is_train),
            dataset=dict(
                type="CocoDataset",
                data_root=f"{drawn_data}/",
                metainfo=dict(classes=CLASSES),
                ann_file=f"annotations/{split}.json",
                data_prefix=dict(img=f"{split}/"),
                test_mode=not is_train,
                pipeline=TRAIN_PIPELINE if is_train else TEST_PIPELINE,
            ),
            **options,
        )

    def make(epochs: int = 2, **changes: Any) -> Config:
        base = dict(
            model=model_config(),
            train_dataloader=loader("train"),
            val_dataloader=loader("val"),
            test_dataloader=loader("val"),
            val_evaluator=dict(type="CocoMetric", metric="bbox"),
            test_evaluator=dict(type="CocoMetric", metric="bbox"),
            train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=1),
            optim_wrapper=dict(
                type="OptimWrapper",
                optimizer=dict(type="AdamW", lr=0.002, weight_decay=0.05),
                paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0, bypass_duplicate=True),
            ),
            param_scheduler=[
                dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=4),
                dict(
                    type="CosineAnnealingLR",
                    eta_min=0.0001,
                    begin=epochs // 2,
                    end=epochs,
                    by_epoch=True,
                    convert_to_iter_based=True,
                ),
            ],
            default_hooks=dict(
                logger=dict(type="LoggerHook", interval=1),
                checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=2),
            ),
            custom_hooks=[
                dict(
                    type="EMAHook",
                    ema_type="ExpMomentumEMA",
                    momentum=0.1,
                    gamma=5,
                    update_buffers=True,
                    priority=49,
                ),
                dict(
                    type="PipelineSwitchHook",
                    switch_epoch=max(1, epochs - 2),
                    switch_pipeline=LAST_PIPELINE,
                ),
            ],
            randomness=dict(seed=3),
        )
        return Config(copy.deepcopy(base | changes), "tiny.py")

    return make


class Run:
    """A finished run."""

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self.trainer = trainer
        self.folder = folder
        self.metrics = trainer.metrics
        self.rows = [json.loads(line) for line in (folder / "log/scalars.jsonl").open()]
        self.text = (folder / "log/train.log").read_text()


@pytest.fixture(scope="session")
def train() -> Callable[..., Run]:
    """Return ``train(config, folder, **options)``, which trains on the CPU in this process."""

    def run(config: Config, folder: Path, **options: Any) -> Run:
        with RunLog(folder / "log") as log:
            options = {"device": "cpu"} | options
            trainer = build_trainer(config, RunOptions(folder, **options), log)
            trainer.train()
        return Run(trainer, folder)

    return run


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch uses one thread, so that results do not depend on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@HOOKS.register()
class PoisonHook(Hook):
    """Makes the network return nonsense from an iteration on."""

    def __init__(self, iteration: int, where: str) -> None:
        self.iteration, self.where = iteration, where

    def before_train_iter(self, trainer: Trainer, batch_idx: int, data_batch: Any) -> None:
        if trainer.iter + 1 == self.iteration:
            parameter = next(trainer.model.parameters())
            if self.where == "weights":
                parameter.data.fill_(float("nan"))
            else:
                parameter.register_hook(lambda gradient: gradient * float("inf"))
