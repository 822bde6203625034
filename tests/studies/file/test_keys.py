"""Names of parameters: what is written is read back, and the stored names are those of the versions before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors import catalog
from detectors.backbones.bundled import SMALLEST
from detectors.backbones.weights import PIXELS
from detectors.errors import InputError
from studies.file.keys import DETECTOR_KEY, SHARED_PARAMETERS, ParameterKey

NAMES = sorted(
    {
        DETECTOR_KEY,
        *SHARED_PARAMETERS,
        *(name for detector in catalog.built_in_names() for name in catalog.parameters(detector)),
    }
)
DETECTORS = st.one_of(
    st.none(),
    st.sampled_from(
        [*catalog.built_in_names(), "my_head.py:MyHead", "heads/v1.2/my_head.py:MyHead", "company.heads:Better"]
    ),
    st.from_regex(r"[A-Za-z][\w.:/-]{0,30}", fullmatch=True),
)
BACKBONES = st.one_of(
    st.none(),
    st.sampled_from([SMALLEST, PIXELS, "resnet18", "resnet18.a1_in1k", "resnet18@random", "vit_small_patch14_dinov2.lvd142m"]),
    st.builds("{}.{}@random:{}".format, st.just("resnet18"), st.just("a1_in1k"), st.integers(0, 10**6)),
)  # fmt: skip
KEYS = st.builds(
    ParameterKey,
    st.one_of(st.sampled_from(NAMES), st.from_regex(r"[a-z_][a-z0-9_]{0,20}", fullmatch=True)),
    detector=DETECTORS,
    backbone=BACKBONES,
)


@given(KEYS)
def test_a_key_survives_its_text(key: ParameterKey) -> None:
    assert ParameterKey.parse(str(key)) == key


@given(st.text("ab.@", max_size=8))
def test_a_text_is_read_back_as_it_was_or_refused(text: str) -> None:
    try:
        key = ParameterKey.parse(text)
    except InputError:
        return
    assert str(key) == text


@given(KEYS, KEYS)
def test_different_keys_have_different_texts(first: ParameterKey, second: ParameterKey) -> None:
    assert (str(first) == str(second)) == (first == second)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("n_features", ParameterKey("n_features")),
        ("padim.n_features", ParameterKey("n_features", detector="padim")),
        ("layers@resnet18", ParameterKey("layers", backbone="resnet18")),
        ("padim.layers@resnet18", ParameterKey("layers", detector="padim", backbone="resnet18")),
        ("layers@resnet18.a1_in1k", ParameterKey("layers", backbone="resnet18.a1_in1k")),
        ("padim.layers@resnet18@random:3", ParameterKey("layers", detector="padim", backbone="resnet18@random:3")),
        ("my_head.py:MyHead.width", ParameterKey("width", detector="my_head.py:MyHead")),
    ],
)
def test_the_names_that_studies_are_stored_under(text: str, key: ParameterKey) -> None:
    assert ParameterKey.parse(text) == key
    assert str(key) == text


@pytest.mark.parametrize("text", ["", ".", "padim.", ".n_features", "@resnet18", "layers@", "padim.@resnet18", "..x."])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        ParameterKey.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("n.features", {}),
        ("n@features", {}),
        ("layers", {"detector": ""}),
        ("layers", {"detector": "a@b/my_head.py:MyHead"}),
        ("layers", {"backbone": ""}),
    ],
)
def test_parts_that_could_not_be_read_back_are_refused(name: str, parts: dict[str, str]) -> None:
    with pytest.raises(InputError):
        ParameterKey(name, **parts)
