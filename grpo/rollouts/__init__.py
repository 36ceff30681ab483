"""Playing episodes: groups for training, and evaluations."""
