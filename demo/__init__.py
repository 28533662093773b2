"""A small real reasoning model: how it was trained, its weights and its policy."""
