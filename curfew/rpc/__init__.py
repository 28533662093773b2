"""What both services share of gRPC: rich errors, the server with its standard services, and its end."""
