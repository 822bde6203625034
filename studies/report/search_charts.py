"""All charts of a search, in the order of the page."""

from __future__ import annotations

from studies.report.charts import Figure
from studies.report.history_chart import history
from studies.report.parameter_charts import effects, importances, parallel
from studies.report.search import Search
from studies.report.timeline_chart import timeline
from studies.report.trade_off_chart import trade_off


def search_charts(search: Search) -> list[Figure]:
    """Every chart for which there is data."""
    charts = (history, trade_off, importances, effects, parallel, timeline)
    return [figure for chart in charts if (figure := chart(search)) is not None]
