"""Rollout strategies: tasks in, groups out."""
