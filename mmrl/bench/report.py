"""What a benchmark leaves: its numbers with commit, command, machine and versions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrl.metrics import provenance, versions, write_json


def write_bench(file: Path | None, points: list[dict[str, Any]], packages: Sequence[str] = ()) -> None:
    """Writes the points to `file`, or the newest to standard output where none is given. `packages`: what else the numbers hang on."""
    if file is None:
        print(json.dumps(points[-1], indent=1))
        return
    made = provenance()
    made["versions"] = versions(("torch", "transformers", *packages))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, made | {"points": points})
