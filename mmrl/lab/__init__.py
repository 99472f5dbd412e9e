"""What does the work? Grids of runs side by side, and logged rollouts scored again by other rewards. No torch here."""
