"""Videos, animations, folders of frames and pictures as `Media`: `decode` reads, `cache` keeps, `sampling` and `budget` choose."""
