"""Videos, animations, folders of frames and pictures as `Media`: `decode` reads, `cache` keeps what was read; `sampling` says which frames,
`budget` which size."""
