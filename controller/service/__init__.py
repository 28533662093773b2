"""The doors: gRPC services for callers and operators, and the relay between caller and worker."""
