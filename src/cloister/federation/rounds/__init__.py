"""Rounds: who takes part, which updates count, and when a round closes."""
