"""SPADE: retrieval and correspondences against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from detectors import working_memory
from detectors.base import FitContext
from detectors.features import Features
from detectors.heads.spade.head import Spade

GRIDS = {8: (6, 4), 16: (3, 2)}
CHANNELS = {8: 5, 16: 7}


def make_features(images: int, *, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    maps = {
        stride: torch.randn(height * width, CHANNELS[stride], images, generator=generator)
        + torch.randn(1, CHANNELS[stride], images, generator=generator)
        for stride, (height, width) in GRIDS.items()
    }
    return Features(maps=maps, grids=GRIDS, image_size=(48, 32))


def vectors(features: Features, stride: int) -> Tensor:
    """[N, P, C]"""
    return features.maps[stride].permute(2, 0, 1)


def retrieved(train: Features, test: Features, strides: tuple[int, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean squared distances and indices by scikit-learn."""
    known, asked = (
        np.concatenate([vectors(features, stride).mean(dim=1).numpy() for stride in strides], axis=1)
        for features in (train, test)
    )
    distances, indices = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(known).kneighbors(asked)
    return (distances**2).mean(axis=1), indices


@pytest.mark.parametrize(("pooled", "strides"), [("deepest", (16,)), ("all", (8, 16))])
@pytest.mark.parametrize("count", [1, 3])
def test_retrieval_is_that_of_scikit_learn(pooled, strides, count):
    train, test = make_features(12), make_features(5, seed=1)
    head = Spade(n_neighbors=count, pooled=pooled, image_score="retrieval").fit(train, FitContext())
    wanted, _ = retrieved(train, test, strides, count)
    np.testing.assert_allclose(head.score(test)[1].numpy(), wanted, rtol=1e-4)


@pytest.mark.parametrize("correspondences", [1, 4])
def test_correspondences_are_those_of_scikit_learn(correspondences):
    train, test = make_features(12), make_features(5, seed=1)
    head = Spade(n_neighbors=3, n_correspondences=correspondences).fit(train, FitContext())
    _, indices = retrieved(train, test, (16,), 3)
    total = torch.zeros(5, *GRIDS[8])
    for stride, grid in GRIDS.items():
        for image in range(5):
            candidates = vectors(train, stride)[indices[image]].flatten(0, 1).numpy()
            search = NearestNeighbors(n_neighbors=correspondences, algorithm="brute").fit(candidates)
            distances = torch.from_numpy(search.kneighbors(vectors(test, stride)[image].numpy())[0]).float()
            level = distances.mean(dim=1).reshape(1, 1, *grid)
            total[image] += torch.nn.functional.interpolate(level, GRIDS[8], mode="bilinear")[0, 0] / 2
    scores, image_scores = head.score(test)
    assert image_scores is None
    torch.testing.assert_close(scores, total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("halvings", [3, 30])
def test_short_memory_changes_nothing(halvings):
    head = Spade(n_neighbors=3).fit(make_features(12), FitContext())
    with working_memory.halved(halvings):
        saving = head.score(make_features(5, seed=1))[0]
    torch.testing.assert_close(saving, head.score(make_features(5, seed=1))[0])


def test_more_neighbours_than_images_are_all_of_them():
    train, test = make_features(3), make_features(4, seed=1)
    every = Spade(n_neighbors=3, n_correspondences=50).fit(train, FitContext())
    more = Spade(n_neighbors=1000, n_correspondences=50).fit(train, FitContext())
    assert more.settings["n_neighbors"] == 1000
    assert torch.equal(more.score(test)[0], every.score(test)[0])


def test_images_of_the_fit_lie_at_distance_nought():
    train = make_features(6)
    scores, image_scores = Spade(n_neighbors=1, image_score="retrieval").fit(train, FitContext()).score(train)
    assert not scores.any()
    assert not image_scores.any()


def test_a_planted_defect_is_where_it_is():
    train = make_features(20)
    test = make_features(1, seed=1)
    test.maps[8][9, :, 0] += 20
    scores, _ = Spade(n_neighbors=20).fit(train, FitContext()).score(test)
    assert int(scores.flatten().argmax()) == 9


def test_a_fit_with_fewer_strides_forgets_the_others():
    head = Spade().fit(make_features(4), FitContext())
    head.fit(make_features(4).select([16]), FitContext())
    assert head.strides == (16,)
    assert head.grid == GRIDS[16]


@pytest.mark.parametrize("change", ["images", "positions", "no bank", "no pooled"])
def test_tensors_that_contradict_each_other_are_refused(change):
    tensors = Spade().fit(make_features(4), FitContext()).export_tensors()
    if change == "images":
        tensors["bank8"] = tensors["bank8"][:2]
    elif change == "positions":
        tensors["grid8"] = torch.tensor([2, 2])
    elif change == "no bank":
        tensors = {"pooled_": tensors["pooled_"]}
    else:
        del tensors["pooled_"]
    with pytest.raises((ValueError, LookupError, AttributeError)):
        Spade().import_tensors(tensors)


def test_normalised_features_are_those_of_torch():
    train, test = make_features(12), make_features(5, seed=1)
    settings = {"n_neighbors": 3, "image_score": "retrieval", "pooled": "all"}
    found = Spade(**settings, normalize="l2").fit(train, FitContext()).score(test)
    by_hand = [
        Features(
            maps={stride: torch.nn.functional.normalize(values, dim=1) for stride, values in features.maps.items()},
            grids=features.grids,
            image_size=features.image_size,
        )
        for features in (train, test)
    ]
    expected = Spade(**settings).fit(by_hand[0], FitContext()).score(by_hand[1])
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
    # What was given, perhaps of a file, is as it was.
    assert torch.equal(train.maps[8], make_features(12).maps[8])
    one = make_features(1)
    kept = {stride: values.clone() for stride, values in one.maps.items()}
    Spade(**settings, normalize="l2").fit(one, FitContext())
    assert all(torch.equal(one.maps[stride], values) for stride, values in kept.items())
