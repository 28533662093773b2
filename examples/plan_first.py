"""Looks at the plan before asking: python -m examples.plan_first ADDRESS KEY"""

import sys

from curfew import Client, Mode

QUESTION = "What is 12 + 37 + 45 + 10 + 11?"


def main(address: str, key: str) -> None:
    """Prints what would be done, then the answer; without thinking where that would be late."""
    with Client(address, key=key) as client:
        plan = client.plan(QUESTION, deadline_s=2.0)
        print(f"{plan.mode.name}: {plan.why}")
        if plan.promised_probability < 0.5:
            reply = client.ask(QUESTION, deadline_s=2.0, mode=Mode.NO_THINK)
        else:
            reply = client.ask(QUESTION, deadline_s=2.0)
        print(reply.answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
