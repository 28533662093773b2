"""Reasoning within a deadline as a tool for agents (Model Context Protocol). Needs the extra `mcp`."""
