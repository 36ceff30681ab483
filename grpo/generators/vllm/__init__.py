"""vLLM as the generator: in this process, or as servers."""
