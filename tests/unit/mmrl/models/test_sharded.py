"""Two processes whose wrappers hook every layer: the flat stream gives the mean of both ranks' gradients, as one process would."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmrl.models.forward import GroupForward

WORKER = """
import os
import sys
import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from mmrl.models.forward import GroupForward
from mmrl.models.load import load_policy
from mmrl.recipe import ModelSection
from mmrl.types import Prompt, Task

kind, folder, rows_file, out = sys.argv[1:]
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
saved = np.load(rows_file)
media = [{key: saved[f"{key}{n}"] for key in ("pixel_values", "image_grid_thw")} for n in range(2)]
prompts = [Prompt(Task(str(n), (), (), "", {}), "", saved[f"ids{n}"], media[n]) for n in range(2)]
rows = [(prompts[rank], saved[f"row{rank}{n}"]) for n in range(3)]
policy, _ = load_policy(ModelSection(path=folder))
if kind == "ddp":
    wrapped = DistributedDataParallel(policy)
    forwarded = type("Wrapped", (), {"__call__": lambda self, *a: wrapped(*a), "__getattr__": lambda self, name: getattr(policy, name)})()
else:
    mesh = init_device_mesh("cpu", (2,))
    for layer in (*policy.base.model.visual.blocks, *policy.base.model.language_model.layers):
        fully_shard(layer, mesh=mesh)
    forwarded = fully_shard(policy, mesh=mesh)
for part in GroupForward(0.7, 0, "flat")(forwarded, rows):
    (part.logps * torch.linspace(-1, 1.5, len(part.logps))).sum().backward()
whole = lambda t: t.full_tensor() if hasattr(t, "full_tensor") else t
grads = {name: whole(p.grad).contiguous() for name, p in policy.named_parameters()}
if rank == 0:
    save_file(grads, out)
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # DDP's threads may abort an interpreter that takes its time to end
"""


@pytest.mark.trains
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_gradients_of_two_ranks_are_their_mean(kind, tmp_path, tiny_folder, new_policy, make_prompts, picture_task, completion_ids):
    prompts = make_prompts([picture_task("a", (56, 84)), picture_task("b", (84, 84))])
    ids = {f"{rank}{n}": row for rank in range(2) for n, row in enumerate(completion_ids(rank, [5, 1, 3]))}
    arrays = {f"row{name}": row for name, row in ids.items()}
    for n, prompt in enumerate(prompts):
        arrays |= {f"ids{n}": prompt.ids, **{f"{key}{n}": value for key, value in prompt.mm_inputs.items()}}
    np.savez(tmp_path / "rows.npz", **arrays)
    (tmp_path / "worker.py").write_text(WORKER)
    root = Path(__file__).parents[4]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "worker.py"]
    done = subprocess.run(
        [*command, kind, str(tiny_folder), "rows.npz", "grads.safetensors"], cwd=tmp_path, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    came = load_file(tmp_path / "grads.safetensors")
    policy = new_policy()
    for rank in range(2):
        rows = [(prompts[rank], ids[f"{rank}{n}"]) for n in range(3)]
        for part in GroupForward(0.7, 0)(policy, rows):
            (part.logps * torch.linspace(-1, 1.5, len(part.logps)) / 2).sum().backward()
    expected = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    assert came.keys() == expected.keys()
    floor = 1e-3 * max(float(g.norm()) for g in expected.values())
    assert max(float((came[name] - g).norm()) / max(float(g.norm()), floor) for name, g in expected.items()) < 1e-5
