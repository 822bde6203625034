"""The report: what it says in every state of a study, that it holds all it needs, and that no text becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from detectors.base import Prediction
from detectors.data.mvtec import read_mvtec
from detectors.data.samples import ImageSet
from detectors.files import write_json
from detectors.scoring.evaluation import LOWER_METRICS, METRICS
from detectors.scoring.metrics import auroc
from detectors.scoring.operating_point import Threshold
from studies.commands import report as report_command
from studies.file.config import validate
from studies.report import charts, phrases
from studies.report.history_chart import history
from studies.report.on_test import products_on_test
from studies.report.page import render
from studies.report.parameter_charts import parallel
from studies.report.search import Search
from studies.report.search_charts import search_charts
from studies.report.study_section import study_section
from studies.report.timeline_chart import timeline
from studies.report.trade_off_chart import trade_off
from studies.search import storage as studies_storage
from studies.search import threshold_words
from studies.search.attributes import JOB, OUTCOME
from studies.search.outcome import StudyFailedError
from studies.search.storage import open_storage
from studies.search.view import StudyView
from studies.worker.jobs import ARTIFACTS, PRODUCTS, RESULT_FILE, read_result
from studies.worker.scores import SCORES_FILE, read_scores, write_scores
from tests.helpers.bench import THREE, Bench, Killed, ScriptedExecutor, Training, quality
from tests.helpers.builders import raw_config
from tests.helpers.command_line import set_home, study
from tests.helpers.grown import grown, open_view

VOID = {"meta", "link", "img", "br", "wbr", "input"}


class Page(HTMLParser):
    """A page in pieces; refuses one whose tags do not close."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = text
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.inside: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            self.inside.setdefault(self._open[-1], []).append(data)
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        """What a person reads."""
        return re.sub(r"\s+", " ", "".join(self.words)).replace("\xa0", " ")

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]


def page_of(*views: StudyView) -> Page:
    page = Page(render(views, made=0.0))
    assert len(set(page.ids)) == len(page.ids)
    links = [link["href"] for link in page.all("a")]
    assert {link for link in links if link.startswith("#")} == set(links)
    assert {link.removeprefix("#") for link in links} <= set(page.ids)
    drawn = [svg for svg in page.all("svg") if svg.get("class") == "chart"]
    assert len(drawn) == page.text.count("As a table")
    assert all(image["alt"] for image in page.all("img"))
    return page


