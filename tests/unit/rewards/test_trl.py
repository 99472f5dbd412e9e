import json
import os
import pickle
import sys
import textwrap
import time

import numpy as np
import pytest

from rewards import outside
from rewards.trl import TRLFunction


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Write an importable module; every test takes a name of its own, because a function's process lives on."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))

    return write


def test_sync_function_gets_trls_arguments(write_module, make_group, tmp_path):
    write_module(
        "trl_sync",
        """
        import json, pathlib
        def f(prompts, completions, solution, level, **columns):
            seen = [prompts, completions, solution, level, columns]
            pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(seen))
            print("functions may print")
            return [float(c[0]["content"] == s) for c, s in zip(completions, solution)]
        """,
    )
    values = TRLFunction("trl_sync:f")(make_group(["7", "88"], "7", {"level": 3}))
    assert values.dtype == np.float32
    assert values.tolist() == [1.0, 0.0]
    message = {"role": "user", "content": [{"type": "text", "text": "3 + 4?"}]}
    completions = [[{"role": "assistant", "content": "7"}], [{"role": "assistant", "content": "88"}]]
    assert json.loads((tmp_path / "trl_sync.json").read_text()) == [
        [[message], [message]],
        completions,
        ["7", "7"],
        [3, 3],
        {"completion_ids": [[0, 1], [0, 1, 2]]},
    ]


def test_async_function_and_none(write_module, make_group):
    """An async function is awaited, in one loop for all its calls; None becomes NaN."""
    write_module(
        "trl_async",
        """
        import asyncio
        loops = []
        async def f(completions, **columns):
            await asyncio.sleep(0)
            loops.append(asyncio.get_running_loop())
            assert all(loop is loops[0] for loop in loops)
            return [None if c[0]["content"] == "x" else len(loops) for c in completions]
        """,
    )
    reward = TRLFunction("trl_async:f")
    np.testing.assert_array_equal(reward(make_group(["x", "y"])), np.array([np.nan, 1], np.float32))
    np.testing.assert_array_equal(reward(make_group(["y", "x"])), np.array([2, np.nan], np.float32))


def test_plain_strings(write_module, make_group):
    write_module("trl_plain", "def f(prompts, completions, **columns): return [len(p) + len(c) for p, c in zip(prompts, completions)]")
    assert TRLFunction("trl_plain:f", conversational=False)(make_group(["ab", "abc"])).tolist() == [14, 15]  # "<user>3 + 4?" is 12


def test_module_in_the_working_directory(make_group, tmp_path, monkeypatch):
    """Found even where the run's own import path lacks the directory, as with an installed command."""
    (tmp_path / "trl_here.py").write_text("def f(completions, **columns): return [0.5 for _ in completions]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert TRLFunction("trl_here:f")(make_group(["x"])).tolist() == [0.5]


def test_method_of_an_object(write_module, make_group):
    write_module("trl_method", "class A:\n    def f(self, completions, **columns): return [0.5 for _ in completions]\na = A()")
    assert TRLFunction("trl_method:a.f")(make_group(["x"])).tolist() == [0.5]


@pytest.mark.parametrize(
    ("name", "body", "place"),
    [
        ("sleep", "time.sleep(1000)", "line 5 in f"),
        ("regex", 're.match("(a|aa)+$", "a" * 60 + "b")', "line 5 in f"),  # never gives back the interpreter lock
        ("loop", "asyncio.run(asyncio.sleep(1000))", "asyncio"),
    ],
)
def test_a_hang_is_ended_and_the_next_call_works(write_module, make_group, name, body, place):
    """The error says where the function hung; the call after it gets a fresh process."""
    write_module(
        f"trl_{name}",
        f"""
        import asyncio, re, time
        def f(completions, **columns):
            if completions[0][0]["content"] == "hang":
                {body}
            return [1.0 for _ in completions]
        """,
    )
    reward = TRLFunction(f"trl_{name}:f", timeout_s=0.3)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=rf"trl_{name}:f did not return within 0.3 s. It was here:\n") as caught:
        reward(make_group(["hang"]))
    assert time.monotonic() - started < outside.GRACE_S
    assert place in str(caught.value)
    assert reward(make_group(["x"])).tolist() == [1.0]


