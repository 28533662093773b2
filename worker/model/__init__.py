"""The model: configuration, checkpoint, network, tokenizer."""
