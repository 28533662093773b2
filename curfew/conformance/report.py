"""Results as a table and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from curfew.conformance.suite import Result, Verdict

_STYLES = {
    Verdict.PASS: "green",
    Verdict.FAIL: "bold red",
    Verdict.NOT_APPLICABLE: "dim",
    Verdict.INCONCLUSIVE: "yellow",
}


def table(results: Sequence[Result], target: str) -> Table:
    """For people."""
    shown = Table(title=target, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("check", "verdict", "what was seen"):
        shown.add_column(heading)
    for result in results:
        style = _STYLES[result.verdict]
        # Text of the server is no markup.
        shown.add_row(result.name, Text(result.verdict.value, style), Text(result.evidence))
    tally = Counter(result.verdict for result in results)
    shown.caption = ", ".join(f"{tally[verdict]} {verdict.value}" for verdict in Verdict if tally[verdict])
    shown.caption_justify = "left"
    return shown


def as_dict(results: Sequence[Result], target: str) -> dict[str, object]:
    """For programs."""
    return {
        "target": target,
        "passed": not any(result.verdict is Verdict.FAIL for result in results),
        "checks": [
            {
                "name": result.name,
                "proves": result.proves,
                "verdict": result.verdict.value,
                "evidence": result.evidence,
            }
            for result in results
        ],
    }
