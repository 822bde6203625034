"""The tests of `detectors.testing`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from detectors import working_memory
from detectors.backbones.architecture import channels_by_layer
from detectors.backbones.pyramid import Backbone, build_backbone
from detectors.base import SMOOTHING_SIGMA, FitContext, Head, Parameter, ParameterValue, Prediction
from detectors.catalog import head_class, parameters
from detectors.data.images import Size
from detectors.data.widgets import draw_widget
from detectors.detector import Detector
from detectors.errors import InputError, NumericalError
from detectors.features import Features
from detectors.head_files import known_as
from detectors.runtime.artifact import Artifact, load_artifact, save_artifact
from detectors.scoring.metrics import auroc

BACKBONE, STRIDES = "test_resnet@random", (8, 16)
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
]
Make = Callable[..., Detector]
"""Makes an unfitted detector with the head under test: ``make(size, **settings)``."""
WRONG_IMAGES = {
    "size": torch.zeros(2, 3, 64, 65, dtype=torch.uint8),
    "channels": torch.zeros(2, 1, 64, 64, dtype=torch.uint8),
    "dimensions": torch.zeros(3, 64, 64, dtype=torch.uint8),
    "order": torch.zeros(2, 64, 64, 3, dtype=torch.uint8),
    "float": torch.zeros(2, 3, 64, 64),
    "int64": torch.zeros(2, 3, 64, 64, dtype=torch.int64),
}


def random_images(count: int, size: tuple[int, int] = (64, 64), *, seed: int = 0) -> torch.Tensor:
    """uint8 [count, 3, H, W]: a smooth image, a little different each time."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    plain = torch.stack([128 + 60 * torch.sin(0.1 * y + phase) * torch.cos(0.13 * x) for phase in (0.0, 0.7, 1.9)])
    noise = 12 * torch.randn(count, 3, *size, generator=generator)
    return (plain + noise).clamp(0, 255).to(torch.uint8)


