"""Promotion: a trial of a study is registered, measured by the gate, and made the champion of its registered model.

The registered model has the name of the study, or ``study--product`` if the study has several products. A process that does this
may be killed at any moment and started again: see `tracking.registry`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from detectors.data.samples import file_sha256
from detectors.errors import InputError
from detectors.files import write_json, write_text
from detectors.head_texts import look_in
from detectors.runtime.artifact import DESCRIPTION, Artifact, is_artifact, load_artifact
from detectors.runtime.devices import choose_device
from detectors.scoring.operating_point import Threshold
from studies.home import Home
from studies.release.gate import Contender
from studies.release.gate_report import GateReport
from studies.release.retrain import Retrained
from studies.release.rules import Rule, product_rule
from studies.release.same_product import EXPERIMENT, PRODUCT, ProductImages, other_product
from studies.release.study_gate import open_gate
from studies.search import nested
from studies.search import storage as studies_storage
from studies.search.lease import Lease
from studies.search.patient_storage import PatientStorage
from studies.search.summary import headline
from studies.search.view import StudyView, TrialView
from studies.worker.jobs import DETECTOR
from tracking.patience import Patience
from tracking.registered_models import Source, Version
from tracking.registry import CHAMPION, Registry

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_ -]{0,127}")
RENDERED = "rendered/"
"""Beginning of the experiments on images that a program drew."""
STUDY_UID, TRIAL, ORIGINAL = "study.uid", "trial.number", "detector.folder"
"""Tags of a version: where it comes from, and the folder in which its detector was saved first."""

KEPT_TAGS = ("study.name", STUDY_UID, TRIAL, EXPERIMENT, "detector", "backbone")
"""Tags that a version which is fitted again takes over from its champion."""

GATE_METRICS = ("image_auroc", "image_recall", "false_alarm_rate")
"""Figures of the test images that become tags of a version, as ``gate.image_auroc``."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Promotion:
    """The outcome of a promotion."""

    model: str
    """Name of the registered model."""
    version: Version | None
    """The version; None in a dry run of a trial that is not registered."""
    report: GateReport | None
    """What the gate decided; None if the version was the champion already."""
    promoted: bool
    """Whether the version became the champion."""
    before: Version | None
    """The champion before; None if there was none."""
    forced: str = ""
    """Why a person had it promoted though the gate refused it; empty where that is not so."""

    @property
    def reasons(self) -> list[str]:
        """Why the gate refused it; empty where it passed, or was the champion already."""
        return [] if self.report is None else list(self.report.reasons)

    @property
    def refused(self) -> bool:
        """Whether the gate refused the version, and nobody had it promoted all the same."""
        return self.report is not None and not self.report.passed and not self.forced


