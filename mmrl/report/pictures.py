"""Pictures of a run folder as data URIs, each embedded once."""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from mmrl.errors import MediaError


@dataclass(frozen=True)
class Limit:
    """What a picture may take of the page."""

    as_it_is_bytes: int
    """A PNG up to this size is embedded untouched; a larger file, or one of another format, is shrunk and becomes a JPEG."""
    long_side: int
    """Pixels of the JPEG."""
    quality: int


PICTURE = Limit(as_it_is_bytes=48 * 1024, long_side=448, quality=82)
FRAME = Limit(as_it_is_bytes=12 * 1024, long_side=224, quality=78)
"""Of a clip: many of them are shown at once."""

Key = tuple[Path, Limit]


@dataclass(frozen=True)
class Picture:
    uri: str
    width: int
    height: int
    """Pixels of the file, before any shrinking."""


@dataclass
class Album:
    """The page's pictures; the page refers to them by their position in `uris`."""

    run: Path
    uris: list[str] = field(default_factory=list)
    _cache: dict[Key, Picture] = field(default_factory=dict)
    _position: dict[str, int] = field(default_factory=dict)

    def look(self, path: str, place: str, *, beside: Path | None = None, limit: Limit = PICTURE) -> tuple[Key, Picture]:
        """A picture and the key that `add` takes; not yet in the page. `path` is relative to `beside` or to the run folder, in this order.
        Raises MediaError, naming `place`, for a path that leaves the run folder and a file that is missing or no picture."""
        key = self._find(path, place, beside), limit
        if key not in self._cache:
            self._cache[key] = _embed(*key, place)
        return key, self._cache[key]

    def new_bytes(self, keys: set[Key]) -> int:
        """What adding these would cost; those already in the page cost nothing."""
        return sum(map(len, {self._cache[key].uri for key in keys} - self._position.keys()))

    def add(self, key: Key) -> int:
        """Position in `uris` of a picture that `look` gave."""
        uri = self._cache[key].uri
        if uri not in self._position:
            self._position[uri] = len(self.uris)
            self.uris.append(uri)
        return self._position[uri]

    def _find(self, path: str, place: str, beside: Path | None) -> Path:
        root = self.run.resolve()
        for folder in (beside, self.run):
            if folder is not None:
                file = (folder / path).resolve()
                if not file.is_relative_to(root):
                    raise MediaError(f"{place}: picture {path!r} lies outside the run folder; only the run's own pictures are embedded")
                if file.is_file():
                    return file
        raise MediaError(f"{place}: picture {path!r} is missing from {self.run}; copy the run folder whole, with its media folders")


def _embed(file: Path, limit: Limit, place: str) -> Picture:
    raw = file.read_bytes()
    try:
        with Image.open(io.BytesIO(raw)) as image:
            image.load()
            width, height = image.size
            if image.format != "PNG" or len(raw) > limit.as_it_is_bytes:
                small = image.convert("RGB")
                small.thumbnail((limit.long_side, limit.long_side))
                buffer = io.BytesIO()
                small.save(buffer, "JPEG", quality=limit.quality)
                return Picture(_data_uri("image/jpeg", buffer.getvalue()), width, height)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow reports a damaged PNG as any of these.
        raise MediaError(f"{place}: {file} is no picture that can be read ({error})") from error
    return Picture(_data_uri("image/png", raw), width, height)


def _data_uri(mime: str, raw: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(raw).decode('ascii')}"
