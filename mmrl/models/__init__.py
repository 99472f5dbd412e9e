"""Models: loading, prompts, packed streams, and the log-probabilities of completions."""
