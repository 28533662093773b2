"""Streams one answer, the reasoning first: python -m examples.stream ADDRESS KEY"""

import sys

from curfew import Client


def main(address: str, key: str) -> None:
    """Prints the reasoning in brackets, the answer, and whether the deadline was kept."""
    with (
        Client(address, key=key) as client,
        client.generate("What is 12 + 37 + 45?", deadline_s=5.0) as stream,
    ):
        print("[", end="")
        for text in stream.reasoning_text():
            print(text, end="", flush=True)
        print("]")
        for text in stream.answer_text():
            print(text, end="", flush=True)
        completion = stream.reply().completion
        print(f"\nafter {completion.latency_s:.2f} s, {'kept' if completion.kept else 'missed'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