def close(first: Prediction, second: Prediction, *, tolerance: float = 1e-4) -> None:
    """Assert that two predictions agree but for rounding."""
    torch.testing.assert_close(first.scores, second.scores, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(first.maps, second.maps, rtol=tolerance, atol=tolerance)


def identical(first: Prediction, second: Prediction) -> bool:
    """Whether two predictions are the same to the last bit."""
    return torch.equal(first.scores, second.scores) and torch.equal(first.maps, second.maps)


def other_value(parameter: Parameter) -> Any:
    """An allowed value that is not the default; None where there is no other."""
    default: Any = parameter.default
    if parameter.kind == "choice":
        candidates: list[Any] = list(parameter.choices)
    else:
        candidates = [default + 1, default - 1]
        if parameter.kind == "float":
            # Within bounds that are less than 1 apart.
            candidates += [(default + bound) / 2 for bound in (parameter.low, parameter.high)]
    return next((value for value in candidates if value != default and is_allowed(parameter, value)), None)


def is_allowed(parameter: Parameter, value: Any) -> bool:
    """Whether a parameter may have a value, by what it lists."""
    if parameter.kind == "choice":
        return any(type(value) is type(choice) and value == choice for choice in parameter.choices)
    return bool(parameter.low <= value <= parameter.high)


class HeadContract:
    """Tests of one head; a subclass, whose name begins with ``Test``, names it."""

    head: ClassVar[type[Head]]
    """The head under test."""
    settings: ClassVar[Mapping[str, ParameterValue]] = {}
    """Constructor's arguments that keep a fit short; what is left out has its default."""

    @pytest.fixture(autouse=True)
    def _known_to_the_catalog(self) -> Iterator[None]:
        """A saved detector finds its head by name, also where no package offers it yet."""
        with known_as(self.head):
            yield

    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls) -> Backbone:
        """Small, with random weights that are the same each time."""
        return build_backbone(BACKBONE, STRIDES)

    @pytest.fixture
    def make(self, backbone: Backbone) -> Make:
        """Makes unfitted detectors with the head under test."""

        def make_one(size: Size = (64, 64), **settings: Any) -> Detector:
            head = self.head(**{**self.settings, **settings})
            return Detector(backbone, head, image_size=size, smoothing_sigma=2.0)

        return make_one

    @pytest.mark.parametrize("device", DEVICES)
    def test_short_memory_changes_nothing_but_rounding(self, make: Make, device: str) -> None:
        images = random_images(3, seed=1)
        plain = make().fit(random_images(8), FitContext(device=torch.device(device)))
        with working_memory.halved(12):
            saving = make().fit(random_images(8), FitContext(device=torch.device(device)))
            close(saving(images.to(device)), plain(images.to(device)), tolerance=2e-3)

    def test_a_head_goes_by_its_name_in_the_catalog(self) -> None:
        assert self.head.name
        assert head_class(self.head.name) is self.head
        assert issubclass(self.head, Head)

    def test_searchable_parameters_have_valid_defaults(self) -> None:
        head = self.head()
        listed = self.head.searchable
        assert len({parameter.name for parameter in listed}) == len(listed)
        for parameter in listed:
            assert parameter.check(parameter.default) == parameter.default
            assert head.settings[parameter.name] == parameter.default
            if parameter.kind == "choice":
                assert parameter.default in parameter.choices
            else:
                assert type(parameter.check(parameter.default)) is (int if parameter.kind == "int" else float)
            assert parameter.doc
            assert not parameter.doc.endswith(".")

    def test_settings_make_the_same_head_again_after_a_trip_through_json(self) -> None:
        head_type = self.head
        others = {parameter.name: other_value(parameter) for parameter in head_type.searchable}
        changed = {name: value for name, value in others.items() if value is not None}
        for given in ({}, changed):
            head = head_type(**given)
            settings = json.loads(json.dumps(head.settings, allow_nan=False))
            assert settings == head.settings
            assert {key: settings[key] for key in given} == given
            assert head_type(**settings).settings == head.settings

    def test_values_out_of_range_are_refused_by_name(self) -> None:
        for parameter in self.head.searchable:
            bad: list[Any] = [parameter.low - 1, float("nan"), float("inf"), "much", None, True]
            if parameter.kind == "choice":
                bad = [v for v in ("much", None, 17, float("nan"), True, 0.5) if not is_allowed(parameter, v)]
            elif parameter.high < float("inf"):
                bad.append(parameter.high + 1)
            for value in bad:
                with pytest.raises(InputError, match=parameter.name):
                    self.head(**{parameter.name: value})

    def test_unknown_settings_are_refused(self) -> None:
        with pytest.raises(TypeError):
            self.head(no_such_setting=1)

    def test_upper_bounds_name_searchable_whole_numbers_and_hold(self, make: Make) -> None:
        channels = {stride: channels_by_layer(BACKBONE)[stride] for stride in STRIDES}
        bounds = self.head.upper_bounds(channels)
        listed = {parameter.name: parameter for parameter in self.head.searchable}
        for key, bound in bounds.items():
            assert listed[key].kind == "int"
            assert listed[key].low <= bound <= listed[key].high
            detector = make(**{key: bound}).fit(random_images(4))
            assert bool(torch.isfinite(detector(random_images(2, seed=1)).scores).all())

    def test_parameters_include_those_that_all_detectors_share(self) -> None:
        listed = parameters(self.head.name)
        assert listed["smoothing_sigma"] is SMOOTHING_SIGMA
        assert {parameter.name for parameter in self.head.searchable} < set(listed)
        assert all(isinstance(parameter, Parameter) for parameter in listed.values())

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("size", [(64, 64), (100, 76), (72, 136)])
    def test_shapes_types_and_finite_numbers(self, make: Make, size: Size, device: str) -> None:
        detector = make(size).to(device)
        detector.fit(random_images(6, size).to(device), FitContext(device=torch.device(device)))
        detector = detector.to(device)
        prediction = detector(random_images(3, size, seed=1).to(device))
        assert len(prediction) == 3
        assert prediction.scores.shape == (3,)
        assert prediction.maps.shape == (3, *size)
        for tensor in (prediction.scores, prediction.maps):
            assert tensor.dtype == torch.float32
            assert tensor.device.type == device
            assert not tensor.requires_grad
            assert bool(torch.isfinite(tensor).all())
        detector.cpu()
        detector.backbone.cpu()

    @pytest.mark.parametrize("size", [(64, 64), (100, 76)])
    def test_an_images_score_does_not_depend_on_its_batch(self, make: Make, size: Size) -> None:
        detector = make(size).fit(random_images(8, size))
        images = torch.cat([random_images(6, size, seed=1), 255 - random_images(1, size, seed=2)])
        together = detector(images)
        order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
        close(detector(images[order]), Prediction(together.scores[order], together.maps[order]))
        for batch in (1, 2, 4):
            parts = [detector(chunk) for chunk in images.split(batch)]
            close(Prediction(torch.cat([p.scores for p in parts]), torch.cat([p.maps for p in parts])), together)

    def test_a_batch_may_be_empty(self, make: Make) -> None:
        prediction = make().fit(random_images(4))(random_images(2)[:0])
        assert prediction.scores.shape == (0,)
        assert prediction.maps.shape == (0, 64, 64)

    def test_the_same_seed_gives_the_same_scores(self, make: Make) -> None:
        def predict() -> Prediction:
            torch.rand(3)  # whatever ran before in this process
            return make().fit(random_images(8), FitContext(seed=3, structural_seed=5))(random_images(3, seed=1))

        assert identical(predict(), predict())

    def test_scoring_twice_gives_the_same_scores(self, make: Make) -> None:
        detector = make().fit(random_images(8))
        assert identical(detector(random_images(3, seed=1)), detector(random_images(3, seed=1)))
        detector.train()
        assert identical(detector(random_images(3, seed=1)), detector.eval()(random_images(3, seed=1)))

    def test_stored_features_and_images_give_the_same_scores(self, make: Make) -> None:
        from_images, from_features = make().fit(random_images(8)), make()
        from_features.fit_features(from_features.extract(random_images(8)), FitContext())
        features = from_features.extract(random_images(9, seed=1))
        close(from_features.score_features(features), from_images(random_images(9, seed=1)))

    def test_one_training_image_is_enough_for_finite_scores(self, make: Make) -> None:
        prediction = make().fit(random_images(1))(random_images(3, seed=1))
        assert bool(torch.isfinite(prediction.scores).all())
        assert bool(torch.isfinite(prediction.maps).all())

    @pytest.mark.parametrize("gray", [0, 128, 255])
    def test_identical_plain_images_are_no_trouble(self, make: Make, gray: int) -> None:
        plain = torch.full((5, 3, 64, 64), gray, dtype=torch.uint8)
        detector = make().fit(plain)
        own, other = detector(plain).scores, detector(random_images(2, seed=1)).scores
        assert bool(torch.isfinite(own).all())
        assert float(own.max()) < float(other.min())

    def test_fitting_again_forgets_the_former_fit(self, make: Make) -> None:
        twice = make().fit(random_images(6, seed=7)).fit(random_images(8))
        close(twice(random_images(3, seed=1)), make().fit(random_images(8))(random_images(3, seed=1)))

    def test_features_are_never_written_into(self, make: Make) -> None:
        detector = make()
        features = detector.extract(random_images(6))
        before = {stride: values.clone() for stride, values in features.maps.items()}
        detector.fit_features(features, FitContext())
        detector.score_features(features)
        for stride, values in before.items():
            assert torch.equal(features.maps[stride], values)

    def test_the_patch_scores_lie_on_the_grid_of_the_finest_stride(self, make: Make) -> None:
        detector = make((72, 136))
        features = detector.extract(random_images(4, (72, 136)))
        detector.fit_features(features, FitContext())
        assert detector.head.grid == features.grids[8] == (9, 17)
        patch_scores, image_scores = detector.head.score(features)
        assert patch_scores.shape == (4, 9, 17)
        assert image_scores is None or image_scores.shape == (4,)

    def test_dents_in_widgets_score_higher_than_none(self) -> None:
        size = 96
        drawn = [draw_widget(seed, dent=seed >= 40, size=size)[0] for seed in range(60)]
        images = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous()
        head = self.head(**self.settings)
        detector = Detector(build_backbone("tf_efficientnet_lite0", [8, 16]), head, image_size=(size, size))
        detector.fit(images[:30])
        labels = np.repeat([0, 1], [10, 20])
        assert auroc(detector(images[30:]).scores.numpy(), labels) > 0.9

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_training_features_that_are_not_finite_are_refused(self, make: Make, bad: float) -> None:
        detector = make()
        features = detector.extract(random_images(6))
        features.maps[16][3, 5, 2] = bad
        with pytest.raises(NumericalError, match="stride 16"):
            detector.fit_features(features, FitContext())

    def test_scores_that_are_not_finite_are_refused_and_the_image_named(self, make: Make) -> None:
        detector = make().fit(random_images(6))
        features = detector.extract(random_images(4, seed=1))
        for values in features.maps.values():
            values[:, :, 2] = float("nan")
        with pytest.raises(NumericalError, match="image 2 "):
            detector.score_features(features)

    @pytest.mark.parametrize("wrong", WRONG_IMAGES)
    def test_wrong_images_are_refused_in_one_line(self, make: Make, wrong: str) -> None:
        images, fitted = WRONG_IMAGES[wrong], make().fit(random_images(4))
        for call in (make().fit, fitted, fitted.extract):
            with pytest.raises(InputError, match=r"uint8 \[B, 3, 64, 64\]") as caught:
                call(images)
            assert "\n" not in str(caught.value)

    def test_no_images_at_all_are_refused(self, make: Make) -> None:
        with pytest.raises(InputError, match="no normal images"):
            make().fit(random_images(2)[:0])

    def test_features_of_another_image_size_are_refused(self, make: Make) -> None:
        detector = make().fit(random_images(4))
        for size in ((128, 128), (32, 64)):
            features = make(size).extract(random_images(2, size))
            with pytest.raises(InputError, match=r"fitted on one of \(8, 8\)"):
                detector.score_features(features)

    def test_an_unfitted_detector_says_so(self, make: Make) -> None:
        with pytest.raises(RuntimeError, match="not fitted"):
            make()(random_images(1))

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("size", [(64, 64), (100, 76)])
    def test_a_saved_detector_scores_exactly_alike(self, make: Make, tmp_path: Path, size: Size, device: str) -> None:
        detector = make(size).fit(random_images(8, size))
        save_artifact(Artifact(detector), tmp_path / "detector")
        loaded = load_artifact(tmp_path / "detector", device=device).detector
        assert loaded is not detector
        assert loaded.head.settings == detector.head.settings
        images = random_images(4, size, seed=1).to(device)
        wanted = detector.to(device)(images)
        detector.cpu()
        for _ in range(2):
            assert identical(loaded(images), wanted)
        again = save_artifact(Artifact(loaded), tmp_path / "again")
        assert identical(load_artifact(again, device=device).detector(images), wanted)

    def test_exported_tensors_are_all_that_a_new_head_needs(self, make: Make) -> None:
        detector, other = make().fit(random_images(8)), make()
        exported = {key: value.clone() for key, value in detector.head.export_tensors().items()}
        assert all(value.device.type == "cpu" for value in exported.values())
        other.head.import_tensors(exported)
        other.finish_fit()
        features: Features = detector.extract(random_images(3, seed=1))
        assert identical(other.score_features(features), detector.score_features(features))
