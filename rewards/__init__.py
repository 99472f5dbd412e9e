"""Numbers from completions. Rewards check by themselves and never import data_pipelines: a generator's bug cannot hide in its checker."""
