"""Grafana dashboards as values, and how they look as JSON: no more than what Curfew's own need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WIDTH = 24
"""Columns of a dashboard."""
HEIGHT = 8
PANELS_IN_ROW = 3
SCHEMA_VERSION = 39
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and what its series are called: text in which {{label}} stands for a label's value."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A graph over time. unit: one of Grafana's. stacked: whether its series add up to something. exemplars:
    whether traces are shown on it.
    """

    title: str
    what: str
    queries: Sequence[Query]
    unit: str = "short"
    stacked: bool = False
    exemplars: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """A variable that the viewer chooses: one of a label's values."""

    name: str
    metric: str


@dataclass(frozen=True, slots=True)
class Dashboard:
    """name: of its file, and of its address after `curfew-`. rows: titles with their panels."""

    name: str
    title: str
    rows: Sequence[tuple[str, Sequence[Panel]]]
    choices: Sequence[Choice] = ()

    @property
    def panels(self) -> Iterator[Panel]:
        """Of all rows."""
        for _, panels in self.rows:
            yield from panels

    def json(self) -> Json:
        """As Grafana imports it."""
        return {
            "uid": f"curfew-{self.name}",
            "title": f"Curfew / {self.title}",
            "tags": ["curfew"],
            "schemaVersion": SCHEMA_VERSION,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "links": [_to_others()],
            "templating": {"list": [_datasource(), *map(_variable, self.choices)]},
            "panels": list(self._placed()),
        }

    def _placed(self) -> Iterator[Json]:
        number, y = 0, 0
        width = WIDTH // PANELS_IN_ROW
        for title, panels in self.rows:
            number += 1
            yield {
                "id": number,
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
            }
            y += 1
            for index, panel in enumerate(panels):
                number += 1
                x, below = index % PANELS_IN_ROW * width, index // PANELS_IN_ROW * HEIGHT
                yield _panel(panel) | {
                    "id": number,
                    "gridPos": {"x": x, "y": y + below, "w": width, "h": HEIGHT},
                }
            y += -(-len(panels) // PANELS_IN_ROW) * HEIGHT


def _panel(panel: Panel) -> Json:
    stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.what,
        "datasource": DATASOURCE,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "custom": {"fillOpacity": 10, "showPoints": "never", "stacking": stacking},
            },
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
                "exemplar": panel.exemplars,
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def _datasource() -> Json:
    return {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus"}


def _variable(choice: Choice) -> Json:
    query = f"label_values({choice.metric}, {choice.name})"
    return {
        "type": "query",
        "name": choice.name,
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": choice.name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
    }


def _to_others() -> Json:
    return {
        "type": "dashboards",
        "title": "Curfew",
        "tags": ["curfew"],
        "asDropdown": True,
        "includeVars": True,
        "keepTime": True,
    }
