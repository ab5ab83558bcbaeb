from __future__ import annotations

import numpy as np
import pytest

from deploykit.errors import ConfigError
from deploykit.training.data.transforms import Pipeline, RandomChoice, Transform
from deploykit.training.registry import TRANSFORMS

SCALES = [(10, 10), (20, 30), (40, 15)]
RESIZES = [dict(type="Resize", scale=scale) for scale in SCALES]
# DETR's: resize to one of several sizes, or resize, crop and resize.
DETR = [
    [dict(type="RandomChoiceResize", scales=[(24, 24), (32, 32)], keep_ratio=False)],
    [
        dict(type="Resize", scale=(60, 60)),
        dict(type="RandomCrop", crop_size=(20, 16), allow_negative_crop=True),
        dict(type="Resize", scale=(48, 48)),
    ],
]
RNG = np.random.default_rng(0)


def sizes_of(choice, make_sample, count=600):
    rng = np.random.default_rng(0)
    image = np.zeros((30, 40, 3), np.uint8)
    return [choice(make_sample(image), rng).size for _ in range(count)]


@pytest.mark.parametrize(("prob", "expected"), [(None, (1 / 3,) * 3), ((0.5, 0.0, 0.5),) * 2])
def test_pipelines_are_chosen_with_their_probability(make_sample, prob, expected):
    sizes = sizes_of(RandomChoice(RESIZES, prob), make_sample)
    shares = [np.mean([size == (height, width) for size in sizes]) for width, height in SCALES]
    assert shares == pytest.approx(expected, abs=0.07)


def test_pipelines_run_as_a_whole(make_sample):
    sizes = set(sizes_of(RandomChoice(DETR), make_sample, 60))
    assert sizes == {(24, 24), (32, 32), (48, 48)}


def test_equal_seeds_choose_alike(make_sample):
    choice = RandomChoice(RESIZES)
    assert sizes_of(choice, make_sample, 20) == sizes_of(choice, make_sample, 20)


def test_a_pipeline_may_give_up(make_sample):
    class GiveUp(Transform):
        def __call__(self, sample, rng):
            return None

    assert RandomChoice([[GiveUp()]])(make_sample(np.zeros((9, 9, 3), np.uint8)), RNG) is None


def test_a_pipeline_of_the_config(make_sample):
    (choice,) = Pipeline([dict(type="RandomChoice", transforms=DETR)]).transforms
    assert isinstance(choice, RandomChoice)
    assert "RandomChoice" in TRANSFORMS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(transforms=[]), "list of pipelines"),
        (dict(transforms=dict(type="Resize")), "list of pipelines"),
        (dict(transforms=RESIZES, prob=[0.5, 0.5]), "3 probabilities"),
        (dict(transforms=RESIZES, prob=[0.5, 0.5, 0.5]), "add up to 1"),
        (dict(transforms=RESIZES, prob=[1.5, -0.5, 0.0]), "add up to 1"),
        (dict(transforms=[[dict(type="CachedMosaic")]]), "draws other images"),
        (dict(transforms=[dict(type="MixUp")]), "draws other images"),
    ],
)
def test_choices_that_make_no_sense(options, message):
    with pytest.raises(ConfigError, match=message):
        RandomChoice(**options)
