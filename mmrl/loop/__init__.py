"""The walk of a step, one file per arrow."""
