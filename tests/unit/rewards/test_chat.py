"""The client against a real HTTP server on this machine."""

import json
import logging
import pickle
import re
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from mmrl.errors import RewardError
from rewards import chat
from rewards.chat import ChatServer, Reply

ROOT = Path(__file__).parents[3]
ASK = [{"role": "user", "content": "How many?"}]


def server(stub, **options) -> ChatServer:
    return ChatServer(stub.base_url, "m", **{"cache": None, "timeout_s": 5.0, **options})


def numbered(count: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"question {n}"}] for n in range(count)]


def test_a_question_goes_out_as_openai_has_it(chat_stub):
    chat_stub.answer = lambda body, number: (200, body["messages"][-1]["content"].upper(), {})
    assert server(chat_stub, max_tokens=7).ask([ASK]) == [Reply("HOW MANY?")]
    assert chat_stub.requests == [{"model": "m", "messages": ASK, "temperature": 0.0, "max_tokens": 7}]
    assert "Authorization" not in chat_stub.headers[0]


def test_replies_come_in_order_whatever_order_they_are_answered_in(chat_stub):
    def slow_first(body, number):
        time.sleep(0.05 if body["messages"][0]["content"] == "question 0" else 0)
        return 200, body["messages"][0]["content"], {}

    chat_stub.answer = slow_first
    assert [reply.text for reply in server(chat_stub).ask(numbered(5))] == [f"question {n}" for n in range(5)]


