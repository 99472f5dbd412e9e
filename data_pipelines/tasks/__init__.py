"""Generators of tasks, and what `mmrl tasks` calls."""

from data_pipelines.tasks.commands import look, make_mazes, write_clips, write_footage, write_videossr

__all__ = ["look", "make_mazes", "write_clips", "write_footage", "write_videossr"]
