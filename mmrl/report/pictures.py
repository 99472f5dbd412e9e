"""Pictures of a run folder as data URIs, each embedded once."""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from mmrl.errors import MediaError

_AS_IT_IS_BYTES = 48 * 1024
"""A PNG up to this size is embedded untouched; a larger file is shrunk and becomes a JPEG."""
_LONG_SIDE = 448


@dataclass(frozen=True)
class Picture:
    uri: str
    width: int
    height: int
    """Pixels of the file, before any shrinking."""


@dataclass
class Album:
    """The page's pictures by file; the page refers to them by their position in `uris`."""

    run: Path
    uris: list[str] = field(default_factory=list)
    _cache: dict[Path, Picture] = field(default_factory=dict)
    _position: dict[Path, int] = field(default_factory=dict)

    def look(self, path: str, place: str, *, beside: Path | None = None) -> tuple[Path, Picture]:
        """The file and its picture, not yet in the page. `path` is relative to `beside` or to the run folder, in this order.
        Raises MediaError, naming `place`, for a path that leaves the run folder and a file that is missing or no picture."""
        file = self._find(path, place, beside)
        if file not in self._cache:
            self._cache[file] = _embed(file, place)
        return file, self._cache[file]

    def new_bytes(self, files: set[Path]) -> int:
        """What adding these would cost; those already in the page cost nothing."""
        return sum(len(self._cache[file].uri) for file in files if file not in self._position)

    def add(self, file: Path) -> int:
        """Position in `uris` of a file that `look` gave."""
        if file not in self._position:
            self._position[file] = len(self.uris)
            self.uris.append(self._cache[file].uri)
        return self._position[file]

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


def _embed(file: Path, place: str) -> Picture:
    raw = file.read_bytes()
    try:
        with Image.open(io.BytesIO(raw)) as image:
            image.load()
            width, height = image.size
            if image.format != "PNG" or len(raw) > _AS_IT_IS_BYTES:
                small = image.convert("RGB")
                small.thumbnail((_LONG_SIDE, _LONG_SIDE))
                buffer = io.BytesIO()
                small.save(buffer, "JPEG", quality=82)
                return Picture(_data_uri("image/jpeg", buffer.getvalue()), width, height)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow reports a damaged PNG as any of these.
        raise MediaError(f"{place}: {file} is no picture that can be read ({error})") from error
    return Picture(_data_uri("image/png", raw), width, height)


def _data_uri(mime: str, raw: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(raw).decode('ascii')}"
