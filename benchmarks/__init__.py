"""One module per question; each prints a table and one JSON line."""
