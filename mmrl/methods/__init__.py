"""What one paper alone needs, a file a paper."""
