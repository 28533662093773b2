"""A worker that runs no model: it fronts an OpenAI-compatible server and keeps the worker's contract. Needs
no torch.
"""