def open_registry(home: Home, *, patience: Patience | None = None) -> Registry:
    """The registry of a home.

    Args:
        patience: how long to wait for a store that does not answer, and how to report it; default as `Patience()`.

    Raises:
        InputError: the store cannot be opened.
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
    """Promotes, rolls back and registers models of one home."""

    def __init__(
        self,
        home: Home,
        storage: PatientStorage,
        registry: Registry,
        *,
        device: str = "auto",
        tell: Tell = lambda text: None,
    ) -> None:
        """Args:
        storage: of the studies; its database also holds the locks of models.
        device: on which the gate measures: ``auto``, ``cpu`` or ``cuda``.
        tell: called with a line about each step.
        """
        self.home, self.storage, self.registry = home, storage, registry
        self.device, self.tell = choose_device(device), tell

    def promote_trial(
        self,
        view: StudyView,
        trial: TrialView,
        *,
        product: str = "",
        to: str | None = None,
        dry_run: bool = False,
        force: str = "",
    ) -> Promotion:
        """Register a trial and promote it if the gate passes it.

        Args:
            product: in a study of several products, which one.
            to: another registered model, which gets a copy and with whose champion the trial is compared.
            dry_run: measure only; nothing is registered or moved.
            force: why it is to be promoted even if the gate refuses it; goes on record. It does not help a model that has no
                threshold, does not answer, or is not the one that was saved.

        Raises:
            InputError: the images changed, a model from rendered images is to become one of another name, or without `force`
                the images are of another product than the model's.
        """
        detector = trial.detectors[product]
        study_model = model_name(view, product)
        target = check_name(to) if to else study_model
        if to and to != study_model and view.header.experiment.startswith(RENDERED):
            raise InputError(
                f"study {view.study.study_name!r} ran on rendered images, which are a demonstration: its models cannot "
                f"become versions of {to!r}; run a study on real images"
            )
        images = ProductImages.of_study(view, product)
        with self.held(target, *([study_model] if target != study_model else [])):
            champion = self._champion(target)
            objections = self._objections(f"trial {trial.number}", images, target, None, force)
            if dry_run:
                contender = Contender(f"trial {trial.number}", detector, trial=trial.number)
                gate = open_gate(view, product, self.home, self.device, self.tell)
                report = gate.judge(target, contender, self._contender(champion), objections=objections)
                return _undone(Promotion(target, None, report, promoted=False, before=champion), force)
            version = self.registry.register(study_model, self._source(view, trial, product))
            if target != study_model:
                version = self.registry.copy(version, target)
            return self._promote(version, view, product, objections, force)

    def promote_version(
        self, version: Version, *, to: str | None = None, dry_run: bool = False, force: str = ""
    ) -> Promotion:
        """Promote a version that is registered already, such as one of ``study retrain``, if the gate passes it.

        Arguments and errors as in `promote_trial`.
        """
        target = check_name(to) if to else version.name
        if target != version.name and version.tags.get(EXPERIMENT, "").startswith(RENDERED):
            raise InputError(
                f"{version} was made from rendered images, which are a demonstration: it cannot become a version of {to!r}"
            )
        view, product = self.study_of(version)
        with self.held(target):
            champion = self._champion(target)
            images = ProductImages.of_study(view, product)
            objections = self._objections(str(version), images, target, version, force)
            if dry_run:
                before = self._contender(champion, but=version)
                gate = open_gate(view, product, self.home, self.device, self.tell)
                report = gate.judge(target, self.contender(version), before, objections=objections)
                return _undone(Promotion(target, version, report, promoted=False, before=champion), force)
            if target != version.name:
                version = self.registry.copy(version, target)
            return self._promote(version, view, product, objections, force)

    def roll_back(self, name: str, *, reason: str = "") -> tuple[Version, Version]:
        """Swap champion and previous, under the lock of the model; returns and errors as in `Registry.roll_back`."""
        with self.held(name):
            return self.registry.roll_back(name, reason=reason)

    @contextmanager
    def held(self, *names: str) -> Iterator[None]:
        """Lock models against other promotions on this and other machines, and finish a promotion that was cut off.

        Raises:
            InputError: another process holds one of them; the message names it.
        """
        if not names:
            yield
            return
        lease = Lease(self.storage.engine, f"model/{names[0]}"[:128], what=f"the promotion of model {names[0]!r}")
        with lease.hold(self.tell), self.held(*names[1:]):
            if self.registry.settle(names[0]):
                self.tell(f"model {names[0]!r}: finished a promotion that was cut off")
            yield

    def study_of(self, version: Version) -> tuple[StudyView, str]:
        """The study that a version comes from, and the product within it.

        Raises:
            InputError: the storage does not hold the study.
        """
        uid = version.tags.get(STUDY_UID, "")
        stored = studies_storage.find_by_uid(self.storage, uid)
        if stored is None:
            raise InputError(
                f"{version} comes from a study that the storage {self.home.storage_url.partition('://')[0]} does not hold "
                f"({uid or 'no uid'}); use the STUDY_HOME or STUDY_STORAGE that it was run with"
            )
        return StudyView(*stored, self.home), version.tags.get(PRODUCT, "")

    def contender(self, version: Version) -> Contender:
        """A version as a contender for the gate; its files are fetched."""
        saved = Path(version.tags.get(ORIGINAL, ""))
        return Contender(
            label=f"version {version.version}",
            folder=self.registry.fetch(version),
            original=saved if version.tags.get(ORIGINAL) and is_artifact(saved) else None,
            model=self.registry.fetch_model(version),
            trial=_trial_number(version),
            version=f"{version.name}/{version.version}",
        )

    def load(self, version: Version) -> Artifact:
        """The detector of a version, on the CPU."""
        return load_artifact(self.registry.fetch(version))

    def register_retrained(self, champion: Version, retrained: Retrained) -> Version:
        """Register a champion that was fitted again as a challenger."""
        kept = {name: champion.tags[name] for name in (*KEPT_TAGS, PRODUCT) if name in champion.tags}
        source = Source(
            key=f"retrained/{file_sha256(retrained.folder / DESCRIPTION)}",
            folder=retrained.folder,
            run_id=champion.run_id,
            description=f"Version {champion.version} fitted again, with {retrained.new} new images.",
            tags={**kept, ORIGINAL: str(retrained.folder), "retrained.from": champion.version},
        )
        with self.held(champion.name):
            return self.registry.register(champion.name, source)

    def origins(self, version: Version) -> list[Path]:
        """Folders of the jobs that may have made a version's detector: where it was saved first, and its trial's refit."""
        folders = [Path(version.tags[ORIGINAL]).parent] if version.tags.get(ORIGINAL) else []
        view, product = self.study_of(version)
        for trial in view.trials():
            if str(trial.number) == version.tags.get(TRIAL) and product in trial.detectors:
                folders.append(trial.detectors[product].parent)
        return [folder for folder in folders if (folder / DETECTOR / DESCRIPTION).is_file()]

    def register_rethresholded(self, version: Version, folder: Path, threshold: Threshold) -> Version:
        """Register a version's detector that was given another threshold as a challenger.

        Args:
            folder: of the detector with that threshold.
        """
        kept = {name: version.tags[name] for name in (*KEPT_TAGS, PRODUCT) if name in version.tags}
        source = Source(
            key=f"threshold/{file_sha256(folder / DESCRIPTION)}",
            folder=folder,
            run_id=version.run_id,
            description=f"Version {version.version} with the threshold {threshold.value:.6g}.",
            tags={**kept, ORIGINAL: str(folder), "threshold.from": version.version},
        )
        with self.held(version.name):
            return self.registry.register(version.name, source)

    # --- steps

    def _promote(
        self, version: Version, view: StudyView, product: str, objections: list[Rule], force: str
    ) -> Promotion:
        """Measure a registered version against the champion of its model, and promote it or record the refusal."""
        champion = self._champion(version.name)
        if champion is not None and champion.version == version.version:
            return Promotion(version.name, version, None, promoted=False, before=champion)
        report = open_gate(view, product, self.home, self.device, self.tell).judge(
            version.name, self.contender(version), self._contender(champion), objections=objections
        )
        forced = force if not report.passed and report.forcible else ""
        report = replace(report, forced=forced)
        details = self._keep(report, version)
        promoted = report.passed or bool(forced)
        if promoted:
            self.tell(f"the gate {'passed' if report.passed else 'refused'} version {version.version}")
            version = self.registry.promote(version, details=details)
        else:
            self.registry.refuse(version, details=details)
        return Promotion(version.name, version, report, promoted=promoted, before=champion, forced=forced)

    def _objections(
        self, label: str, images: ProductImages, target: str, version: Version | None, force: str
    ) -> list[Rule]:
        """What speaks against a model before it is measured. Raises `InputError` for another product's unless it is forced."""
        objection = other_product(self.registry, label, images, target, version)
        if objection and not force:
            raise InputError(
                f"{objection}; name another model with --to, or if both show the same product, say so with --force REASON"
            )
        return [product_rule(objection)] if objection else []

    def _keep(self, report: GateReport, version: Version) -> dict[str, Any]:
        """Store a report with the version. Returns what the audit file keeps of it."""
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
            **{f"gate.{name}": _figure(report, name) for name in GATE_METRICS},
            **({"gate.nested_image_auroc": _nested_figure(report)} if report.nested is not None else {}),
            "gate.forced": report.forced[:4000],
            "gate.warnings": "; ".join(report.warnings)[:4000],
            "gate.difference": "" if report.difference is None else " ".join(f"{v:+.6f}" for v in report.difference),
            "gate.latency_ms_p95": f"{report.challenger.latency.latency_ms_p95:.2f}",
            "gate.size_mb": f"{report.challenger.size_mb:.2f}",
            "gate.test_digest": report.test.digest,
        }
        self.registry.tag(version, tags)
        forced = {"forced": report.forced} if report.forced else {}
        return {"gate": tags["gate.verdict"], "reasons": report.reasons, **forced, "report": str(folder)}

    def _champion(self, name: str) -> Version | None:
        return self.registry.find(name, CHAMPION)

    def _contender(self, version: Version | None, *, but: Version | None = None) -> Contender | None:
        """The champion as a contender; None if there is none, or if it is the version `but`."""
        if version is None or (but is not None and (version.name, version.version) == (but.name, but.version)):
            return None
        return Contender(
            f"champion, version {version.version}",
            self.registry.fetch(version),
            trial=_trial_number(version),
            version=f"{version.name}/{version.version}",
        )

    def _source(self, view: StudyView, trial: TrialView, product: str) -> Source:
        """The detector of a trial as the source of a version."""
        folder, header = trial.detectors[product], view.header
        test = trial.test_metrics if not product else {}
        estimate = view.nested() if trial.selected else None
        judged = "test" if view.keeps_test else "validation"
        figures = f"On test: {on_test}" if (on_test := headline(test, "test")) else ""
        if estimate is not None:
            figures = f"By a {nested.CALLED}: {nested.headline(estimate)}"
        # The description contains the digests of all tensors, and where the detector comes from.
        digest = file_sha256(folder / DESCRIPTION)
        return Source(
            key=f"{header.uid}/{trial.number}/{product}/{digest[:32]}",
            folder=folder,
            run_id=self.registry.run_of_trial(header.experiment, header.uid, trial.number),
            description=f"{trial.detector_name}, trial {trial.number} of study {view.study.study_name}"
            + (f", {product}" if product else "")
            + (f". {figures}." if figures else "."),
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
            metrics={name: value for name, value in test.items() if name.startswith("test/")}
            | (estimate.metrics if estimate else {}),
            dataset=(header.experiment, header.identity["data"][f"{product}/{judged}" if product else judged][:32]),
        )


