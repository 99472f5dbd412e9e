"""Advantage estimators: the rewards of all groups of a step, from all ranks -> one advantage per token. No torch here."""
