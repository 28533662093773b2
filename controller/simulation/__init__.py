"""Tries policies on recorded traffic: the planner that serves, modelled workers, a clock of its own."""
