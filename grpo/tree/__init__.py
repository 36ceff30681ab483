"""The token tree: every shared prefix of a batch once, and the layers that run over it."""
