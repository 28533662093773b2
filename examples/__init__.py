"""Short programs that use the client. Each takes the controller's address and an API key; tests run them."""
