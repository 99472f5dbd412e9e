"""Existing data on disk, read and written as tasks."""
