"""Decoding in a child process: a decoder that hangs is killed, and one that crashes takes nobody along.

One child per process and backend, started at the first call and kept. Calls and answers are pickles with their length before them.
"""

import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipelines.video.records import Deadline, Limits
from mmrl.errors import MediaError

START_S = 60.0
"""How long a child may take to import its decoder."""
_children: dict[str, "_Child"] = {}
_lock = threading.Lock()


def call(backend: str, function: str, path: Path, limits: Limits, *arguments: Any) -> Any:
    """What `function(backend, path, *arguments, limits)` of `backends` answers in the child. MediaError if it hangs or crashes."""
    with _lock:
        child = _children.get(backend)
        if child is None or not child.alive:
            child = _children[backend] = _Child(backend)
        return child.call(path, (function, path, arguments, limits), Deadline(path, limits))


class _Child:
    def __init__(self, backend: str) -> None:
        root = str(Path(__file__).parents[2])
        code = f"import sys; sys.path.insert(0, {root!r}); from data_pipelines.video.isolate import serve; serve({backend!r})"
        self.backend = backend
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent, which then ends the child
        )
        if self.process.stdin is None or self.process.stdout is None:
            raise AssertionError("the pipes asked for were not made")
        self.requests, self.answers = self.process.stdin.fileno(), self.process.stdout.fileno()
        try:
            problem = pickle.loads(self._answer(time.monotonic() + START_S))
        except (TimeoutError, EOFError):
            self.stop()
            problem = "its process did not start"
        if problem is not None:
            self.stop()
            raise MediaError(f"video backend {backend} is not usable: {problem}")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def call(self, path: Path, request: Any, deadline: Deadline) -> Any:
        try:
            _send(self.requests, pickle.dumps(request))
            answer = pickle.loads(self._answer(deadline.end + 1.0))
        except TimeoutError:
            self.stop()
            raise deadline.passed() from None
        except (EOFError, BrokenPipeError):
            code = self.stop()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise MediaError(f"{path}: {self.backend} crashed on it ({how}); the file is damaged") from None
        except BaseException:
            self.stop()  # an answer that nobody reads would be taken for the next one
            raise
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self) -> int:
        """Kills the process unless it ends by itself just now, and says how it ended."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout=0.05)
        self.process.kill()
        return self.process.wait()

    def _answer(self, end: float) -> bytearray:
        return _receive(self.answers, int.from_bytes(_receive(self.answers, 8, end), "little"), end)


def _send(pipe: int, message: bytes) -> None:
    for part in (len(message).to_bytes(8, "little"), message):
        view = memoryview(part)
        while view:
            view = view[os.write(pipe, view) :]


def _receive(pipe: int, size: int, end: float | None = None) -> bytearray:
    """TimeoutError at `end` of the monotonic clock, EOFError if the other side is gone."""
    message, at = bytearray(size), 0
    view = memoryview(message)
    while at < size:
        if end is not None and not select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
            raise TimeoutError
        got = os.readv(pipe, [view[at:]])
        if not got:
            raise EOFError
        at += got
    return message


def serve(backend: str) -> None:
    """The child's loop. Ends when the parent's side of the pipe closes."""
    from data_pipelines.video import backends

    answers = os.dup(1)
    os.dup2(2, 1)  # what a C library prints must not land between the answers
    try:
        backends.BACKENDS[backend].require()
        problem = None
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    _send(answers, pickle.dumps(problem))
    while problem is None:
        try:
            request = _receive(0, int.from_bytes(_receive(0, 8), "little"))
        except EOFError:
            return
        function, path, arguments, limits = pickle.loads(request)
        try:
            answer = getattr(backends, function)(backends.BACKENDS[backend], path, *arguments, limits)
        except Exception as error:  # a bug travels to the parent as what it is
            answer = error
        _send(answers, pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL))


def _forget() -> None:
    """A forked process must not talk to its parent's children."""
    global _lock
    _children.clear()
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)
