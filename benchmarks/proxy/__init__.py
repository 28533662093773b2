"""What the controller adds to requests and tokens."""
