"""Readers of facts: events, statistics, progress. Never in the data path."""
