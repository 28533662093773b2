"""Writes deploy/grafana/, or checks that the committed files are what this gives.

python -m tools.dashboards            write them
python -m tools.dashboards --check    write nothing; exit 1 and name the files that differ
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tools.dashboards.grafana import Dashboard
from tools.dashboards.overview import OVERVIEW
from tools.dashboards.planner import PLANNER
from tools.dashboards.tenant import TENANT
from tools.dashboards.worker import WORKER

GRAFANA = Path(__file__).resolve().parents[2] / "deploy" / "grafana"
DASHBOARDS = (OVERVIEW, TENANT, WORKER, PLANNER)


def text(dashboard: Dashboard) -> str:
    """Of a dashboard's file."""
    return json.dumps(dashboard.json(), indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Writes the files, or checks them. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.dashboards", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file differs")
    check = parser.parse_args(arguments).check
    stale = 0
    for dashboard in DASHBOARDS:
        file = GRAFANA / f"{dashboard.name}.json"
        if not check:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text(dashboard))
        elif not file.exists() or file.read_text() != text(dashboard):
            print(f"{file} is not what tools/dashboards gives; run python -m tools.dashboards")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
