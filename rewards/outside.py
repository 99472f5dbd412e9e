"""Scoring functions from outside the project, each in a process of its own, under a time limit.

Why a process: a thread cannot be stopped, and one that never gives back the interpreter lock (a runaway regular expression) would
stop the whole run with it. The process starts at the first call and stays for the next ones. Two clocks watch a call: the process's
own (faulthandler, a C thread that needs no lock) writes down where the function is and ends the process; should that not happen, the
caller kills the process `GRACE_S` later. After either, the next call starts a fresh process. It ends by itself when the run does.
"""

import asyncio
import faulthandler
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from operator import attrgetter
from typing import Any

START_LIMIT_S = 120.0
"""Seconds the function's module may take to import."""
GRACE_S = 5.0
"""Seconds the process has, after the time limit, to end by itself."""

_BOOTSTRAP = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from rewards.outside import serve; serve(*sys.argv[2:])"

_processes: dict[str, "_Process"] = {}
_lock = threading.Lock()


def call_outside(function: str, arguments: Mapping[str, Any], timeout_s: float) -> list[float | None]:
    """Call `function` ("module:function", sync or async) with the keyword `arguments` and give back its list of numbers.

    One call at a time. Arguments must pickle. Raises TimeoutError when it takes longer than `timeout_s` seconds, with the place where it
    hung; RuntimeError when it cannot be imported, raises, returns something else than a list of numbers and None, or its process ends.
    """
    with _lock:
        process = _processes.get(function)
        if process is None:
            process = _processes[function] = _Process(function)
        try:
            return process.call(arguments, timeout_s)
        finally:
            if process.ended:
                del _processes[function]


class _Process:
    """The caller's side of one function's process."""

    def __init__(self, function: str) -> None:
        self.function = function
        self.ended = False
        self._imported = False
        self._place = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process, which writes into it
        self._pipe, theirs = Pipe()
        path = json.dumps([*(entry or os.getcwd() for entry in sys.path), os.getcwd()])
        descriptors = (theirs.fileno(), self._place.fileno())
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP, path, function, *map(str, descriptors)],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            start_new_session=True,  # so that what the function starts can be ended with it
        )
        theirs.close()

    def call(self, arguments: Mapping[str, Any], timeout_s: float) -> list[float | None]:
        try:
            if not self._imported:
                failure, _ = self._receive(START_LIMIT_S)
                if failure is not None:
                    raise RuntimeError(f"{self.function} cannot be imported from {os.getcwd()} or the installed packages:\n{failure}")
                self._imported = True
            self._pipe.send((dict(arguments), timeout_s))
            failure, values = self._receive(timeout_s)
        except (EOFError, ConnectionError):
            raise self._why_it_ended(timeout_s if self._imported else START_LIMIT_S) from None
        except BaseException:  # also an interrupt from the keyboard: a late answer must not become the next call's
            self._end()
            raise
        if failure is not None:
            raise RuntimeError(f"{self.function} failed in its own process:\n{failure}")
        return values

    def _receive(self, limit_s: float) -> tuple[str | None, Any]:
        """The failure's traceback, or None; the values."""
        if not self._pipe.poll(limit_s + GRACE_S):
            raise TimeoutError(f"{self._late(limit_s)}; its process was killed")
        return self._pipe.recv()

    def _why_it_ended(self, limit_s: float) -> Exception:
        self._place.seek(0)
        place = self._place.read().decode(errors="replace")
        code = self._end()
        if place:
            return TimeoutError(f"{self._late(limit_s)}. It was here:\n{place}")
        return RuntimeError(f"the process of {self.function} ended with exit code {code} before it answered")

    def _late(self, limit_s: float) -> str:
        return f"{self.function} did not {'return' if self._imported else 'finish its import'} within {limit_s:g} s"

    def _end(self) -> int:
        """Kill the process and whatever it started; its exit code."""
        self.ended = True
        self._pipe.close()
        self._place.close()
        with suppress(ProcessLookupError):  # it ended by itself and left nothing running
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()


def serve(function: str, pipe: str, place: str) -> None:
    """The process's side: import the function, then answer calls until the caller is gone. `pipe`, `place`: file descriptors."""
    connection = Connection(int(pipe))
    with os.fdopen(int(place), "w") as watch, asyncio.Runner() as runner:

        def attempt(work: Callable[[], Any], limit_s: float) -> tuple[str | None, Any]:
            faulthandler.dump_traceback_later(limit_s, exit=True, file=watch)
            try:
                return None, work()
            except Exception:
                return traceback.format_exc(), None
            finally:
                faulthandler.cancel_dump_traceback_later()

        failure, target = attempt(lambda: _find(function), START_LIMIT_S)
        connection.send((failure, None))
        while failure is None:
            try:
                arguments, timeout_s = connection.recv()
            except EOFError:
                return
            connection.send(attempt(lambda: _numbers(target, arguments, runner), timeout_s))  # noqa: B023  # called at once


def _find(function: str) -> Callable[..., Any]:
    module, _, name = function.partition(":")
    return attrgetter(name)(importlib.import_module(module))


def _numbers(target: Callable[..., Any], arguments: dict[str, Any], runner: asyncio.Runner) -> list[float | None]:
    result = target(**arguments)
    if inspect.iscoroutine(result):
        result = runner.run(result)
    if isinstance(result, str | bytes) or not isinstance(result, Iterable):
        raise TypeError(f"a list of numbers (None = not scored) was expected; it returned {result!r}")
    return [None if value is None else _number(value) for value in result]


def _number(value: Any) -> float:
    if isinstance(value, str | bytes):
        raise TypeError(f"a number or None was expected in the returned list; got {value!r}")
    return float(value)
