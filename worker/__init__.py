"""The GPU service: model, engine and gRPC service of one worker."""
