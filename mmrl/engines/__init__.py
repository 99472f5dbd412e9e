"""Rollout engines: prompts in, token ids with their log-probabilities out."""
