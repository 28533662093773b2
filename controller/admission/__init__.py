"""Who may call, and with what."""
