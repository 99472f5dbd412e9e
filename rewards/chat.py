"""A client of OpenAI-compatible chat servers for rewards: many questions at once, retries, time limits, and a cache on disk.

The error model: what may pass (no connection, time-outs, 429, 5xx, an answer that is not JSON) is tried again and, if it does not pass,
comes back as a `Reply` without text. What somebody has to mend (a wrong key, an unknown model, a redirect) raises RewardError at once.
Secrets: the key is read from the environment when a request is sent and is in no message, no repr and no file.
"""

import hashlib
import json
import os
import re
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from http.client import HTTPException
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NoReturn
from urllib.parse import urlsplit

from mmrl.errors import RewardError
from mmrl.seeding import stream

BACKOFF_S = 1.0
"""Seconds before the second attempt; they double with every further one, and half of them is drawn at random, by key."""
MAX_WAIT_S = 60.0
"""Longest wait between two attempts, whatever a server's Retry-After asks for."""
MAX_BODY = 4 << 20
"""Bytes of an answer that are read at most."""
TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""HTTP statuses that may pass."""

Message = Mapping[str, str]
""" {"role": "system" | "user", "content": text}."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

_lock = threading.Lock()
_pools: dict[tuple[str, int], ThreadPoolExecutor] = {}
_in_flight: dict[str, "Future[Reply]"] = {}


@dataclass(frozen=True)
class Reply:
    """What came back for one question."""

    text: str = ""
    complete: bool = True
    """False: cut at `max_tokens`."""
    trouble: Literal["", "outage", "malformed"] = ""
    """Why there is no text: the server could not be reached or could not answer; or what it answered is no chat completion."""
    reason: str = ""
    """What happened, for people."""


@dataclass(frozen=True)
class _Trouble:
    kind: Literal["outage", "malformed"]
    reason: str
    retry_after_s: float = 0.0


