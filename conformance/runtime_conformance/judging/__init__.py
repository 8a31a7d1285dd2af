"""Decides whether results are right: oracle, deviation from declared rounding, judgement, proof of power."""
