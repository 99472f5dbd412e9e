"""Data that becomes tasks: generators, files on disk. Nothing here imports torch."""
