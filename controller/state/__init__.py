"""What controllers share: limits, counters, calibration, demand and the registry; in memory or in Redis."""
