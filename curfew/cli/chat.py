"""`curfew chat`: a conversation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from curfew.cli import options as cli
from curfew.cli.exits import ending
from curfew.cli.screen import show
from curfew.client import Client, CurfewError, Message, Options, Role, Tls

HELP = """\
/reset            forget the conversation
/deadline 800ms   a deadline for each answer; /deadline off for the tenant's own
/think on|off     a wish; /think auto lets the plan decide
/quit             end, as does Ctrl-D. Ctrl-C cancels the answer that is being written."""


@cli.made_by(key=cli.key_of, options=cli.wishes, tls=cli.tls_of)
def chat(
    *,
    key: str,
    address: cli.Address = cli.DEFAULT_ADDRESS,
    options: Options,
    tls: Tls | None,
) -> None:
    """Converse: each line is a turn, and what was said before is kept. /help tells the commands.

    Ctrl-C cancels the answer that is being written, and only that; its turn is forgotten.
    """
    conversation = Conversation(options)
    if sys.stdin.isatty():
        import readline  # noqa: F401  # lets lines be edited and called back
    with ending("chat"), Client(cli.hosts(address), key=key, tls=tls) as client:
        converse(client, conversation, _read_line)


@dataclass(slots=True)
class Conversation:
    """What was said so far, and what is wished for the next answers."""

    options: Options
    turns: list[Message] = field(default_factory=list)

    def obey(self, line: str) -> str | None:
        """Follows a command other than /quit. Returns what to say to that; None when it is none of them."""
        name, _, argument = line.partition(" ")
        match name, argument.strip():
            case "/reset", "":
                self.turns.clear()
                return "forgotten"
            case "/deadline", "off":
                self.options.pop("deadline_s", None)
                return "the tenant's own deadline"
            case "/deadline", text if text:
                try:
                    self.options["deadline_s"] = cli.duration(text)
                except cli.BadDuration as error:
                    return str(error)
                return f"{text} for each answer"
            case "/think", "auto":
                self.options.pop("mode", None)
                return "the plan decides"
            case "/think", ("on" | "off") as wish:
                self.options["mode"] = cli.MODES[wish == "on"]
                return "thinks if the plan lets it" if wish == "on" else "answers at once"
            case "/help", "":
                return HELP
        return None


def converse(client: Client, conversation: Conversation, read_line: Callable[[], str]) -> None:
    """Reads turns and commands to the end, and answers them. read_line: raises EOFError at the end."""
    while True:
        try:
            line = read_line().strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            _say("\n/quit or Ctrl-D ends")
            continue
        if line == "/quit":
            return
        if line.startswith("/"):
            _say(conversation.obey(line) or f"{line} is no command; /help tells them")
        elif line:
            _answer(client, conversation, line)


def _answer(client: Client, conversation: Conversation, line: str) -> None:
    turns = [*conversation.turns, Message(Role.USER, line)]
    try:
        with client.generate(turns, **conversation.options) as stream:
            show(stream)
            turn = stream.reply().turn
    except KeyboardInterrupt:
        _say("cancelled")
    except CurfewError as error:
        _say(str(error))
    else:
        conversation.turns = [*turns, turn]


def _read_line() -> str:
    return input("> " if sys.stdin.isatty() else "")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
