"""The training loop: trainer, updater, checkpoints, warm start, metrics."""
