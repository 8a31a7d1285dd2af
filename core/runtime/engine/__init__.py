"""Requests, blocks, scheduling, sampling, and the loop that serves them."""
