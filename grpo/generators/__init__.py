"""Where completions come from: `base` is the contract, `local` the embedded default."""
