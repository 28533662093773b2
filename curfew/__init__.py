"""The contracts, the client and the `curfew` command: what other teams install and import."""
