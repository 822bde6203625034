"""Every head of this project, and the one of ``docs/adding-a-detector.md``, keep the contract that plug-ins are held to."""

from __future__ import annotations

from typing import Any, ClassVar

from detectors.catalog import built_in_names, head_class
from detectors.testing import HeadContract
from tests.helpers.worked_example import load_example

RECONSTRUCTION = {"width": 16, "latent": 16, "batch_size": 4, "epochs": 10, "learning_rate": 5e-3}
QUICK: dict[str, dict[str, Any]] = {
    "autoencoder": RECONSTRUCTION,
    "cflow": {"coupling_blocks": 2, "condition_dimension": 8, "fibre_batch": 256, "epochs": 2, "learning_rate": 0.02},
    "cutpaste": {"batch": 8, "steps": 6, "epochs": 2},
    "fastflow": {"flow_steps": 2, "epochs": 3, "batch_size": 4},
    "ganomaly": RECONSTRUCTION,
    "padim": {"n_features": 12},
    "vae": RECONSTRUCTION,
}
"""Settings that keep a head's fit short; the defaults where a head is not listed."""


class TestAutoencoder(HeadContract):
    head, settings = head_class("autoencoder"), QUICK["autoencoder"]


class TestCflow(HeadContract):
    head, settings = head_class("cflow"), QUICK["cflow"]


class TestCutpaste(HeadContract):
    head, settings = head_class("cutpaste"), QUICK["cutpaste"]


class TestFastflow(HeadContract):
    head, settings = head_class("fastflow"), QUICK["fastflow"]


class TestGanomaly(HeadContract):
    head, settings = head_class("ganomaly"), QUICK["ganomaly"]


class TestPadim(HeadContract):
    head, settings = head_class("padim"), QUICK["padim"]


class TestPatchcore(HeadContract):
    head = head_class("patchcore")


class TestPatchcoreInWindows(HeadContract):
    head = head_class("patchcore")
    settings: ClassVar[dict[str, Any]] = {
        "window": 1,
        "normalize": "l2",
        "bank_precision": "float16",
        "top_share": 0.05,
        "coreset_ratio": 0.2,
    }


class TestSpade(HeadContract):
    head = head_class("spade")


class TestVae(HeadContract):
    head, settings = head_class("vae"), QUICK["vae"]


class TestWorkedExample(HeadContract):
    head = load_example()


def test_every_head_is_held_to_the_contract() -> None:
    held = {test.head.name for test in HeadContract.__subclasses__() if test.__module__ == __name__}
    assert held == {*built_in_names(), "diagonal"}
