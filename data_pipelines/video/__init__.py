"""Video files: which frames, what size, and the frames themselves as `Media`, read (`decode`), kept (`cache`) and written (`encode`)."""
