"""Perturbations of pictures and videos, and what `mmrl tasks perturb` calls."""
