"""The SLO service: decides what each request may spend, and keeps each tenant's promise."""
