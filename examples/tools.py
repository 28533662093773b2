"""Has the model call a function, runs it and hands the result back: python -m examples.tools ADDRESS KEY"""

import json
import sys

from curfew import Client, Message, Role, Tool, ToolChoice

NUMBERS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3}
ADD = Tool(
    "add",
    "Adds numbers.",
    {
        "type": "object",
        "properties": {"numbers": NUMBERS},
        "required": ["numbers"],
        "additionalProperties": False,
    },
)
TOTAL = {
    "type": "object",
    "properties": {"total": {"type": "integer", "minimum": 0, "maximum": 999}},
    "required": ["total"],
    "additionalProperties": False,
}


def main(address: str, key: str) -> None:
    """Prints each call with its result, and then the answer, which is JSON of a schema."""
    turns = [Message(Role.USER, "What is 12 + 37 + 45?")]
    with Client(address, key=key) as client:
        # The name of a tool as the choice: it must be called. The default lets the model decide.
        asked = client.ask(turns, tools=[ADD], tool_choice="add", single_tool_call=True)
        turns.append(asked.turn)
        for call in asked.tool_calls:
            numbers = call.arguments["numbers"]
            assert isinstance(numbers, list)  # the parameters say so
            result = sum(numbers)
            print(f"{call.name}({numbers}) = {result}")
            turns.append(Message(Role.TOOL, str(result), tool_call_id=call.id))
        reply = client.ask(turns, tools=[ADD], tool_choice=ToolChoice.NONE, json_schema=TOTAL)
        print(json.loads(reply.answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
