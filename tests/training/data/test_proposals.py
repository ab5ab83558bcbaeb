"""Proposals on their way from the file to the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deploykit.errors import ConfigError, DatasetError
from deploykit.proposals import write_proposals
from deploykit.training.data import build_dataloader, build_dataset, collate
from deploykit.training.data.transforms import Pipeline

RESIZE = {"type": "Resize", "scale": (90, 70), "keep_ratio": True}
FLIP = {"type": "RandomFlip", "prob": 0.7, "direction": ["horizontal", "vertical", "diagonal"]}
MOVES = [
    [RESIZE, FLIP],
    [{"type": "RandomResize", "scale": (80, 60), "ratio_range": (0.5, 1.5)}, FLIP],
    [{"type": "RandomCrop", "crop_size": (0.6, 0.7), "crop_type": "relative"}],
    [{"type": "MinIoURandomCrop"}],
    [{"type": "Expand"}, FLIP],
    [{"type": "RandomAffine"}, {"type": "Pad", "size": (120, 120)}],
]


@pytest.fixture
def folder(coco_folder):
    """Six images whose proposals are their objects, and a file of those."""
    folder = coco_folder(images=6)
    tables = {}
    for image in folder.content["images"]:
        boxes = [a["bbox"] for a in folder.content["annotations"] if a["image_id"] == image["id"]]
        rows = np.array([[x, y, x + w, y + h, 0.5] for x, y, w, h in boxes], np.float32)
        tables[f"images/{image['file_name']}"] = rows
    write_proposals(folder.root / "proposals" / "all.pkl", tables)
    return folder


def config(folder, transforms, limit=None, **options):
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadProposals", "num_max_proposals": limit},
        {"type": "LoadAnnotations", "with_bbox": True},
        *transforms,
        {"type": "PackDetInputs"},
    ]
    return folder.config(proposal_file="proposals/all.pkl") | {"pipeline": pipeline} | options


@pytest.mark.parametrize("moves", MOVES, ids=lambda moves: moves[0]["type"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_proposals_move_as_boxes_do(folder, moves, wrapped):
    # MinIoURandomCrop drops objects by their centres, proposals only when out of sight.
    drops_more = moves[0]["type"] == "MinIoURandomCrop"
    moves = [{"type": "ProposalBroadcaster", "transforms": moves}] if wrapped else moves
    dataset = build_dataset(config(folder, moves))
    for index in range(6):
        for seed in range(8):
            sample = dataset.fetch(index, np.random.default_rng(seed))
            kept = {tuple(box) for box in sample.boxes.round(3).tolist()}
            proposed = {tuple(box) for box in sample.proposals.round(3).tolist()}
            assert kept
            assert kept <= proposed if drops_more else kept == proposed


def test_the_broadcaster_draws_what_its_transforms_draw(folder):
    plain = build_dataset(config(folder, [RESIZE, FLIP]))
    wrapped = build_dataset(
        config(folder, [{"type": "ProposalBroadcaster", "transforms": [RESIZE, FLIP]}])
    )
    for index in range(6):
        first, second = plain[index], wrapped[index]
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.proposals, second.proposals)
        assert first.meta == second.meta


def test_the_best_are_kept(folder):
    rows = np.array([[0, 0, 9, 9, 0.1], [1, 1, 9, 9, 0.9], [2, 2, 9, 9, 0.5]], np.float32)
    write_proposals(
        folder.root / "proposals" / "all.pkl", {f"images/{i}.png": rows for i in range(6)}
    )
    sample = build_dataset(config(folder, [], limit=2))[0]
    np.testing.assert_array_equal(sample.proposals, rows[[1, 2], :4])


def test_batches_are_filled_up_with_zeros(folder):
    loader = build_dataloader(
        {
            "batch_size": 3,
            "dataset": config(folder, []),
            "sampler": {"type": "DefaultSampler", "shuffle": False},
        }
    )
    batch = next(iter(loader)).to("cpu")
    assert batch.proposals.shape == (3, 3, 4) and batch.proposals.dtype == torch.float32
    for count, table, target in zip((1, 2, 3), batch.proposals, batch.targets, strict=True):
        torch.testing.assert_close(table[:count], target.boxes)
        assert not table[count:].any()


def test_without_a_file_there_are_none(folder):
    dataset = build_dataset(folder.config())
    assert dataset.record(0).proposals is None
    assert collate([dataset[0]]).proposals is None
    with_some = build_dataset(config(folder, []))
    with pytest.raises(DatasetError, match="some images of a batch have proposals"):
        collate([dataset[0], with_some[0]])


def test_mistakes(folder):
    with pytest.raises(DatasetError, match=r"missing\.pkl: the proposal file does not exist"):
        build_dataset(config(folder, [], proposal_file="missing.pkl"))
    write_proposals(folder.root / "few.npz", {"images/0.png": np.zeros((0, 5), np.float32)})
    with pytest.raises(DatasetError, match=r"no proposals for 'images/1\.png' \(image 1\)"):
        build_dataset(config(folder, [], proposal_file="few.npz"))
    with pytest.raises(ConfigError, match="needs a data set with a proposal_file"):
        build_dataset(config(folder, [], proposal_file=None))[0]
    broadcaster = {"type": "ProposalBroadcaster", "transforms": [RESIZE]}
    with pytest.raises(ConfigError, match="put LoadProposals before it"):
        build_dataset(folder.config(broadcaster))[0]
    with pytest.raises(ConfigError, match="num_max_proposals must be at least 1"):
        Pipeline([{"type": "LoadProposals", "num_max_proposals": 0}])


@pytest.mark.parametrize("mixing", ["CachedMosaic", "CachedMixUp"])
def test_images_with_proposals_are_not_mixed(folder, mixing):
    options = {"img_scale": (64, 64)}
    dataset = build_dataset(config(folder, [{"type": mixing, **options}]))
    with pytest.raises(ConfigError, match="cannot be mixed"):
        for index in range(6):
            dataset.fetch(index, np.random.default_rng(index))
    with pytest.raises(ConfigError, match="cannot be mixed"):
        Pipeline([{"type": "ProposalBroadcaster", "transforms": [{"type": mixing, **options}]}])
