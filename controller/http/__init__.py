"""Callers' door over HTTP, in the form of OpenAI's API: chat completions, responses, models."""
