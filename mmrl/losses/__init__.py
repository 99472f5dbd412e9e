"""Loss terms, one per file: LossInputs -> TermOutput, the equation per token, neither weighted nor reduced."""
