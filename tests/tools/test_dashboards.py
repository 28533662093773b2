"""The Grafana dashboards in deploy/grafana."""

from __future__ import annotations

import json
from itertools import combinations

import pytest

from tests.promql import metric_names
from tools.dashboards.__main__ import DASHBOARDS, GRAFANA, main
from tools.dashboards.grafana import WIDTH, Dashboard

every_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.name)


def test_the_files_are_what_the_code_gives() -> None:
    assert main(["--check"]) == 0
    assert {file.stem for file in GRAFANA.glob("*.json")} == {dashboard.name for dashboard in DASHBOARDS}


@every_dashboard
def test_every_expression_is_promql(dashboard: Dashboard) -> None:
    for panel in dashboard.panels:
        for query in panel.queries:
            assert metric_names(query.expression), panel.title


@every_dashboard
def test_panels_have_ids_of_their_own_and_do_not_overlap(dashboard: Dashboard) -> None:
    panels = json.loads((GRAFANA / f"{dashboard.name}.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] + place["w"] <= WIDTH for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below


@every_dashboard
def test_the_series_of_a_query_can_be_told_apart(dashboard: Dashboard) -> None:
    for panel in dashboard.panels:
        legends = [query.legend for query in panel.queries]
        assert len(set(legends)) == len(legends), panel.title


@every_dashboard
def test_every_variable_that_a_query_has_is_chosen_somewhere(dashboard: Dashboard) -> None:
    chosen = {choice.name for choice in dashboard.choices}
    for panel in dashboard.panels:
        for query in panel.queries:
            for name in ("tenant", "instance"):
                assert f'="${name}"' not in query.expression or name in chosen
