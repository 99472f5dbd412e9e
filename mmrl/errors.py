"""What goes wrong, by whose hand. Each message names the place, the value that came, and the way out.

`ValueError` is for a bad argument of a Python call. The classes here are for what a user of the command line can mend; the
command prints their message as one paragraph and exits with code 2. Anything else is a bug and keeps its traceback.
"""


class MmrlError(Exception):
    """Base of every error a user can mend."""


class RecipeError(MmrlError):
    """A recipe that cannot run: unknown key, wrong type, missing file, an impossible combination."""


class TaskError(MmrlError):
    """A task source that cannot give what was asked: empty, malformed, or an impossible maze."""


class MediaError(MmrlError):
    """A picture or video that cannot be read: names the row and the file."""


class RewardError(MmrlError):
    """A task that a reward cannot check, or rewards that failed more often than `reward_failure_limit` allows."""


class EngineError(MmrlError):
    """A rollout engine that cannot sample what was asked."""


class CheckpointError(MmrlError):
    """A checkpoint that is missing, damaged, or of another recipe."""


class BenchError(MmrlError):
    """A benchmark that cannot run, or whose sides turned out not to do the same work."""


class Unscored(Exception):
    """Raised by a reward that cannot say anything about a group through no fault of its rollouts: `mmrl.loop.score` makes it NaN, "not
    scored", keeps the reason, and does not count it as a failure."""

    def __init__(self, kind: str, reason: str) -> None:
        """`kind`: one word to count by, such as "outage" or "malformed"; `reason`: what happened, for people."""
        super().__init__(f"{kind}: {reason}")
        self.kind = kind
        self.reason = reason
