"""Generators of tasks, and what `mmrl tasks` calls."""

from data_pipelines.tasks.commands import look, make_mazes, write_clips, write_footage

__all__ = ["look", "make_mazes", "write_clips", "write_footage"]