@pytest.fixture
def command(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `finished`, as the place where commands are given."""
    set_home(monkeypatch, finished)
    return finished


@pytest.fixture
def damaged(finished: Path, empty_stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, for a test that changes it, with an MLflow store of its own."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    shutil.copy(empty_stores / "mlflow.db", folder / "home")
    set_home(monkeypatch, folder)
    return folder


# A finished study


def test_the_summary_says_what_counts(finished: Path) -> None:
    view = open_view(finished, "tiny")
    page = page_of(view)
    metrics = view.selected().test_metrics
    figure = f"{metrics['test/image_auroc']:.3f}"
    low, high = (f"{metrics[f'test/image_auroc_{end}']:.3f}" for end in ("low", "high"))
    (test,) = products_on_test(view, view.selected(), id="x")
    found = threshold_words.found(test.counts)
    assert re.fullmatch(r"finds \d of 6 defects at \d false alarms? in 6 good images", found)
    assert (
        f"Selected: PaDiM with resnet18@random (trial 0) {found} on test; image AUROC {figure} "
        f"(95 % interval {low} to {high})."
    ) in page.text
    assert [tile.label for tile in study_section(view, "x").tiles][:3] == [
        "defects found on test",
        "false alarms on test",
        "image AUROC on test",
    ]
    assert "The test set has 12 images that the search never saw, 6 good and 6 defective." in page.text
    assert "The test images were scored once in this study" in page.text
    assert "A backbone has random weights" in page.text
    for word in ("Where it fails", "The search", "All trials", "How it was measured", "study run tiny.yaml --fresh"):
        assert word in page.text
    assert view.header.identity["data"]["test"][:16] in page.text
    assert view.selected().outcome.environment["torch"] in page.text


def test_every_metric_that_a_search_may_aim_at_has_a_name_for_readers() -> None:
    assert {*METRICS, *LOWER_METRICS} <= set(phrases.METRICS)


def test_a_rate_that_few_good_images_cannot_promise_is_not_told_as_kept(finished: Path) -> None:
    view = open_view(finished, "tiny")
    page = page_of(view)
    (test,) = products_on_test(view, view.selected(), id="x")
    threshold = Threshold.from_json(view.selected().final.threshold)
    assert threshold_words.basis(threshold) in page.text
    assert not threshold.supports_rate
    remark = threshold_words.shortfall(threshold)
    assert remark in test.remarks
    assert remark in page.text
    assert "at most 1 %" not in page.text
    assert "1 % of good parts" not in page.text


def test_the_figures_at_the_threshold_are_in_a_table_with_their_intervals(damaged: Path) -> None:
    view = open_view(damaged, "tiny")
    final = view.selected().final
    new = {"test/image_recall": 0.5, "test/image_recall_low": 0.2, "test/image_recall_high": 0.8}
    more = new | {"test/seg_f1": 0.25, "test/pixel_aupro_05": 0.125, "test/image_recall/dent": 0.5}
    write_json(
        view.selected().final_folder / RESULT_FILE,
        final.model_copy(update={"metrics": final.metrics | more}).model_dump(mode="json"),
    )
    (test,) = products_on_test(view, view.selected(), id="x")
    rows = {row[0]: row[1:] for row in test.measures.rows}
    assert rows["recall at the threshold"] == (0.5, "0.200 to 0.800")
    assert rows["pixel F1 at the threshold"] == (0.25, None)
    assert rows["AUPRO up to 5 % false positives"] == (0.125, None)
    assert page_of(view).text.count("Figures on test") == 1


def test_each_types_recall_is_known_without_the_score_of_each_image(damaged: Path) -> None:
    view = open_view(damaged, "tiny")
    final = view.selected().final
    metrics = final.metrics | {"test/image_recall": 0.5, "test/image_recall/dent": 0.5}
    write_json(
        view.selected().final_folder / RESULT_FILE,
        final.model_copy(update={"metrics": metrics}).model_dump(mode="json"),
    )
    (view.selected().final_folder / ARTIFACTS / SCORES_FILE).unlink()
    (test,) = products_on_test(view, view.selected(), id="x")
    assert [(dent.detected, dent.images) for dent in test.defects] == [(3, 6)]


def test_the_page_opens_no_connection_and_runs_only_its_own_script(finished: Path) -> None:
    page = page_of(open_view(finished, "tiny"))
    assert "http:" not in page.source
    assert "https:" not in page.source
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert attributes.get("src", "data:").startswith("data:")
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for kind in ("script", "style"):
        (text,) = page.inside[kind]
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert "unsafe" not in policy


def test_the_figures_on_test_agree_with_the_study(finished: Path) -> None:
    view = open_view(finished, "tiny")
    (test,) = products_on_test(view, view.selected(), id="x")
    scores = read_scores(view.selected().final_folder / ARTIFACTS)
    verdicts = [(image.label, image.verdict) for image in scores.images]
    assert test.confusion.detected == verdicts.count((1, "defective"))
    assert test.confusion.missed == verdicts.count((1, "good"))
    assert test.confusion.false_alarms == verdicts.count((0, "defective"))
    assert test.confusion.passed == verdicts.count((0, "good"))
    assert test.looser == 0.07  # one of 30 good images raises an alarm: 2 of 31 places
    (dent,) = test.defects
    assert (dent.name, dent.images, dent.detected) == ("dent", 6, test.confusion.detected)
    assert dent.auroc == view.selected().test_metrics["test/image_auroc/dent"]
    roc, _, histogram = test.figures
    assert f"{auroc(scores.values, scores.labels):.3f}" in roc.caption
    assert [sum(row[column] for row in histogram.table.rows) for column in (2, 3)] == [6, 6]
    images = [image for group in test.gallery for image in group.images]
    assert len(images) == len(scores.gallery)
    assert all(image.source.startswith("data:image/jpeg;base64,/9j/") for image in images)


def test_protocol_paper_has_curves_and_no_threshold(finished: Path) -> None:
    view = open_view(finished, "defaults")
    page = page_of(view)
    for word in (
        "Best here: PaDiM",
        "The study file lists all settings, and each was scored",
        "What was tried",
    ):
        assert word in page.text
    assert "whole test set" in page.text
    assert "At the threshold" not in page.text
    (test,) = products_on_test(view, view.selected(), id="x")
    assert (test.confusion, test.threshold, test.missing) == (None, "", "")
    assert {image.tag for group in test.gallery for image in group.images} == {"good", "defective"}
    assert [group.title for group in test.gallery] == [
        "Defective parts with the lowest scores", "Good parts with the highest scores", "Typical defective parts",
    ]  # fmt: skip


def test_what_was_not_kept_is_said_with_the_way_to_it(damaged: Path) -> None:
    view = open_view(damaged, "tiny")
    final = view.selected().final_folder
    (final / ARTIFACTS / SCORES_FILE).unlink()
    page = page_of(open_view(damaged, "tiny"))
    assert f"delete the folder {final} and enter study run tiny again" in page.text
    assert "Defects found against false alarms" not in page.text
    assert "At the threshold" in page.text
    # The way leads there.
    shutil.rmtree(final)
    assert (
        "`study run tiny` scores it on test when the search is over."
        in study_section(open_view(damaged, "tiny"), "s").summary
    )
    assert study("run", damaged / "tiny.yaml", "--inline", "--device", "cpu", "--offline").code == 0
    again = page_of(open_view(damaged, "tiny"))
    assert "Defects found against false alarms" in again.text
    assert "The test images were scored twice in this study" in again.text


def test_the_page_says_where_an_image_is_missing(damaged: Path) -> None:
    view = open_view(damaged, "tiny")
    shown = read_scores(view.selected().final_folder / ARTIFACTS).gallery
    (view.selected().final_folder / ARTIFACTS / shown[0].file).unlink()
    page = page_of(view)
    assert page.text.count("The image is no longer in the study's folder.") == 1
    assert len(page.all("img")) == len(shown) - 1


# Other states


def test_a_study_of_two_hundred_trials_stays_small(bench: Bench) -> None:
    bench.run(budget={"trials": 3})
    view = grown(bench.view(), 197)
    page = page_of(view)
    rows = [row for row in page.all("tr") if "data-state" in row]
    assert [row["id"] for row in rows] == [f"s1-t{number}" for number in range(200)]
    assert {row["data-state"] for row in rows} == {"finished", "failed", "pruned"}
    assert len(page.source) < 2e6
    for word in (
        "How the search went",
        "What mattered",
        "What each choice did",
        "Which settings go together",
        "pruning ended",
    ):
        assert word.lower() in page.text.lower()
    assert page.source.count("<b>no</b>") == 0
    assert "exception: <b>no</b> & more" in page.text


def test_a_study_that_has_not_begun(bench: Bench) -> None:
    studies_storage.create_or_resume(open_storage(bench.home), bench.driver().plan, fresh=False)
    page = page_of(bench.view())
    assert "No trial has begun yet. study run tiny starts the search." in page.text
    assert "There are none yet." in page.text
    assert "How the search went" not in page.text


def test_a_running_study_says_that_its_results_are_not_final(bench: Bench) -> None:
    executor = ScriptedExecutor(script=lambda job: Killed() if job.number == 2 else quality(job))
    bench.kill(executor, budget={"trials": 5})
    page = page_of(bench.view())
    assert "1 trial still running" in page.text
    assert "not yet scored on test" in page.text
    assert "On validation, which chose it: image AUROC" in page.text
    bench.kill(ScriptedExecutor(script=lambda job: Killed()), name="other", budget={"trials": 5})
    page = page_of(bench.view("other"))
    assert "No trial is finished yet; 1 trial running." in page.text


def test_a_study_whose_trials_all_failed_shows_why(bench: Bench) -> None:
    executor = ScriptedExecutor(script=lambda job: "exception" if job.number % 2 else "crashed")
    with pytest.raises(StudyFailedError):
        bench.run(executor, budget={"trials": 5})
    view = bench.view()
    page = page_of(view)
    assert "No trial is finished; what failed is listed below." in page.text
    assert "What failed" in page.text
    assert "exception: as the script says" in page.text
    assert str(view.trial_folder(3)) in page.text
    (tile,) = study_section(view, "s").tiles
    assert (tile.label, int(tile.value)) == ("trials failed", len(bench.frozen()))


def test_where_no_trial_meets_the_constraints_nothing_is_selected(bench: Bench) -> None:
    with pytest.raises(StudyFailedError):
        bench.run(budget={"trials": 2}, constraints={"fps": ">= 1000"})
    page = page_of(bench.view())
    assert "None of the 2 finished trials meets the constraints (fps >= 1000), so nothing is selected." in page.text
    assert "No finished trial meets the constraints." in page.text


def test_interrupted_trials_are_explained(bench: Bench) -> None:
    with pytest.raises(KeyboardInterrupt):
        bench.run(ScriptedExecutor(script=lambda job: KeyboardInterrupt()))
    assert "interrupted; the next run repeats it" in page_of(bench.view()).text


def test_pruned_trainings_are_told(bench: Bench) -> None:
    executor = Training(curve=lambda number: 0.9 if number < 5 else 0.1)
    bench.run(executor, pruner={"name": "median", "startup": 2}, budget={"trials": 8})
    page = page_of(bench.view())
    assert re.search(r"8 trials: 5 finished and 3 pruned", page.text)


def test_several_objectives_have_a_front(bench: Bench) -> None:
    def script(job):
        return {"val/image_auroc": job.params["n_features"] / 100, "fps": 100.0 / job.params["n_features"]}

    objectives = {"image_auroc": "maximize", "fps": "maximize"}
    bench.run(ScriptedExecutor(script=script), objectives=objectives, budget={"trials": 4})
    page = page_of(bench.view())
    assert page.text.count("front") >= 4
    figure = trade_off(Search(bench.view(), "s"))
    assert all(row[3] for row in figure.table.rows)


def test_what_an_operator_minimises_is_best_where_it_is_least(bench: Bench) -> None:
    executor = ScriptedExecutor(script=lambda job: {"train_seconds": 10.0 - job.number, "fps": 50.0})
    bench.run(executor, objectives={"train_seconds": "minimize"}, budget={"trials": 3})
    search = Search(bench.view(), "s")
    assert [row[3] for row in history(search).table.rows] == [10.0, 9.0, 8.0]
    assert "It has the lowest seconds to fit on validation" in page_of(bench.view()).text
    assert trade_off(search) is None


def test_a_study_over_choices(bench: Bench) -> None:
    bench.run(search=THREE, fixed={"backbone": "resnet18@random", "n_features": 12}, budget={"trials": 3})
    figure = parallel(Search(bench.view(), "s"))
    assert {"8", "16", "8+16"} <= {mark.text for mark in figure.chart.marks}


# Hostile texts

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>`</code>${{7*7}}"


def test_no_text_becomes_markup(damaged: Path) -> None:
    view = open_view(damaged, "tiny")
    artifacts = view.selected().final_folder / ARTIFACTS
    stored = json.loads((artifacts / SCORES_FILE).read_text())
    for image in stored["images"]:
        image["name"] = f"{EVIL}{image['name']}"
        image["defect_type"] = EVIL if image["label"] else "good"
    write_json(artifacts / SCORES_FILE, stored)
    evil = grown(view, 20)
    optuna_study = optuna.create_study(study_name=EVIL, direction="maximize")
    for trial in evil.study.get_trials():
        if OUTCOME in trial.user_attrs and "failure" in trial.user_attrs[OUTCOME]:
            trial.user_attrs[OUTCOME]["failure"] = EVIL
        trial.user_attrs[JOB]["params"][EVIL] = EVIL if trial.number % 2 else "other"
        optuna_study.add_trial(trial)
    counts = {
        name: {EVIL if kind == "dent" else kind: n for kind, n in found.items()}
        for name, found in view.header.counts.items()
    }
    header = replace(
        view.header, experiment=EVIL, counts=counts, dataset=EVIL, dropped=[EVIL], backbones={EVIL: {"tag": EVIL}}
    )
    page = page_of(StudyView(optuna_study, header, view.home))
    assert page.text.count(EVIL[:25]) > 20
    assert len(page.all("script")) == 1
    assert all(image["src"].startswith("data:image/jpeg") for image in page.all("img"))
    assert "alert" not in page.inside["script"][0]
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
    clean = page_of(StudyView(evil.study, view.header, view.home))
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in clean.tags}


def test_a_gallery_does_not_lead_out_of_its_folder(damaged: Path) -> None:
    view = open_view(damaged, "tiny")
    path = view.selected().final_folder / ARTIFACTS / SCORES_FILE
    stored = json.loads(path.read_text())
    stored["gallery"][0]["file"] = "../../../../studies.db"
    write_json(path, stored)
    assert "The score of each test image was not kept" in page_of(view).text


# Several studies


def test_several_studies_are_compared_first(finished: Path) -> None:
    views = [open_view(finished, name) for name in ("tiny", "defaults")]
    page = page_of(*views)
    assert [heading for heading in page.ids if heading in ("compared", "s1", "s2")] == ["compared", "s1", "s2"]
    assert "These studies were measured on different test images" in page.text
    assert "How certain each figure is" in page.text
    assert "Side by side" in page.text


def test_who_is_better_on_the_same_images_is_tested(damaged: Path, tmp_path: Path) -> None:
    first = open_view(damaged, "tiny")
    renamed = optuna.create_study(study_name="worse", direction="maximize")
    renamed.add_trials(first.study.get_trials())
    second = StudyView(renamed, replace(first.header, uid="another", name="worse"), first.home)
    final = second.final_folder(0)
    shutil.copytree(first.final_folder(0), final)
    stored = json.loads((final / ARTIFACTS / SCORES_FILE).read_text())
    for image in stored["images"]:
        image["score"] *= -1
    write_json(final / ARTIFACTS / SCORES_FILE, stored)
    result = read_result(final)
    metrics = result.metrics | {"test/image_auroc": 1 - result.metrics["test/image_auroc"]}
    write_json(final / RESULT_FILE, result.model_copy(update={"metrics": metrics}).model_dump(mode="json"))
    page = page_of(first, second)
    assert "Which one to use tiny has the highest image AUROC on test" in page.text
    assert "tiny against worse on the same images: +" in page.text
    assert "tiny is better by more than chance would explain." in page.text
    shutil.copy(first.final_folder(0) / ARTIFACTS / SCORES_FILE, final / ARTIFACTS / SCORES_FILE)
    assert "these 12 images do not show which of the two is better." in page_of(first, second).text


def test_a_study_without_a_result_does_not_hide_the_others(bench: Bench, finished: Path) -> None:
    bench.kill(ScriptedExecutor(script=lambda job: Killed()))
    page = page_of(open_view(finished, "defaults"), bench.view())
    assert "Study 'tiny' has no finished trial to compare" in page.text
    assert "Best here" in page.text
    alone = page_of(bench.view(), bench.view())
    assert "How certain each figure is" not in alone.text


# Several products, and defects that were painted


def test_each_product_has_its_own_part(damaged: Path, tiny_mvtec: Path) -> None:
    view = open_view(damaged, "tiny")
    selected = view.selected()
    image_set = ImageSet("test", read_mvtec(tiny_mvtec, "widget").test, (64, 64))
    maps = torch.rand(len(image_set), 64, 64, generator=torch.Generator().manual_seed(0))
    scores = torch.from_numpy(image_set.labels).float() + maps.amax(dim=(1, 2))
    for product, value in (("nut", 0.75), ("bolt", 0.5)):
        folder = selected.final_folder / PRODUCTS / product
        metrics = {"test/image_auroc": value, "test/miss_rate": 0.5, "test/false_alarm_rate": 0.0}
        result = selected.final.model_copy(update={"metrics": metrics})
        write_json(folder / RESULT_FILE, result.model_dump(mode="json"))
        write_scores(Prediction(scores, maps), image_set, selected.final_folder / ARTIFACTS / product, threshold=1.0)
    config = validate(
        raw_config(tiny_mvtec, data={"dataset": "tiny", "category": ["nut", "bolt"], "root": str(tiny_mvtec)}),
        source="x",
    )
    counts = {f"{product}/test": {"good": 6, "dent": 6} for product in ("nut", "bolt")}
    header = replace(view.header, config=config.to_json() | {"protocol": "holdout"}, counts=counts)
    several = StudyView(view.study, header, view.home)
    page = page_of(several)
    assert "finds 6 of 12 defects at 0 false alarms in 12 good images on test; image AUROC" in page.text
    assert "on average over 2 products" in page.text
    assert "It does best on nut (0.750) and worst on bolt (0.500)." in page.text
    assert [test.product for test in products_on_test(several, several.selected(), id="x")] == ["bolt", "nut"]
    assert page.text.count("Defects found against false alarms") == 2


def test_painted_defects_are_called_so(damaged: Path) -> None:
    view = open_view(damaged, "tiny")
    config = view.header.config | {"protocol": "synthetic"}
    page = page_of(StudyView(view.study, replace(view.header, config=config, experiment="rendered/screw"), view.home))
    assert "all figures are on defects painted into good images" in page.text
    assert "a demonstration, not a result" in page.text


# The command


def artifact(folder: Path, name: str) -> str | None:
    """The report with the run of a study, where there is one."""
    client = MlflowClient(f"sqlite:///{folder / 'home' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'tiny/widget'")
    (run,) = client.search_runs(
        [experiment.experiment_id], filter_string=f"tags.`study.role` = 'study' and tags.`study.name` = '{name}'"
    )
    if not client.list_artifacts(run.info.run_id, "report"):
        return None
    return Path(client.download_artifacts(run.info.run_id, "report/report.html", str(folder))).read_text()


def test_the_report_is_written_and_left_in_mlflow(command: Path, tmp_path: Path) -> None:
    ended = study("report", "tiny", "--no-log")
    path = command / "home" / "reports" / "tiny.html"
    assert (ended.code, ended.out, ended.err) == (0, f"{path}\n", "")
    assert artifact(command, "tiny") is None
    both = study("report", "tiny", "defaults", "tiny", "--out", tmp_path / "both.html")
    assert (both.code, both.out, both.err) == (0, f"{tmp_path / 'both.html'}\n", "")
    text = (tmp_path / "both.html").read_text()
    assert artifact(command, "tiny") == artifact(command, "defaults") == text
    assert "Side by side" in text
    assert study("report", "tiny", "defaults", "--no-log").out.endswith("tiny+defaults.html\n")


def test_it_is_opened_where_that_is_asked_for(command: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(report_command.webbrowser, "open", lambda address: not opened.append(address))
    assert study("report", "tiny", "--no-log", "--open").err == ""
    assert opened == [(command / "home" / "reports" / "tiny.html").as_uri()]
    monkeypatch.setattr(report_command.webbrowser, "open", lambda address: False)
    ended = study("report", "tiny", "--no-log", "--open")
    assert (ended.code, ended.err) == (0, "warning: no web browser could be started here; open the file yourself\n")


def test_mistakes_are_told(command: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = study("report", "tinny")
    assert ended.code == 2
    assert "did you mean tiny?" in ended.error
    (tmp_path / "file").write_text("")
    ended = study("report", "tiny", "--out", tmp_path / "file" / "a.html")
    assert ended.code == 2
    assert "cannot be written" in ended.error
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'gone.db'}")
    ended = study("report", "tiny")
    assert ended.code == 0
    assert "warning: the report was not stored in MLflow: there is no MLflow store" in ended.err


# Charts


@given(st.lists(st.integers(-(10**6), 10**6).map(lambda value: value / 1000), min_size=1, max_size=20), st.booleans())
def test_a_scale_holds_all_values_and_its_ticks_are_inside(values, log):
    made = charts.scale(values, (100.0, 20.0), log=log)
    for value in filter(lambda value: value > 0 or not log, values):
        assert 20.0 <= made(value) <= 100.0
    ticks = made.ticks()
    assert len(ticks) <= 40
    assert all(20.0 <= tick.at <= 100.0 for tick in ticks)
    assert made(made.low) == 100.0
    assert made(made.high) == 20.0


@given(st.lists(st.tuples(st.floats(0, 400), st.floats(0, 300)), max_size=30))
def test_names_never_overlap(points):
    labels = charts.Labels(0, 400, 0, 300)
    for index, point in enumerate(points):
        labels.place(point, f"#{index}")
    boxes = labels.taken
    assert not [1 for i, a in enumerate(boxes) for b in boxes[:i] if charts._overlap(a, b)]


def test_breaks_are_cut_out_of_the_time(bench: Bench) -> None:
    bench.run(budget={"trials": 1})
    view = grown(bench.view(), 20)
    figure = timeline(Search(view, "s"))
    # Trial 0 ran long before the others.
    assert sum(mark.css == "break" for mark in figure.chart.marks) == 1
    bars = [mark for mark in figure.chart.marks if mark.shape == "bar"]
    assert len(bars) == 21
    assert len({mark.points[0][1] for mark in bars}) == 1
    ends = [corner[0] for mark in bars for corner in mark.points]
    assert ends == sorted(ends)
    assert len(search_charts(Search(view, "s"))) == 6


def test_shares_and_times_are_said_in_words() -> None:
    assert phrases.share(16, 58, "defects") == "16 of 58 defects (28 %)"
    assert phrases.share(0, 0) == "none of 0"
    assert phrases.share_with_interval(0, 20) == "0 of 20 (0 %, 95 % interval 0 to 16 %)"
    assert phrases.percent(0.005) == "0.5 %"
    assert [phrases.duration(value) for value in (0.71, 42.4, 700, 7500)] == ["0.7 s", "42 s", "12 min", "2 h 5 min"]
    assert phrases.listed(["a", "b", "c"]) == "a, b and c"
    assert (phrases.listed(["a"]), phrases.listed([])) == ("a", "")
