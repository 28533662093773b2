"""A whole system of processes, what is done to it, and what its callers saw: shared by the benchmark and its
short version among the tests.
"""
