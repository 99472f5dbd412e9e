"""A run folder as one self-contained page: curves, success before and after, and the logged rollouts with their pictures."""

from mmrl.report.page import write_report

__all__ = ["write_report"]
