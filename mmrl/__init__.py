"""Reinforcement-learning fine-tuning of vision-language models in which the picture is part of the algorithm."""

__version__ = "0.1.0"
