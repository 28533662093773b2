"""`curfew plan`: what would be decided for a question, without running it."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from curfew.cli import options as cli
from curfew.cli.as_json import as_dict
from curfew.cli.exits import ending
from curfew.client import Client, Options, Plan, Tls
from curfew.show import mode, spoken


@cli.made_by(key=cli.key_of, options=cli.wishes, tls=cli.tls_of)
def plan(
    *,
    question: cli.Question,
    key: str,
    address: cli.Address = cli.DEFAULT_ADDRESS,
    options: Options,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the plan in the JSON form of protos/curfew/v1.")
    ] = False,
    tls: Tls | None,
) -> None:
    """Tell what would be decided for a question now, and why. Nothing is run."""
    with ending("plan"), Client(cli.hosts(address), key=key, tls=tls) as client:
        decided = client.plan(cli.text_of(question), **options)
    if as_json:
        print(json.dumps(as_dict(decided.raw), ensure_ascii=False))
    else:
        Console(highlight=False).print(table(decided))


def table(plan: Plan) -> Table:
    """A plan as rows of a name and what was decided."""
    budget = plan.budget
    tokens = (
        f"{budget.reasoning_tokens} reasoning + {budget.grace_tokens} grace, {budget.answer_tokens} answer"
    )
    until = "none" if budget.reason_until_s is None else f"{spoken(budget.reason_until_s)} from receipt"
    promise = f"nothing in time; {plan.target_share:.0%} of requests count"
    if plan.deadline_s is not None:
        promise = f"{spoken(plan.deadline_s)} to {plan.target_share:.0%} of requests"
    predicted = f"{spoken(plan.predicted_latency_s)}, kept with probability {plan.promised_probability:.3g}"
    rows = {
        "decision": mode(plan),
        "why": plan.why,
        "budget": tokens,
        "curfew": until,
        "promised": promise,
        "predicted": predicted,
        "decided by": f"{plan.rule} of policy {plan.policy_version}, tenant {plan.tenant}",
        "worker": plan.worker,
    }
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", justify="right")
    grid.add_column(overflow="fold")
    for name, value in rows.items():
        grid.add_row(name, value)
    return grid
