"""The policy: a language model, its log-probabilities, and how it is loaded."""
