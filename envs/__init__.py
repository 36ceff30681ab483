"""Environments: they speak chat messages, and know nothing of tokens or training."""
