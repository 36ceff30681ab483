"""Advantages, credit, losses and the batch they are computed over: pure functions."""
