auto_scale_lr = dict(base_batch_size=16, enable=False)
backend_args = None
data_root = "data/coco/"
dataset_type = "CocoDataset"
default_hooks = dict(
    checkpoint=dict(interval=1, type="CheckpointHook"),
    logger=dict(interval=50, type="LoggerHook"),
    param_scheduler=dict(type="ParamSchedulerHook"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    timer=dict(type="IterTimerHook"),
    visualization=dict(type="DetVisualizationHook"),
)
default_scope = "mmdet"
env_cfg = dict(
    cudnn_benchmark=False,
    dist_cfg=dict(backend="nccl"),
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
)
load_from = None
log_level = "INFO"
log_processor = dict(by_epoch=True, type="LogProcessor", window_size=50)
model = dict(
    backbone=dict(
        base_channels=4,
        depth=18,
        frozen_stages=-1,
        init_cfg=None,
        norm_cfg=dict(requires_grad=True, type="BN"),
        norm_eval=False,
        num_stages=4,
        out_indices=(
            0,
            1,
            2,
            3,
        ),
        style="pytorch",
        type="ResNet",
    ),
    bbox_head=dict(
        anchor_generator=dict(
            octave_base_scale=4,
            ratios=[
                0.5,
                1.0,
                2.0,
            ],
            scales_per_octave=3,
            strides=[
                8,
                16,
                32,
                64,
                128,
            ],
            type="AnchorGenerator",
        ),
        bbox_coder=dict(
            target_means=[
                0.0,
                0.0,
                0.0,
                0.0,
            ],
            target_stds=[
                1.0,
                1.0,
                1.0,
                1.0,
            ],
            type="DeltaXYWHBBoxCoder",
        ),
        feat_channels=8,
        in_channels=8,
        loss_bbox=dict(loss_weight=1.0, type="L1Loss"),
        loss_cls=dict(alpha=0.25, gamma=2.0, loss_weight=1.0, type="FocalLoss", use_sigmoid=True),
        num_classes=3,
        stacked_convs=1,
        type="RetinaHead",
    ),
    data_preprocessor=dict(
        bgr_to_rgb=True,
        mean=[
            123.675,
            116.28,
            103.53,
        ],
        pad_size_divisor=32,
        std=[
            58.395,
            57.12,
            57.375,
        ],
        type="DetDataPreprocessor",
    ),
    neck=dict(
        add_extra_convs="on_input",
        in_channels=[
            4,
            8,
            16,
            32,
        ],
        num_outs=5,
        out_channels=8,
        start_level=1,
        type="FPN",
    ),
    test_cfg=dict(
        max_per_img=20,
        min_bbox_size=0,
        nms=dict(iou_threshold=0.5, type="nms"),
        nms_pre=1000,
        score_thr=0.0,
    ),
    train_cfg=dict(
        allowed_border=-1,
        assigner=dict(
            ignore_iof_thr=-1,
            min_pos_iou=0,
            neg_iou_thr=0.4,
            pos_iou_thr=0.5,
            type="MaxIoUAssigner",
        ),
        debug=False,
        pos_weight=-1,
        sampler=dict(type="PseudoSampler"),
    ),
    type="RetinaNet",
)
optim_wrapper = dict(
    optimizer=dict(lr=0.01, momentum=0.9, type="SGD", weight_decay=0.0001), type="OptimWrapper"
)
param_scheduler = [
    dict(begin=0, by_epoch=False, end=500, start_factor=0.001, type="LinearLR"),
    dict(
        begin=0,
        by_epoch=True,
        end=12,
        gamma=0.1,
        milestones=[
            8,
            11,
        ],
        type="MultiStepLR",
    ),
]
randomness = dict(seed=0)
resume = False
test_cfg = None
test_dataloader = dict(
    batch_size=2,
    dataset=dict(
        ann_file="ann.json",
        data_prefix=dict(img="img/"),
        data_root="coco/",
        metainfo=dict(
            classes=(
                "c0",
                "c1",
                "c2",
            )
        ),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True),
            dict(
                keep_ratio=True,
                scale=(
                    128,
                    128,
                ),
                type="Resize",
            ),
            dict(
                meta_keys=(
                    "img_id",
                    "img_path",
                    "ori_shape",
                    "img_shape",
                    "scale_factor",
                ),
                type="PackDetInputs",
            ),
        ],
        test_mode=True,
        type="CocoDataset",
    ),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=False, type="DefaultSampler"),
)
test_evaluator = None
test_pipeline = [
    dict(backend_args=None, type="LoadImageFromFile"),
    dict(
        keep_ratio=True,
        scale=(
            1333,
            800,
        ),
        type="Resize",
    ),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        meta_keys=(
            "img_id",
            "img_path",
            "ori_shape",
            "img_shape",
            "scale_factor",
        ),
        type="PackDetInputs",
    ),
]
train_cfg = dict(max_epochs=1, type="EpochBasedTrainLoop", val_interval=10)
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        ann_file="ann.json",
        data_prefix=dict(img="img/"),
        data_root="coco/",
        metainfo=dict(
            classes=(
                "c0",
                "c1",
                "c2",
            )
        ),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True),
            dict(
                keep_ratio=True,
                scale=(
                    128,
                    128,
                ),
                type="Resize",
            ),
            dict(prob=0.5, type="RandomFlip"),
            dict(type="PackDetInputs"),
        ],
        test_mode=False,
        type="CocoDataset",
    ),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=False, type="DefaultSampler"),
)
train_pipeline = [
    dict(backend_args=None, type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        keep_ratio=True,
        scale=(
            1333,
            800,
        ),
        type="Resize",
    ),
    dict(prob=0.5, type="RandomFlip"),
    dict(type="PackDetInputs"),
]
val_cfg = None
val_dataloader = None
val_evaluator = None
vis_backends = [
    dict(type="LocalVisBackend"),
]
visualizer = dict(
    name="visualizer",
    type="DetLocalVisualizer",
    vis_backends=[
        dict(type="LocalVisBackend"),
    ],
)
work_dir = "work"
