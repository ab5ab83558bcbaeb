"""Region proposal network with ResNet-50: 27.4 M parameters, COCO AR@1000 58.2 as published."""

_base_ = [
    "_base_/coco.py",
    "_base_/resize_1333_pipelines.py",
    "_base_/resnet50_fpn_rpn.py",
    "_base_/schedule_1x.py",
    "_base_/runtime.py",
]

model = dict(type="RPN", test_cfg=dict(rpn=dict(nms_pre=2000)))

train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(metric="proposal_fast")  # recall, whatever the class
test_evaluator = val_evaluator
