"""RTMDet-l: 52.3 M parameters, COCO box AP 51.3 as published by MMDetection."""

_base_ = [
    "_base_/coco.py",
    "_base_/rtmdet_pipelines.py",
    "_base_/rtmdet_300e.py",
    "_base_/runtime.py",
]

norm = dict(type="SyncBN")  # BatchNorm where a single process trains
activation = dict(type="SiLU", inplace=True)

model = dict(
    type="RTMDet",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[103.53, 116.28, 123.675],
        std=[57.375, 57.12, 58.395],
        bgr_to_rgb=False,
        batch_augments=None,
    ),
    backbone=dict(
        type="CSPNeXt",
        arch="P5",
        expand_ratio=0.5,
        deepen_factor=1,
        widen_factor=1,
        channel_attention=True,
        norm_cfg=norm,
        act_cfg=activation,
    ),
    neck=dict(
        type="CSPNeXtPAFPN",
        in_channels=[256, 512, 1024],
        out_channels=256,
        num_csp_blocks=3,
        expand_ratio=0.5,
        norm_cfg=norm,
        act_cfg=activation,
    ),
    bbox_head=dict(
        type="RTMDetSepBNHead",
        num_classes=80,
        in_channels=256,
        feat_channels=256,
        stacked_convs=2,
        share_conv=True,
        pred_kernel_size=1,
        exp_on_reg=True,
        with_objectness=False,
        anchor_generator=dict(type="MlvlPointGenerator", offset=0, strides=[8, 16, 32]),
        bbox_coder=dict(type="DistancePointBBoxCoder"),
        loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
        norm_cfg=norm,
        act_cfg=activation,
    ),
    train_cfg=dict(
        assigner=dict(type="DynamicSoftLabelAssigner", topk=13),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=30000,
        min_bbox_size=0,
        score_thr=0.001,
        nms=dict(type="nms", iou_threshold=0.65),
        max_per_img=300,
    ),
)

train_dataloader = dict(
    batch_size=32,
    num_workers=10,
    batch_sampler=None,
    pin_memory=True,
    dataset=dict(pipeline=_base_.train_pipeline),
)
val_dataloader = dict(
    batch_size=5,
    num_workers=10,
    dataset=dict(pipeline=_base_.test_pipeline),
)
test_dataloader = val_dataloader

val_evaluator = dict(proposal_nums=(100, 1, 10))
test_evaluator = val_evaluator

default_hooks = dict(checkpoint=dict(interval=_base_.interval, max_keep_ckpts=3))
custom_hooks = [
    dict(
        type="EMAHook",
        ema_type="ExpMomentumEMA",
        momentum=0.0002,
        update_buffers=True,
        priority=49,
    ),
    dict(
        type="PipelineSwitchHook",
        switch_epoch=_base_.max_epochs - _base_.stage2_num_epochs,
        switch_pipeline=_base_.train_pipeline_stage2,
    ),
]
