"""Data, evaluation and logging of the demo's small recipes: a few images of nuclei.

`deploykit demo` writes the data set. Recipes add the pipelines and how long they train.
"""

data_root = "data/"
classes = ("nucleus",)
metainfo = dict(classes=classes)

train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    # One pass over the few images is a short epoch; repeating them makes an epoch of useful length.
    dataset=dict(
        type="RepeatDataset",
        times=8,
        dataset=dict(
            type="CocoDataset",
            data_root=data_root,
            metainfo=metainfo,
            ann_file="annotations/train.json",
            data_prefix=dict(img="train/"),
            filter_cfg=dict(filter_empty_gt=True, min_size=4),
        ),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CocoDataset",
        data_root=data_root,
        metainfo=metainfo,
        ann_file="annotations/val.json",
        data_prefix=dict(img="val/"),
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="CocoMetric",
    ann_file=data_root + "annotations/val.json",
    metric="bbox",
    proposal_nums=(100, 1, 300),
)
test_evaluator = val_evaluator

val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=10),
    checkpoint=dict(
        type="CheckpointHook", interval=14, max_keep_ckpts=1, save_best="coco/bbox_mAP"
    ),
)
channels_last = True  # twice as fast on a CPU
randomness = dict(seed=0)
default_scope = "mmdet"
