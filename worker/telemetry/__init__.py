"""What a worker tells of itself: metrics, spans and log lines, and where they come from."""
