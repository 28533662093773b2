"""Makes the demo model's tokenizer: byte-level BPE in the family's manner.

As in Nemotron-Nano-9B-v2, `<think>` and `</think>` are several ordinary tokens, `>` merges with the line ends
behind it, digits stand alone, and `<SPECIAL_10>` to `<SPECIAL_12>` mark turns. Every byte is a token, so that
any text can be encoded.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from worker.model.chat import byte_symbols

# Words of the chat format and of the task. Each becomes one token, by merges from left to right.
_WORDS = (
    "</", "think", ">\n\n", "\n\n", "System", "User", "Assistant",
    "What", " is", " do", " make", "Add", " and", " + ", " = ", ", ",
)  # fmt: skip
SPECIAL_TOKENS = tuple(f"<SPECIAL_{number}>" for number in range(16))


def make_tokenizer() -> Tokenizer:
    """Special tokens have the ids 0 to 15, bytes the next 256, merged pieces the rest."""
    symbols = byte_symbols()
    vocabulary = [*SPECIAL_TOKENS, *symbols]
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        pieces = [symbols[byte] for byte in word.encode()]
        joined = pieces[0]
        for piece in pieces[1:]:
            if (joined, piece) not in merges:
                merges.append((joined, piece))
                vocabulary.append(joined + piece)
            joined += piece
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(vocabulary)}, merges=merges))
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
