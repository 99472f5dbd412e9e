import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from mmrl.types import Completion, Group, Prompt, Rollout, Task
from rewards import chat


def _group(texts: Sequence[str], solution: str = "7", meta: Mapping[str, Any] | None = None, lengths: Sequence[int] | None = None) -> Group:
    task = Task("toy/1", ({"role": "user", "content": [{"type": "text", "text": "3 + 4?"}]},), (), solution, meta or {})
    prompt = Prompt(task, "<user>3 + 4?", np.array([5, 6]), {})
    sizes = lengths or [len(text) + 1 for text in texts]
    completions = [
        Completion(np.arange(size), text, np.zeros(size, np.float32), "stop", 0) for text, size in zip(texts, sizes, strict=True)
    ]
    return Group(task, tuple(Rollout(prompt, completion, prompt) for completion in completions))


@pytest.fixture
def make_group() -> Callable[..., Group]:
    """A group whose completions have the given texts (and `lengths` tokens: one per character and an end token, if not given)."""
    return _group


class ChatStub:
    """A real HTTP server on this machine that answers like an OpenAI-compatible one, as `answer` says."""

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any], int], tuple[int, Any, dict[str, str]]] = lambda body, number: (200, "ok", {})
        """(request, its number from 0) -> HTTP status; the message's text, or bytes as the whole body; further headers."""
        self.finish = "stop"
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub._lock:
                    number = len(stub.requests)
                    stub.requests.append(body)
                    stub.headers.append(dict(self.headers))
                    stub.times.append(time.monotonic())
                    stub.at_once += 1
                    stub.most_at_once = max(stub.most_at_once, stub.at_once)
                try:
                    status, text, headers = stub.answer(body, number)
                finally:
                    with stub._lock:
                        stub.at_once -= 1
                message = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": stub.finish}]}
                content = text if isinstance(text, bytes) else json.dumps(message).encode()
                with suppress(OSError):  # the client has given up
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(content)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def chat_stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatStub]:
    """Answers "ok" unless told otherwise; waits between attempts are a hundredth of the real ones."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(chat, "BACKOFF_S", 0.01)
    stub = ChatStub()
    yield stub
    stub.stop()