def test_no_more_requests_than_allowed_are_in_flight_at_once_and_as_many_as_allowed(chat_stub):
    """Two callers with eight questions each share a limit of four."""
    everyone = threading.Barrier(4, timeout=10)

    def wait_for_four(body, number):
        everyone.wait()
        return 200, "ok", {}

    chat_stub.answer = wait_for_four
    judge = server(chat_stub, concurrency=4)
    threads = [threading.Thread(target=judge.ask, args=(numbered(16)[half::2],)) for half in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert chat_stub.most_at_once == 4
    assert len(chat_stub.requests) == 16


def test_equal_questions_at_the_same_time_are_one_request(chat_stub):
    asked = threading.Event()

    def hold(body, number):
        asked.wait(10)
        return 200, "once", {}

    chat_stub.answer = hold
    threading.Timer(0.1, asked.set).start()
    assert [reply.text for reply in server(chat_stub).ask([ASK] * 6)] == ["once"] * 6
    assert len(chat_stub.requests) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(chat_stub, status):
    chat_stub.answer = lambda body, number: (status, b"busy", {}) if number < 2 else (200, "there", {})
    assert server(chat_stub, retries=2).ask([ASK]) == [Reply("there")]
    assert len(chat_stub.requests) == 3


def test_after_the_last_attempt_it_is_an_outage_with_its_reason(chat_stub):
    chat_stub.answer = lambda body, number: (503, b"overloaded,\n come back", {})
    (reply,) = server(chat_stub, retries=1).ask([ASK])
    assert (reply.text, reply.trouble) == ("", "outage")
    assert reply.reason == f"{chat_stub.base_url} gave no answer in 2 attempts; the last: HTTP 503 overloaded, come back"
    assert len(chat_stub.requests) == 2


def test_one_bad_question_does_not_spoil_the_others(chat_stub):
    chat_stub.answer = lambda body, number: (500, b"", {}) if "1" in body["messages"][0]["content"] else (200, "fine", {})
    assert [reply.trouble for reply in server(chat_stub, retries=0).ask(numbered(3))] == ["", "outage", ""]


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for(chat_stub, form, monkeypatch):
    slept = []
    monkeypatch.setattr(chat.time, "sleep", slept.append)
    monkeypatch.setattr(chat, "MAX_WAIT_S", 1e6)
    later = "3600" if form == "seconds" else format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    chat_stub.answer = lambda body, number: (429, b"", {"retry-after": later}) if number == 0 else (200, "there", {})
    assert server(chat_stub).ask([ASK])[0].text == "there"
    assert slept == [pytest.approx(3600, abs=300)]  # a busy machine takes its time


def test_no_retry_after_is_waited_for_longer_than_the_limit(chat_stub, monkeypatch):
    slept = []
    monkeypatch.setattr(chat.time, "sleep", slept.append)
    chat_stub.answer = lambda body, number: (429, b"", {"Retry-After": "86400"}) if number == 0 else (200, "there", {})
    assert server(chat_stub).ask([ASK])[0].text == "there"
    assert slept == [chat.MAX_WAIT_S]


@pytest.mark.parametrize("given", ["soon", "-3", "1e999", "Wed, 99 Nov"])
def test_a_retry_after_that_cannot_be_read_is_none(chat_stub, given):
    chat_stub.answer = lambda body, number: (503, b"", {"Retry-After": given}) if number == 0 else (200, "there", {})
    assert server(chat_stub).ask([ASK])[0].text == "there"


def test_waits_double_and_are_drawn_by_key(chat_stub, monkeypatch):
    """Between half of the step and all of it, other questions other waits, the same question the same."""
    monkeypatch.setattr(chat, "BACKOFF_S", 1.0)
    runs = []
    for _ in range(2):
        slept = []
        monkeypatch.setattr(chat.time, "sleep", slept.append)
        chat_stub.answer = lambda body, number: (500, b"", {})
        for question in numbered(2):
            server(chat_stub, retries=3).ask([question])
        runs.append(slept)
    first, second = runs[0][:3], runs[0][3:]
    assert runs[0] == runs[1]
    assert first != second
    for step, wait in zip((1, 2, 4, 1, 2, 4), runs[0], strict=True):
        assert step / 2 <= wait <= step


def test_a_server_that_does_not_answer_in_time_is_an_outage(chat_stub):
    release = threading.Event()
    chat_stub.answer = lambda body, number: (release.wait(10), (200, "late", {}))[1]
    (reply,) = server(chat_stub, retries=0, timeout_s=0.2).ask([ASK])
    release.set()
    assert (reply.trouble, "no answer within 0.2 s" in reply.reason) == ("outage", True)


def test_a_server_that_drips_is_cut_off():
    """One byte every 20 ms never runs into a socket's own time limit."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def drip():
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 100000\r\n\r\n")
                for _ in range(500):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        break
                    if ended.wait(0.02):
                        break

        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        (reply,) = ChatServer(url, "m", retries=0, timeout_s=0.3, cache=None).ask([ASK])
        ended.set()
        thread.join()
    assert (reply.trouble, "no answer within 0.3 s" in reply.reason) == ("outage", True)


def test_nobody_there_is_an_outage():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    (reply,) = ChatServer(f"http://127.0.0.1:{port}/v1", "m", retries=0, cache=None).ask([ASK])
    assert reply.trouble == "outage"
    assert "ConnectionRefusedError" in reply.reason


@pytest.mark.parametrize(
    "body", [b"<html>not me</html>", b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}', b"[1]", b"\xff"]
)
def test_an_answer_that_is_no_completion_is_malformed(chat_stub, body):
    chat_stub.answer = lambda request, number: (200, body, {})
    (reply,) = server(chat_stub, retries=1).ask([ASK])
    assert reply.trouble == "malformed"
    assert len(chat_stub.requests) == 2  # a proxy's page may pass too


def test_a_cut_answer_says_so(chat_stub):
    chat_stub.finish = "length"
    assert server(chat_stub).ask([ASK]) == [Reply("ok", complete=False)]


def test_an_endless_answer_is_not_read_to_the_end(chat_stub, monkeypatch):
    monkeypatch.setattr(chat, "MAX_BODY", 1000)
    chat_stub.answer = lambda body, number: (200, b"x" * 5000, {})
    assert server(chat_stub, retries=0).ask([ASK])[0].trouble == "outage"


# --- what somebody has to mend ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_raises_at_once_and_says_what_the_server_said(chat_stub, status):
    chat_stub.answer = lambda body, number: (status, b'{"error": "no such model: m"}', {})
    with pytest.raises(RewardError, match=rf'refused the request: HTTP {status} {{"error": "no such model: m"}}. Mend base_url, model'):
        server(chat_stub).ask([ASK])
    assert len(chat_stub.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(chat_stub, status, monkeypatch):
    """It would carry the key to wherever it points."""
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    chat_stub.answer = lambda body, number: (status, b"", {"Location": f"{chat_stub.base_url}/elsewhere"})
    with pytest.raises(RewardError, match=r"redirects \(HTTP 30\d\)|refused the request: HTTP 30\d"):
        server(chat_stub, api_key_env="JUDGE_KEY").ask([ASK])
    assert len(chat_stub.requests) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url must look like"),
        ({"base_url": "ftp://x/v1"}, "base_url must look like"),
        ({"base_url": "http://user:word@x/v1"}, "holds a user or a password"),
        ({"model": ""}, "model is empty"),
        ({"concurrency": 0}, "concurrency must be at least 1; got 0"),
        ({"retries": -1}, "retries must be at least 0; got -1"),
        ({"max_tokens": 0}, "max_tokens must be at least 1; got 0"),
        ({"timeout_s": 0}, "timeout_s must be a finite number above 0"),
        ({"timeout_s": float("inf")}, "timeout_s must be a finite number above 0"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ChatServer(**{"base_url": "http://x/v1", "model": "m", **options})


# --- the key ------------------------------------------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_shown_nowhere(chat_stub, monkeypatch, tmp_path, caplog):
    secret = "sk-very-secret-0123456789"
    monkeypatch.setenv("JUDGE_KEY", secret)
    judge = server(chat_stub, api_key_env="JUDGE_KEY", retries=0, cache=str(tmp_path))
    with caplog.at_level(logging.DEBUG):
        judge.ask([ASK])
        chat_stub.answer = lambda body, number: (500, f"bad key {secret}".encode(), {})
        (reply,) = judge.ask(numbered(1))
        chat_stub.answer = lambda body, number: (200, f"bad key {secret}".encode(), {})
        (other,) = judge.ask(numbered(1))
        chat_stub.answer = lambda body, number: (401, f"bad key {secret}".encode(), {})
        with pytest.raises(RewardError) as refused:
            judge.ask(numbered(1))
    assert chat_stub.headers[0]["Authorization"] == f"Bearer {secret}"
    assert "bad key ***" in reply.reason
    written = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    for text in (repr(judge), reply.reason, other.reason, str(refused.value), caplog.text, written, json.dumps(chat_stub.requests)):
        assert secret not in text


def test_a_key_in_place_of_its_variables_name_is_refused_and_not_shown():
    with pytest.raises(ValueError, match="must be the NAME of an environment variable") as refused:
        ChatServer("http://x/v1", "m", api_key_env="sk-secret-1")
    assert "sk-secret-1" not in str(refused.value)


def test_a_variable_that_is_not_set_is_named(chat_stub, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(RewardError, match="the environment variable JUDGE_KEY is not set"):
        server(chat_stub, api_key_env="JUDGE_KEY").ask([ASK])
    assert not chat_stub.requests


def test_a_server_pickles(chat_stub):
    judge = server(chat_stub)
    judge.ask([ASK])
    assert pickle.loads(pickle.dumps(judge)) == judge


# --- the cache ----------------------------------------------------------------------------------------------------------------------------


def test_a_question_that_was_answered_is_not_asked_again(chat_stub, tmp_path):
    for _ in range(3):
        assert server(chat_stub, cache=str(tmp_path)).ask([ASK])[0].text == "ok"
    assert len(chat_stub.requests) == 1


@pytest.mark.parametrize("change", [{"model": "other"}, {"max_tokens": 99}, {"question": "How much?"}])
def test_model_question_and_settings_are_the_key(chat_stub, tmp_path, change):
    server(chat_stub, cache=str(tmp_path)).ask([ASK])
    question = change.pop("question", None)
    other = ChatServer(chat_stub.base_url, **{"model": "m", "cache": str(tmp_path), **change})
    other.ask([[{"role": "user", "content": question or "How many?"}]])
    assert len(chat_stub.requests) == 2


def test_the_default_folder_follows_mmrl_cache(chat_stub, tmp_path, monkeypatch):
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path))
    server(chat_stub, cache="").ask([ASK])
    assert [path.parents[1] for path in tmp_path.rglob("*.json")] == [tmp_path / "judge"]


def test_troubles_and_unwanted_answers_are_not_kept(chat_stub, tmp_path):
    chat_stub.answer = lambda body, number: (503, b"", {}) if number == 0 else (200, "no verdict" if number == 1 else "verdict", {})
    judge = server(chat_stub, cache=str(tmp_path), retries=0)
    came = [judge.ask([ASK], keep=lambda reply: reply.text == "verdict")[0].text for _ in range(4)]
    assert came == ["", "no verdict", "verdict", "verdict"]
    assert len(chat_stub.requests) == 3


@pytest.mark.parametrize("damage", [b"", b'{"text": "o', b"[]", b'{"text": 1, "complete": true}', b"\xff\xfe"])
def test_a_damaged_file_is_asked_for_and_written_again(chat_stub, tmp_path, damage):
    judge = server(chat_stub, cache=str(tmp_path))
    judge.ask([ASK])
    (path,) = tmp_path.rglob("*.json")
    path.write_bytes(damage)
    assert [judge.ask([ASK])[0].text for _ in range(2)] == ["ok", "ok"]
    assert len(chat_stub.requests) == 2


def test_processes_may_share_a_folder(chat_stub, tmp_path):
    """Two of them ask and write the same thirty answers at once; what is left is whole, and no half file stays behind."""
    chat_stub.answer = lambda body, number: (200, body["messages"][0]["content"] * 2000, {})
    code = (
        "import json, sys; from rewards.chat import ChatServer\n"
        "ask = [[{'role': 'user', 'content': f'question {n}'}] for n in range(30)]\n"
        "print(json.dumps([reply.text for reply in ChatServer(sys.argv[1], 'm', cache=sys.argv[2]).ask(ask)]))"
    )
    command = [sys.executable, "-c", code, chat_stub.base_url, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    came = [json.loads(process.communicate()[0]) for process in processes]
    assert all(texts == [f"question {n}" * 2000 for n in range(30)] for texts in came)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 30
    assert all(re.fullmatch(r"[0-9a-f]{64}\.json", path.name) and json.loads(path.read_text())["complete"] for path in files)