def test_a_function_that_disarms_the_clock_is_killed(write_module, make_group, monkeypatch):
    """The caller's own clock is the second one."""
    monkeypatch.setattr(outside, "GRACE_S", 0.3)
    write_module(
        "trl_disarm",
        """
        import faulthandler, time
        def f(**columns):
            faulthandler.cancel_dump_traceback_later()
            time.sleep(1000)
        """,
    )
    with pytest.raises(TimeoutError, match=r"trl_disarm:f did not return within 0.3 s; its process was killed"):
        TRLFunction("trl_disarm:f", timeout_s=0.3)(make_group(["x"]))


def test_what_a_hanging_function_started_is_ended_too(write_module, make_group, tmp_path):
    write_module(
        "trl_child",
        """
        import pathlib, subprocess, sys, time
        def f(**columns):
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
            pathlib.Path(__file__).with_suffix(".pid").write_text(str(child.pid))
            time.sleep(1000)
        """,
    )
    with pytest.raises(TimeoutError):
        TRLFunction("trl_child:f", timeout_s=0.5)(make_group(["x"]))
    pid = int((tmp_path / "trl_child.pid").read_text())
    for _ in range(100):  # a killed process may stay in the table, as a zombie, until its new parent collects it
        try:
            with open(f"/proc/{pid}/stat") as stat:
                state = stat.read().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.02)
    os.kill(pid, 9)
    pytest.fail(f"the child process is still there, in state {state}")


@pytest.mark.parametrize(
    ("name", "source", "error"),
    [
        ("raises", "def f(**c): raise KeyError('gold')", r"trl_raises:f failed in its own process:\n(.|\n)*KeyError: 'gold'"),
        ("exits", "import os\ndef f(**c): os._exit(3)", r"the process of trl_exits:f ended with exit code 3 before it answered"),
        ("number", "def f(**c): return 1.0", r"a list of numbers \(None = not scored\) was expected; it returned 1.0"),
        ("string", "def f(**c): return ['1.0']", r"a number or None was expected in the returned list; got '1.0'"),
        ("import", "import no_such_module", r"trl_import:f cannot be imported from .*\n(.|\n)*No module named 'no_such_module'"),
        ("absent", "def g(**c): return [1.0]", r"trl_absent:f cannot be imported from .*\n(.|\n)*has no attribute 'f'"),
    ],
)
def test_failures_say_what_happened(write_module, make_group, name, source, error):
    write_module(f"trl_{name}", source)
    for _ in range(2):  # a failure leaves nothing behind that would change the next one
        with pytest.raises(RuntimeError, match=error):
            TRLFunction(f"trl_{name}:f")(make_group(["x"]))


def test_wrong_number_of_rewards(write_module, make_group):
    write_module("trl_short", "def f(**columns): return [1.0]")
    with pytest.raises(ValueError, match="trl_short:f returned 1 rewards for the 2 completions of task toy/1"):
        TRLFunction("trl_short:f")(make_group(["x", "y"]))


def test_meta_key_that_is_an_argument(make_group):
    with pytest.raises(ValueError, match="task toy/1: meta key 'completions' is the name of an argument"):
        TRLFunction("never_called:f")(make_group(["x"], meta={"completions": 1}))


@pytest.mark.parametrize("function", ["f", "module.f", "module:", ":f", "a b:f", "module:f()"])
def test_function_must_be_module_and_name(function):
    with pytest.raises(ValueError, match='function must be "module:function"'):
        TRLFunction(function)


def test_timeout_must_be_positive():
    with pytest.raises(ValueError, match="timeout_s must be above 0; got 0"):
        TRLFunction("m:f", timeout_s=0)


def test_reward_pickles():
    assert pickle.loads(pickle.dumps(TRLFunction("m:f"))) == TRLFunction("m:f")


def test_own_interpreter_is_used(write_module, make_group):
    write_module("trl_exe", f"import os, sys\ndef f(**c): return [float(sys.executable == {sys.executable!r}), os.getpid()]")
    same, pid = TRLFunction("trl_exe:f")(make_group(["x", "y"])).tolist()
    assert same == 1
    assert pid != os.getpid()
