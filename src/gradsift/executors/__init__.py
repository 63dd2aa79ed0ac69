"""Executors: who does the work units."""
