"""`make fuzz`: the tests' hostile callers and damaged files, for as long as you like, each round with other
random choices. What fails is told with the seed that brings it back.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz import files
from tests.fuzz.round import attack_methods, attack_size, attack_wire, check_unharmed
from tests.fuzz.victim import Answers, Victim, Vitals, running_victim

WARM_UP = 5
"""Rounds before memory counts. The worker keeps freed memory, in as many arenas as it has threads."""
GROWTH_MIB = 384
"""From the end of the warm-up to the end, however many rounds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="how long, at least a round (%(default)s)"
    )
    parser.add_argument("--seed", type=int, help="of the first round; printed, so that it can be given again")
    parser.add_argument(
        "--examples", type=int, default=100, help="of each method and kind of file, in a round"
    )
    options = parser.parse_args(arguments)
    seed = time.time_ns() % 10**9 if options.seed is None else options.seed
    with tempfile.TemporaryDirectory() as directory:
        return asyncio.run(_fuzz(Path(directory), seed, options.minutes * 60, options.examples))


async def _fuzz(directory: Path, seed: int, for_s: float, examples: int) -> int:
    end_s = time.monotonic() + for_s
    # Not beside the victim's own files, which must stay as they are.
    damaged = directory / "damaged"
    damaged.mkdir()
    kinds = list(files.kinds(damaged))
    async with running_victim(directory) as victim, victim.good_caller() as answers:
        await asyncio.sleep(2)
        quiet_s = statistics.median(answers.latencies_s)
        answers.latencies_s.clear()
        before = {service.name: Vitals.of(service) for service in victim.services}
        number = 0
        while number == 0 or time.monotonic() < end_s:
            try:
                await attack_wire(victim, seed)
                await attack_size(victim)
                await attack_methods(victim, seed, examples)
                for kind in kinds:
                    await asyncio.to_thread(files.attack, kind, damaged, examples=examples, randomness=seed)
                if number == WARM_UP:
                    before = {service.name: Vitals.of(service) for service in victim.services}
                growth_mib = GROWTH_MIB if number >= WARM_UP else 2 * GROWTH_MIB
                await check_unharmed(victim, before, growth_mib=growth_mib)
                assert answers.failures == []
            except BaseException:
                print(f"\nround {number}, --seed {seed}: ", file=sys.stderr)
                raise
            number, seed = number + 1, seed + 1
            print(_progress(number, seed, victim, answers, quiet_s), flush=True)
    return 0


def _progress(number: int, seed: int, victim: Victim, answers: Answers, quiet_s: float) -> str:
    vitals = ", ".join(f"{each.name} {Vitals.of(each).resident_mib:.0f} MiB" for each in victim.services)
    slowdown = statistics.median(answers.latencies_s) / quiet_s
    return (
        f"{number} rounds, next seed {seed}: {len(answers.latencies_s)} good answers, none lost, "
        f"{slowdown:.1f} × the quiet median, at most {max(answers.latencies_s):.1f} s; {vitals}"
    )


if __name__ == "__main__":
    sys.exit(main())
