"""The worker's gRPC service: the engine in a thread of its own, its streams, its start and end."""
