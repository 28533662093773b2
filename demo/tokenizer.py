"""Makes the demo model's tokenizer: byte-level BPE in the family's manner.

As in Nemotron-Nano-9B-v2, `<think>` and `</think>` are several ordinary tokens, `>` merges with the line ends
behind it, digits stand alone, and `<SPECIAL_10>` to `<SPECIAL_12>` mark turns. Every byte is a token, so that
any text can be encoded.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

# Words of the chat format and of the task. Each becomes one token, by merges from left to right.
_WORDS = (
    "</", "think", ">\n\n", "\n\n", "System", "User", "Assistant", "What", " is", " do", " make", "Add", " and",
    " + ", " = ", ", ",
)  # fmt: skip
SPECIAL_TOKENS = tuple(f"<SPECIAL_{number}>" for number in range(16))


def _byte_symbols() -> list[str]:
    """The printable stand-ins of byte-level BPE, one for each byte value (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def make_tokenizer() -> Tokenizer:
    """Special tokens have the ids 0 to 15, bytes the next 256, merged pieces the rest."""
    symbols = _byte_symbols()
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
