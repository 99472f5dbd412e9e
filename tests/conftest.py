"""For every test: one thread, and the shapes of what a loss term is given checked against their annotations."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook(["mmrl.batch"], "beartype.beartype")
