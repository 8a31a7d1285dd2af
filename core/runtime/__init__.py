"""Runs large language models on whatever hardware is present."""
