"""Generators of tasks, one per file, and what `mmrl tasks` calls."""

from data_pipelines.tasks.commands import look, make_mazes

__all__ = ["look", "make_mazes"]
