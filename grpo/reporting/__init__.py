"""What a run leaves: metrics, curves, galleries, model cards."""