@dataclass(frozen=True)
class ChatServer:
    """A model behind `POST {base_url}/chat/completions`: a vLLM or SGLang server, an API. Temperature 0, one sample.

    At most `concurrency` requests of this process are in flight at once, whatever the number of callers; equal questions asked at the same
    time are one request. An attempt ends after `timeout_s`, or twice that where a server stalls in the middle of its answer.
    """

    base_url: str
    """ "http://localhost:8000/v1"."""
    model: str
    """As the server knows it."""
    api_key_env: str = ""
    """NAME of the environment variable that holds the key; "" = none."""
    concurrency: int = 64
    retries: int = 2
    timeout_s: float = 60.0
    max_tokens: int = 512
    cache: str | None = ""
    """Folder of kept answers; "" = judge/ in $MMRL_CACHE, else in ~/.cache/mmrl; None = keep none."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.username is not None or parts.password is not None:
            raise ValueError("base_url holds a user or a password, which would be saved with the run; use api_key_env")
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
            raise ValueError(f'base_url must look like "http://localhost:8000/v1"; got {self.base_url!r}')
        if not self.model:
            raise ValueError("model is empty; give the name under which the server knows its model")
        if self.api_key_env and not _NAME.fullmatch(self.api_key_env):
            raise ValueError(
                "api_key_env must be the NAME of an environment variable, such as JUDGE_API_KEY; what was given is no such name and is "
                "not shown here, because it may be a key"
            )
        for name, least in (("concurrency", 1), ("retries", 0), ("max_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if not (isfinite(self.timeout_s) and self.timeout_s > 0):
            raise ValueError(f"timeout_s must be a finite number above 0; got {self.timeout_s}")

    def ask(self, conversations: Sequence[Sequence[Message]], keep: Callable[[Reply], bool] = bool) -> list[Reply]:
        """A reply to each conversation, in order. Only replies for which `keep` is true go into the cache; those without text never do.

        Raises RewardError where the server refuses a request for good, or the key's variable is not set.
        """
        pending = [self._start(conversation, keep) for conversation in conversations]
        return [future.result() for future in pending]

    def _start(self, conversation: Sequence[Message], keep: Callable[[Reply], bool]) -> "Future[Reply]":
        body = {
            "model": self.model,
            "messages": [dict(message) for message in conversation],
            "temperature": 0.0,
            "max_tokens": self.max_tokens,
        }
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        place = f"{self.base_url} {self.cache} {key}"
        with _lock:
            found = _in_flight.get(place)
            if found is None:
                where = (self.base_url, self.concurrency)
                if where not in _pools:
                    _pools[where] = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge")
                found = _in_flight[place] = _pools[where].submit(self._once, place, key, body, keep)
        return found

    def _once(self, place: str, key: str, body: Mapping[str, Any], keep: Callable[[Reply], bool]) -> Reply:
        """Leaves the table before anybody can have the reply, so that who asks again is not given the old one."""
        try:
            return self._answer(key, body, keep)
        finally:
            with _lock:
                del _in_flight[place]

    def _answer(self, key: str, body: Mapping[str, Any], keep: Callable[[Reply], bool]) -> Reply:
        folder = _cache_folder(self.cache)
        if folder is not None and (kept := _read(folder, key)) is not None:
            return kept
        reply = self._attempts(key, json.dumps(body).encode())
        if folder is not None and not reply.trouble and keep(reply):
            _write(folder, key, self.model, reply)
        return reply

    def _attempts(self, key: str, body: bytes) -> Reply:
        trouble = None
        for attempt in range(self.retries + 1):
            if trouble is not None:
                drawn = BACKOFF_S * 2 ** (attempt - 1) * (0.5 + 0.5 * stream("judge", key, attempt).random())
                time.sleep(min(max(drawn, trouble.retry_after_s), MAX_WAIT_S))
            came = self._post(body)
            if isinstance(came, Reply):
                return came
            trouble = came
        assert trouble is not None
        tries = f"{self.retries + 1} attempts" if self.retries else "one attempt"
        return Reply(trouble=trouble.kind, reason=f"{self.base_url} gave no answer in {tries}; the last: {trouble.reason}")

    def _post(self, body: bytes) -> "Reply | _Trouble":
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "mmrl"}
        secret = self._key()
        if secret:
            headers["Authorization"] = f"Bearer {secret}"
        request = urllib.request.Request(f"{self.base_url.rstrip('/')}/chat/completions", body, headers, method="POST")
        deadline = time.monotonic() + self.timeout_s
        try:
            with _opener().open(request, timeout=self.timeout_s) as response:
                content = _read_until(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                return self._refused(error, deadline, secret)
        except (OSError, HTTPException) as error:  # URLError, TimeoutError and resets are OSErrors
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, TimeoutError):
                return _Trouble("outage", f"no answer within {self.timeout_s:g} s")
            return _Trouble("outage", _shown(f"{type(reason).__name__}: {reason}", secret))
        return _reply(content, secret)

    def _refused(self, error: urllib.error.HTTPError, deadline: float, secret: str) -> _Trouble:
        try:
            said = _shown(_read_until(error, deadline).decode(errors="replace"), secret)
        except (OSError, HTTPException):
            said = ""
        status = f"HTTP {error.code} {said}".rstrip()
        if error.code in TRANSIENT:
            return _Trouble("outage", status, _retry_after_s(error.headers.get("Retry-After", "").strip()))
        raise RewardError(
            f"the judge at {self.base_url} refused the request: {status}. Mend base_url, model, api_key_env "
            f"({self.api_key_env or 'none given'}) or the request's length"
        )

    def _key(self) -> str:
        if not self.api_key_env:
            return ""
        secret = os.environ.get(self.api_key_env, "").strip()
        if not secret:
            raise RewardError(f"api_key_env: the environment variable {self.api_key_env} is not set; export it, or leave api_key_env out")
        if not secret.isascii() or not secret.isprintable():
            raise RewardError(f"api_key_env: the value of {self.api_key_env} cannot be sent in a header; it must be printable ASCII")
        return secret


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send the key to another host."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> NoReturn:
        raise RewardError(f"the judge at {req.full_url} redirects (HTTP {code}); give the address it leads to as base_url")


@cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirect)


def _read_until(response: Any, deadline: float) -> bytes:
    """The body; TimeoutError past the deadline even if the server keeps sending a byte now and then."""
    parts, size = [], 0
    while size <= MAX_BODY:
        if time.monotonic() > deadline:
            raise TimeoutError
        part = response.read1(1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)
        size += len(part)
    raise HTTPException(f"an answer of more than {MAX_BODY} bytes")


def _reply(content: bytes, secret: str) -> "Reply | _Trouble":
    try:
        choice = json.loads(content)["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return _Trouble("malformed", f"not a chat completion: {_shown(content.decode(errors='replace'), secret)}")
    if not isinstance(text, str):
        return _Trouble("malformed", f"a message without text: {_shown(repr(text), secret)}")
    return Reply(text, choice.get("finish_reason") != "length")


def _shown(text: str, secret: str) -> str:
    """One line for a message, without the key."""
    line = " ".join(text.split())
    if secret:
        line = line.replace(secret, "***")
    return line if len(line) <= 200 else f"{line[:199]}…"


def _retry_after_s(given: str) -> float:
    """A Retry-After header, a number or a date, in seconds from now; 0 where there is none or it cannot be read."""
    try:
        seconds = (
            float(given) if re.fullmatch(r"\d+(\.\d*)?", given) else (parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds()
        )
    except (ValueError, TypeError):  # no date; a date without a zone
        return 0.0
    return max(0.0, seconds) if isfinite(seconds) else 0.0


# --- the cache: one small file an answer, whole or not at all, so that any number of processes may share a folder -------------------------


def _cache_folder(cache: str | None) -> Path | None:
    if cache is None:
        return None
    if cache:
        return Path(cache).expanduser()
    return Path(os.environ.get("MMRL_CACHE", Path.home() / ".cache" / "mmrl")) / "judge"


def _read(folder: Path, key: str) -> Reply | None:
    """None for what is not there, and for a file that a power cut left empty or a disk damaged: it is asked and written again."""
    try:
        kept = json.loads((folder / key[:2] / f"{key}.json").read_bytes())
        text, complete = kept["text"], kept["complete"]
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None
    return Reply(text, complete) if isinstance(text, str) and isinstance(complete, bool) else None


def _write(folder: Path, key: str, model: str, reply: Reply) -> None:
    path = folder / key[:2] / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(prefix=f".{key[:8]}-", suffix=".part", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"model": model, "text": reply.text, "complete": reply.complete}, file)
    os.replace(part, path)
