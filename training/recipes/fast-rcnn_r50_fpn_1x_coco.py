"""Fast R-CNN with ResNet-50: 41.2 M parameters; learns from the proposals of another model.

`deploykit test rpn_r50_fpn_1x_coco rpn.pth --dump-proposals FILE` writes them.
"""

_base_ = [
    "_base_/coco.py",
    "_base_/resnet50.py",
    "_base_/schedule_1x.py",
    "_base_/runtime.py",
]

model = dict(
    type="FastRCNN",
    neck=dict(type="FPN", in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=5),
    roi_head=dict(
        type="StandardRoIHead",
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
        ),
        bbox_head=dict(
            type="Shared2FCBBoxHead",
            in_channels=256,
            fc_out_channels=1024,
            roi_feat_size=7,
            num_classes=80,
            bbox_coder=dict(
                type="DeltaXYWHBBoxCoder",
                target_means=[0.0, 0.0, 0.0, 0.0],
                target_stds=[0.1, 0.1, 0.2, 0.2],
            ),
            reg_class_agnostic=False,
            loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        ),
    ),
    train_cfg=dict(
        rcnn=dict(
            assigner=dict(
                type="MaxIoUAssigner",
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.5,
                match_low_quality=False,
                ignore_iof_thr=-1,
            ),
            sampler=dict(
                type="RandomSampler",
                num=512,
                pos_fraction=0.25,
                neg_pos_ub=-1,
                add_gt_as_proposals=True,
            ),
            pos_weight=-1,
            debug=False,
        ),
    ),
    test_cfg=dict(
        rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100),
    ),
)

resize = dict(type="Resize", scale=(1333, 800), keep_ratio=True)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadProposals", num_max_proposals=2000),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="ProposalBroadcaster", transforms=[resize, dict(type="RandomFlip", prob=0.5)]),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadProposals", num_max_proposals=1000),
    dict(type="ProposalBroadcaster", transforms=[resize]),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]

train_dataloader = dict(
    dataset=dict(
        proposal_file="proposals/rpn_r50_fpn_1x_train2017.pkl",
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        proposal_file="proposals/rpn_r50_fpn_1x_val2017.pkl",
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
