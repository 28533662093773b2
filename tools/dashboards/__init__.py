"""Curfew's Grafana dashboards, written in Python so that they follow the catalogue of metrics."""
