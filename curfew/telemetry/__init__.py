"""What both services tell of themselves while they run: metrics, traces and logs.

Only `prometheus` and `otlp` need the `telemetry` extra, and are imported when a flag asks for them.
"""
