"""From a study's trial to the champion of a registered model: register, gate, promote; or say why not.

The registered model is named like the study, with several products ``study--product``. Everything here may be killed at any
moment and called again: see `tracking.registry`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from detectors.data.samples import file_sha256
from detectors.errors import InputError
from detectors.files import write_json, write_text
from detectors.head_files import look_in
from detectors.runtime.artifact import DESCRIPTION, Artifact, is_artifact, load_artifact
from detectors.runtime.devices import choose_device
from detectors.runtime.latency import DeviceLock
from studies.file import datasets
from studies.home import Home
from studies.release.gate import Contender, Gate, GateReport
from studies.release.retrain import Retrained
from studies.search import storage as studies_storage
from studies.search.lease import Lease
from studies.search.patient_storage import PatientStorage
from studies.search.summary import headline
from studies.search.view import StudyView, TrialView
from studies.worker.trial import environment
from tracking.patience import Patience
from tracking.registry import CHAMPION, Registry, Source, Version

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_ -]{0,127}")
RENDERED = "rendered/"
STUDY_UID, TRIAL, PRODUCT, EXPERIMENT, ORIGINAL = (
    "study.uid",
    "trial.number",
    "product",
    "study.data",
    "detector.folder",
)
"""Tags of a version: where it comes from, and where its detector was saved first."""

KEPT_TAGS = ("study.name", STUDY_UID, TRIAL, EXPERIMENT, "detector", "backbone")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Promotion:
    """What came of it."""

    model: str
    version: Version | None
    """None in a dry run of a trial that is not registered."""
    report: GateReport | None
    """None where the version was the champion already."""
    promoted: bool
    before: Version | None
    """The champion before."""

    @property
    def refused(self) -> bool:
        """Whether the gate said no."""
        return self.report is not None and not self.report.passed


def open_registry(home: Home, *, patience: Patience | None = None) -> Registry:
    """The registry of a home.

    Args:
        patience: for how long a store that is away is waited for, and who hears of it.

    Raises:
        InputError: its store cannot be opened.
    """
    look_in(home.heads)
    return Registry(
        home.tracking_uri,
        audit=home.root / "registry.jsonl",
        cache=home.root / "models",
        lock_folder=home.locks,
        artifacts=home.mlflow_artifacts,
        patience=patience,
    )


class Promoter:
    """Moves models of one home through its registry."""

    def __init__(
        self,
        home: Home,
        storage: PatientStorage,
        registry: Registry,
        *,
        device: str = "auto",
        tell: Tell = lambda text: None,
    ) -> None:
        self.home, self.storage, self.registry = home, storage, registry
        self.device, self.tell = choose_device(device), tell

    def promote_trial(
        self, view: StudyView, trial: TrialView, *, product: str = "", to: str | None = None, dry_run: bool = False
    ) -> Promotion:
        """Take a study's trial through the gate.

        Args:
            product: of a study over several products.
            to: another registered model that gets a copy and whose champion is measured against.
            dry_run: measure only; nothing is registered or moved.

        Raises:
            InputError: no saved detector, images that changed, a demonstration that is to go elsewhere.
        """
        detector = trial.detectors[product]
        own = model_name(view, product)
        target = check_name(to) if to else own
        if to and to != own and view.header.experiment.startswith(RENDERED):
            raise InputError(
                f"study {view.study.study_name!r} ran on rendered images, a demonstration: its models cannot become "
                f"versions of {to!r}; run a study on real images"
            )
        with self.held(target, *([own] if target != own else [])):
            champion = self._champion(target)
            if dry_run:
                report = self._gate(view, product).judge(
                    target, Contender(f"trial {trial.number}", detector), self._contender(champion)
                )
                return Promotion(target, None, report, promoted=False, before=champion)
            version = self.registry.register(own, self._source(view, trial, product))
            if target != own:
                version = self.registry.copy(version, target)
            return self._promote(version, view, product)

    def promote_version(self, version: Version, *, to: str | None = None, dry_run: bool = False) -> Promotion:
        """Take a version that is registered already, such as one of ``study retrain``, through the gate."""
        target = check_name(to) if to else version.name
        if target != version.name and version.tags.get(EXPERIMENT, "").startswith(RENDERED):
            raise InputError(
                f"{version} was made from rendered images, a demonstration: it cannot become a version of {to!r}"
            )
        view, product = self.study_of(version)
        with self.held(target):
            champion = self._champion(target)
            if dry_run:
                report = self._gate(view, product).judge(
                    target, self.contender(version), self._contender(champion, but=version)
                )
                return Promotion(target, version, report, promoted=False, before=champion)
            if target != version.name:
                version = self.registry.copy(version, target)
            return self._promote(version, view, product)

    def roll_back(self, name: str, *, reason: str = "") -> tuple[Version, Version]:
        """Swap champion and previous; the champion now, and the one before."""
        with self.held(name):
            return self.registry.roll_back(name, reason=reason)

    @contextmanager
    def held(self, *names: str) -> Iterator[None]:
        """Hold models against other promotions, on this and other machines. Raises `InputError` naming who is at it."""
        if not names:
            yield
            return
        lease = Lease(self.storage.engine, f"model/{names[0]}"[:128], what=f"the promotion of model {names[0]!r}")
        with lease.hold(self.tell), self.held(*names[1:]):
            if self.registry.settle(names[0]):
                self.tell(f"model {names[0]!r}: finished a promotion that was cut off")
            yield

    def study_of(self, version: Version) -> tuple[StudyView, str]:
        """The study that a version comes from, and the product within it. Raises `InputError` where it is not here."""
        uid = version.tags.get(STUDY_UID, "")
        found = studies_storage.find_by_uid(self.storage, uid)
        if found is None:
            raise InputError(
                f"{version} comes from a study that the storage {self.home.storage_url.partition('://')[0]} does not hold "
                f"({uid or 'no uid'}); use the STUDY_HOME or STUDY_STORAGE that it was run with"
            )
        return StudyView(*found, self.home), version.tags.get(PRODUCT, "")

    def contender(self, version: Version) -> Contender:
        """A version, fetched, for the gate."""
        saved = Path(version.tags.get(ORIGINAL, ""))
        return Contender(
            label=f"version {version.version}",
            folder=self.registry.fetch(version),
            original=saved if version.tags.get(ORIGINAL) and is_artifact(saved) else None,
            model=self.registry.fetch_model(version),
        )

    def load(self, version: Version) -> Artifact:
        """A version's detector, on the CPU."""
        return load_artifact(self.registry.fetch(version))

    def register_retrained(self, champion: Version, found: Retrained) -> Version:
        """The version of a champion that was fitted anew, as challenger."""
        kept = {name: champion.tags[name] for name in (*KEPT_TAGS, PRODUCT) if name in champion.tags}
        source = Source(
            key=f"retrained/{file_sha256(found.folder / DESCRIPTION)}",
            folder=found.folder,
            run_id=champion.run_id,
            description=f"Version {champion.version} fitted anew, with {found.new} new images.",
            tags={**kept, ORIGINAL: str(found.folder), "retrained.from": champion.version},
        )
        with self.held(champion.name):
            return self.registry.register(champion.name, source)

    # --- how

    def _promote(self, version: Version, view: StudyView, product: str) -> Promotion:
        champion = self._champion(version.name)
        if champion is not None and champion.version == version.version:
            return Promotion(version.name, version, None, promoted=False, before=champion)
        report = self._gate(view, product).judge(version.name, self.contender(version), self._contender(champion))
        details = self._keep(report, version)
        if report.passed:
            self.tell(f"the gate passed version {version.version}")
            version = self.registry.promote(version, details=details)
        else:
            self.registry.refuse(version, details=details)
        return Promotion(version.name, version, report, promoted=report.passed, before=champion)

    def _keep(self, report: GateReport, version: Version) -> dict[str, Any]:
        """Store a report with the version; returns what the record says of it."""
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        folder = self.home.root / "gates" / version.name / f"{version.version}-{moment}"
        write_json(folder / "gate.json", report.to_json())
        write_text(folder / "gate.md", report.to_markdown())
        if version.run_id:
            self.registry.add_files(version.run_id, folder, f"gate/{version.name}-{version.version}-{moment}")
        tags = {
            "gate.verdict": "passed" if report.passed else "refused",
            "gate.time": report.time,
            "gate.reasons": "; ".join(report.reasons)[:4000],
            "gate.champion": report.champion.label if report.champion else "",
            "gate.image_auroc": "" if report.challenger.auroc is None else f"{report.challenger.auroc:.6f}",
            "gate.difference": "" if report.difference is None else " ".join(f"{v:+.6f}" for v in report.difference),
            "gate.latency_ms_p95": f"{report.challenger.latency.latency_ms_p95:.2f}",
            "gate.size_mb": f"{report.challenger.size_mb:.2f}",
            "gate.test_digest": report.test.digest,
        }
        self.registry.tag(version, tags)
        return {"gate": tags["gate.verdict"], "reasons": report.reasons, "report": str(folder)}

    def _gate(self, view: StudyView, product: str) -> Gate:
        """The gate on the study's own test images. Raises `InputError` where these are not what they were."""
        config = view.config
        images = datasets.load(config, self.home)
        part = next(part for part in images.parts if product in ("", part.category))
        key = f"{product}/test" if product else "test"
        wanted = view.header.identity["data"].get(key)
        if part.splits.test.digest != wanted:
            raise InputError(
                f"the test images of {part.dataset.name}/{part.category} in {part.dataset.root} are not those that the "
                "study was run with; restore them, or run a new study (--fresh)"
            )
        return Gate(
            config=config.gate,
            test=part.splits.test,
            data=f"{part.dataset.name}/{part.category}",
            device=self.device,
            lock=DeviceLock(self.home.locks, self.device),
            seed=config.sampler.seed,
            environment=environment(self.device),
            progress=self.tell,
        )

    def _champion(self, name: str) -> Version | None:
        return self.registry.find(name, CHAMPION)

    def _contender(self, version: Version | None, *, but: Version | None = None) -> Contender | None:
        if version is None or (but is not None and (version.name, version.version) == (but.name, but.version)):
            return None
        return Contender(f"champion, version {version.version}", self.registry.fetch(version))

    def _source(self, view: StudyView, trial: TrialView, product: str) -> Source:
        folder, header = trial.detectors[product], view.header
        test = trial.test_metrics if not product else {}
        told = headline(test, "test")
        # The description holds digests of all tensors, and where the detector comes from.
        digest = file_sha256(folder / DESCRIPTION)
        return Source(
            key=f"{header.uid}/{trial.number}/{product}/{digest[:32]}",
            folder=folder,
            run_id=self.registry.run_of_trial(header.experiment, header.uid, trial.number),
            description=f"{trial.detector_name}, trial {trial.number} of study {view.study.study_name}"
            + (f", {product}" if product else "")
            + (f". On test: {told}." if told else "."),
            tags={
                "study.name": view.study.study_name,
                STUDY_UID: header.uid,
                TRIAL: str(trial.number),
                EXPERIMENT: header.experiment,
                "detector": trial.detector_name,
                "backbone": str(trial.params.get("backbone", "")),
                ORIGINAL: str(folder),
                **({PRODUCT: product} if product else {}),
            },
            metrics={name: value for name, value in test.items() if name.startswith("test/")},
            dataset=(header.experiment, header.identity["data"][f"{product}/test" if product else "test"][:32]),
        )


def model_name(view: StudyView, product: str = "") -> str:
    """Of the registered model that a study's detectors become versions of."""
    name = view.config.name  # every generation of a study competes for the same place
    # MLflow takes no dots, among others.
    return re.sub(r"[^A-Za-z0-9_ -]", "-", f"{name}--{product}" if product else name)


def check_name(name: str) -> str:
    """Raises `InputError` unless MLflow, and every file system, takes the name."""
    if not MODEL_NAME.fullmatch(name):
        raise InputError(f"model name {name!r}: use letters, digits, _ - and spaces, at most 128 of them")
    return name
