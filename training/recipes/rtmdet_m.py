"""RTMDet-m: 24.7 M parameters, COCO box AP 49.1 as published by MMDetection."""

_base_ = "rtmdet_l.py"

model = dict(
    backbone=dict(deepen_factor=0.67, widen_factor=0.75),
    neck=dict(in_channels=[192, 384, 768], out_channels=192, num_csp_blocks=2),
    bbox_head=dict(in_channels=192, feat_channels=192),
)
