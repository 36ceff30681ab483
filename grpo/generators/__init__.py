"""Where completions come from: the embedded generator, and vLLM."""
