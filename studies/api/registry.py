"""Moves in the model registry: through the gate to champion, back again, and fitted anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detectors.errors import InputError
from studies.api.driving import refit
from studies.home import Home, home_at
from studies.release.locate import open_home, open_view, saved_detector
from studies.release.promotion import Promoter, Promotion, open_registry
from studies.release.retrain import Retrained
from studies.release.retrain import retrain as fit_anew
from studies.search.view import StudyView, TrialView
from tracking.patience import Patience
from tracking.registry import CHAMPION, Version

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Retraining:
    """What came of a retraining."""

    version: Version
    """The challenger that was registered."""
    champion: Version
    """Whose configuration was fitted."""
    fitted: Retrained


def promote(
    name: str,
    *,
    trial: int | None = None,
    version: str | int | None = None,
    to: str | None = None,
    dry_run: bool = False,
    force: str | None = None,
    device: str = "auto",
    home: str | Path | None = None,
    progress: Progress = lambda text: None,
    remark: Progress = lambda text: None,
) -> Promotion:
    """Register a study's detector and make it the champion of its model, if it passes the gate.

    Args:
        name: a study, ``STUDY/product``, or with `version` a registered model.
        trial: another trial than the selected one; it is fitted once more and scored on test.
        version: number or alias of a version that is registered already, such as one of `retrain`.
        to: another registered model that gets a copy.
        dry_run: measure only; nothing is registered or moved.
        force: why it is to become the champion even if the gate refuses it; goes on record with what it was refused for. It
            does not help a model that has no threshold, does not answer, or is not the one that was saved.
        device: where the models are measured: ``"auto"``, ``"cpu"`` or ``"cuda:N"``.
        home: where studies are kept; default ``STUDY_HOME`` or ``./outputs``.
        progress: called with a line for each step.
        remark: called with a line when the registry is away for a while.

    Returns:
        What came of it: ``promoted``, ``refused``, ``reasons``, ``forced``, ``version``, and the gate's ``report`` with a line
        for each rule; None where the version is the champion already.

    Raises:
        InputError: no saved detector, no such version, images that changed since, or, unless it is forced, images of another
            product than the registered model's.

    >>> import studies
    >>> outcome = studies.promote("tiny", dry_run=True, device="cpu")
    >>> outcome.model, outcome.promoted
    ('tiny', False)
    """
    if version is not None and trial is not None:
        raise InputError("a version and a trial contradict each other; give one of them")
    reason = check_force(force)
    if version is None:
        study, _, product = name.partition("/")
        view = open_view(study, home_at(home))
        return promote_trial(
            view,
            product=product,
            trial=trial,
            to=to,
            dry_run=dry_run,
            force=force,
            device=device,
            progress=progress,
            remark=remark,
        )
    promoter = _promoter(home_at(home), device, progress, remark)
    return promoter.promote_version(promoter.registry.version(name, str(version)), to=to, dry_run=dry_run, force=reason)


def promote_trial(
    view: StudyView,
    *,
    product: str = "",
    trial: int | None = None,
    to: str | None = None,
    dry_run: bool = False,
    force: str | None = None,
    device: str = "auto",
    progress: Progress = lambda text: None,
    remark: Progress = lambda text: None,
) -> Promotion:
    """`promote` for a study that is open already."""
    reason = check_force(force)
    promoter = _promoter(view.home, device, progress, remark)
    chosen = view.selected() if trial is None else _with_detector(view, trial, promoter)
    study = view.study.study_name
    if trial is None and (usable := view.usable()) is not None and usable.provisional:
        is_judged = usable.state == "COMPLETE"
        other = f"; --trial {usable.number} fits that trial once more and scores it on test" if is_judged else ""
        raise InputError(
            f"study {study!r} has a provisional detector only, which is not promoted: `study run {study}` ends the search with a "
            f"refit{other}"
        )
    saved_detector(chosen, study, product)
    assert chosen is not None
    return promoter.promote_trial(view, chosen, product=product, to=to, dry_run=dry_run, force=reason)


def check_force(force: str | None) -> str:
    """The reason for which a promotion is forced, in one line; empty where it is not. Raises `InputError` for an empty one."""
    if force is None:
        return ""
    if not (reason := " ".join(force.split())):
        raise InputError(
            "force: give the reason, which goes on record, such as 'new lamp, the champion stops every part'"
        )
    return reason


def rollback(
    model: str, *, reason: str = "", home: str | Path | None = None, progress: Progress = lambda text: None,
    remark: Progress = lambda text: None,
) -> tuple[Version, Version]:  # fmt: skip
    """Make the champion before this one the champion again; the same call undoes it.

    Args:
        model: a registered model.
        reason: goes on record.

    Returns:
        The champion now, and the one before.

    Raises:
        InputError: no such model, or no former champion.

    >>> import studies
    >>> studies.rollback("nothing")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    detectors.errors.InputError: ...
    """
    return _promoter(home_at(home), "cpu", progress, remark).roll_back(model, reason=reason)


def retrain(
    model: str,
    *,
    images: str | Path | None = None,
    only_new: bool = False,
    device: str = "auto",
    weights_dir: str | Path | None = None,
    home: str | Path | None = None,
    progress: Progress = lambda text: None,
    remark: Progress = lambda text: None,
) -> Retraining:
    """Fit the champion's configuration on new good images, and register the outcome as challenger.

    The threshold rests on the new images alone, each scored by a detector that was fitted without it.

    Args:
        model: a registered model that has a champion.
        images: folder of new good images; None fits the study's own once more.
        only_new: leave the study's own images out of the fit.
        device: ``"auto"``, ``"cpu"`` or ``"cuda:N"``.
        weights_dir: folder with the weights of a network that the detector starts from.

    Returns:
        What came of it: ``version``, ``champion``, and ``fitted`` with its ``warnings``, such as a threshold that jumped.

    Raises:
        InputError: no champion, too few or unreadable images, one that is among those of the study.

    >>> import studies
    >>> studies.retrain("nothing", images="parts")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    detectors.errors.InputError: ...
    """
    promoter = _promoter(home_at(home), device, progress, remark)
    champion = promoter.registry.version(model, CHAMPION)
    view, product = promoter.study_of(champion)
    fitted = fit_anew(
        promoter.load(champion),
        view,
        product,
        promoter.home,
        images=Path(images).expanduser().absolute() if images else None,
        only_new=only_new,
        device=promoter.device,
        weights_dir=Path(weights_dir).expanduser().absolute() if weights_dir else None,
        tell=promoter.tell,
    )
    return Retraining(promoter.register_retrained(champion, fitted), champion, fitted)


def _promoter(home: Home, device: str, progress: Progress, remark: Progress) -> Promoter:
    place, storage = open_home(home)
    return Promoter(place, storage, open_registry(place, patience=Patience(tell=remark)), device=device, tell=progress)


def _with_detector(view: StudyView, number: int, promoter: Promoter) -> TrialView:
    """A trial with its detector: one that was not selected is fitted once more, scored on test, and saved."""
    chosen = next((trial for trial in view.trials() if trial.number == number), None)
    if chosen is not None and chosen.detectors:
        return chosen
    promoter.tell(f"fitting trial {number} of {view.study.study_name} once more, and scoring it on test")
    return refit(view, number, device=str(promoter.device))
