"""Video files: which frames, what size, and the frames themselves."""
