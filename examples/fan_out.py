"""Asks many questions at once, all within one deadline: python -m examples.fan_out ADDRESS KEY"""

import asyncio
import sys

from curfew import AsyncClient, CurfewError

QUESTIONS = [f"What is {n} + {n + 7} + {3 * n}?" for n in range(8)]
DEADLINE_S = 5.0


async def main(address: str, key: str) -> None:
    """Prints each question with its answer, or with why there is none."""
    async with AsyncClient(address, key=key) as client:

        async def answer(question: str) -> str:
            try:
                return (await client.ask(question, deadline_s=DEADLINE_S)).answer
            except CurfewError as error:
                return f"no answer: {error}"

        answers = await asyncio.gather(*map(answer, QUESTIONS))
    for question, text in zip(QUESTIONS, answers, strict=True):
        print(question, text)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