def model_name(view: StudyView, product: str = "") -> str:
    """Name of the registered model of a study's detectors; all runs of a study (NAME, NAME#2 ...) share one."""
    name = view.config.name
    # MLflow does not accept some characters, such as dots.
    return re.sub(r"[^A-Za-z0-9_ -]", "-", f"{name}--{product}" if product else name)


def check_name(name: str) -> str:
    """Return the name of a model.

    Raises:
        InputError: MLflow or a file system would not accept it.
    """
    if not MODEL_NAME.fullmatch(name):
        raise InputError(f"model name {name!r}: use letters, digits, _ - and spaces, at most 128 of them")
    return name


def _figure(report: GateReport, name: str) -> str:
    """A metric of the challenger as a tag; empty where it is not known."""
    value = report.challenger.evaluation.metrics.get(name)
    return "" if value is None else f"{value:.6f}"


def _nested_figure(report: GateReport) -> str:
    """The nested estimate of the image AUROC as a tag; empty where it is not known."""
    value = (report.nested or {}).get("nested/image_auroc")
    return "" if value is None else f"{value:.6f}"


def _trial_number(version: Version) -> int:
    """Number of the trial that a version comes from; -1 where its tags do not say."""
    number = version.tags.get(TRIAL, "")
    return int(number) if number.isdecimal() else -1


def _undone(outcome: Promotion, force: str) -> Promotion:
    """The outcome of a dry run, with what `force` would do."""
    report = outcome.report
    if not force or report is None or report.passed or not report.forcible:
        return outcome
    return replace(outcome, report=replace(report, forced=force), forced=force)
