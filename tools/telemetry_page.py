"""Writes the tables of docs/telemetry.md from the catalogue of metrics and the alerts, or checks them.

python -m tools.telemetry_page            write them
python -m tools.telemetry_page --check    write nothing; exit 1 when they differ
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from controller.policy.alerts import OPERATION
from curfew.telemetry.controller_metrics import CONTROLLER_METRICS
from curfew.telemetry.metric import Metric
from curfew.telemetry.worker_metrics import WORKER_METRICS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "telemetry.md"
END = "<!-- end -->"


def metrics_table(metrics: Iterable[Metric]) -> str:
    """A line for each metric."""
    lines = ["| metric | kind | labels | |", "|---|---|---|---|"]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind.value} | {labels} | {metric.help} |")
    return "\n".join(lines)


def alerts_table() -> str:
    """A line for each alert that no tenant's objective is in."""
    lines = ["| alert | severity | when | for |", "|---|---|---|---|"]
    for alert in OPERATION:
        when = " ".join(alert.expression.split()).replace("|", "\\|")
        lines.append(f"| `{alert.name}` | {alert.severity} | `{when}` | {alert.holds_for} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its tables as they should be. Each stands between `<!-- name -->` and `END`."""
    tables = {
        "controller": metrics_table(CONTROLLER_METRICS),
        "worker": metrics_table(WORKER_METRICS),
        "alerts": alerts_table(),
    }
    for name, table in tables.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(END)
        if not (begin and end):
            raise ValueError(f"{PAGE} has no place for the table {name!r}")
        text = f"{before}{begin}{table}\n{end}{after}"
    return text


def main(arguments: list[str]) -> int:
    """Writes the tables, or checks them. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.telemetry_page", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a table differs")
    check = parser.parse_args(arguments).check
    text = PAGE.read_text()
    fresh = page(text)
    if not check:
        PAGE.write_text(fresh)
    elif fresh != text:
        print(f"{PAGE} is not up to date; run python -m tools.telemetry_page")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
