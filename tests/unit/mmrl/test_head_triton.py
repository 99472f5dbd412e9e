"""The Triton kernels of the LM head without a GPU: run by Triton's interpreter against plain torch, and compiled for an H100."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed (torch brings it on Linux)")

ROOT = Path(__file__).parents[3]

INTERPRETED = """
import json, os, torch
from mmrl import head, head_torch, head_triton
head_triton.BLOCK = 128
out = {}

def error(actual, expected, relative=False):
    # The largest gap: to each element in its own proportion, or in that of its tensor if the tensor has elements beyond 1.
    worst = 0.0
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype, (a.shape, e.shape, a.dtype, e.dtype)
        assert torch.equal(a.isneginf(), e.isneginf())
        a, e = (x.double().nan_to_num(nan=float("nan"), neginf=0.0) for x in (a, e))
        gap = (a - e).abs() / (e.abs() + 1e-6 if relative else e.abs().max().clamp(min=1.0))
        worst = max(worst, gap.max().item() if gap.isfinite().all() else float("inf"))
    return worst

def inputs(v, seed, d=8, n=3):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=generator).requires_grad_()
    return hidden, (torch.randn(v, d, generator=generator) / 2).requires_grad_(), torch.randint(128, v, (n,), generator=generator)

def compare(name, run):
    results = []
    for kernels in ("triton", "torch"):
        os.environ[head.CHOICE] = kernels
        results.append(run())
    out[name] = error(*results)

# 300 is 2 * 128 + 44; the banned ids fill a whole block and a column of the last one, and that column is a target.
coefs = torch.tensor([-1.0, 0.5, 2.0])
banned = torch.cat([torch.arange(128), torch.tensor([299])])
for v, chunk, banned_ids, softcap in ((300, 3, banned, 3.0), (300, 2, None, None), (300, 2, banned, None), (256, 3, None, 3.0)):
    name = f"v={v} chunk={chunk} banned={banned_ids is not None} softcap={softcap}"
    options = {"temperature": 0.7, "chunk": chunk, "softcap": softcap, "banned_ids": banned_ids}
    hidden, weight, ids = inputs(v, 0)
    if banned_ids is not None:
        ids[2] = 299
    for use_logps, use_entropy in ((1, 0), (0, 1), (1, 1)):
        def run():
            logps, entropies = head.chunked_logps_entropy(hidden, weight, ids, with_entropy=True, **options)
            parts = [(logps[:2] * coefs[:2]).sum()] * use_logps + [(entropies * coefs).sum()] * use_entropy
            loss = sum(parts)
            return logps.detach(), entropies.detach(), *torch.autograd.grad(loss, (hidden, weight))
        compare(f"head {use_logps} {use_entropy} {name}", run)
    compare(f"head alone {name}", lambda: [head.chunked_logps_entropy(hidden, weight, ids, **options)[0].detach()])
    hidden_q, weight_q, _ = inputs(v, 1)
    for direction, given in (("forward", [hidden, weight, hidden_q.detach(), weight_q.detach()]),
                             ("reverse", [hidden.detach(), weight.detach(), hidden_q, weight_q]),
                             ("symmetric", [hidden, weight, hidden_q, weight])):
        asked = [x for n, x in enumerate(given) if x.requires_grad and not (n == 3 and x is weight)]
        def run():
            kl = head.chunked_kl(*given, direction=direction, **options)
            return kl.detach(), *torch.autograd.grad((kl * coefs).sum(), asked)
        compare(f"kl {direction} {name}", run)

def run():  # a plain sum: its gradient is one number, expanded without memory of its own
    logps, entropies = head.chunked_logps_entropy(hidden, weight, ids, temperature=1.0, with_entropy=True)
    return torch.autograd.grad(logps.sum() - entropies.sum(), (hidden, weight))
compare("head, plain sum", run)

# Half-precision logits, and a half-precision gradient of float32 logits, as hidden states of bfloat16 want it.
form = head.LogitMap(0.7, 3.0)
z, z_q = (3 * torch.randn(2, 3, 300, generator=torch.Generator().manual_seed(2))).bfloat16()
ids = torch.arange(3)
def logits(z):
    z = z.float() * head_torch.product_scale(form)
    head_torch.finish_(z, form)
    return z
ours, plain = head_triton.stats(z, ids, form, True), head_torch.stats(logits(z), ids, form, True)
out["bfloat16 stats"] = error(ours, plain)
lse, _, entropies = plain
for dtype in (torch.float32, torch.bfloat16):
    grads = [head_triton.gradient(z.to(dtype, copy=True), ids, form, lse, entropies, coefs, coefs, torch.bfloat16),
             head_torch.gradient(logits(z), ids, form, lse, entropies, coefs, coefs, torch.bfloat16)]
    out[f"bfloat16 gradient of {dtype}, relative"] = error([grads[0]], [grads[1]], relative=True)
ours, plain = head_triton.kl_stats(z, z_q, form), head_torch.kl_stats(logits(z), logits(z_q), form)
out["bfloat16 kl"] = error(ours, plain)
for dtype in (torch.float32, torch.bfloat16):
    copies = z.to(dtype, copy=True), z_q.to(dtype, copy=True)
    grads = [head_triton.kl_gradients(*copies, form, plain, coefs, coefs, (True, True), torch.bfloat16),
             head_torch.kl_gradients(logits(z), logits(z_q), form, plain, coefs, coefs, (True, True), torch.bfloat16)]
    out[f"bfloat16 kl gradients of {dtype}, relative"] = error(*grads, relative=True)

# The whole way of bfloat16 hidden states on CUDA, with the one product that the CPU lacks written out.
addmm = torch.addmm
torch.addmm = lambda base, a, b, *, out_dtype, **options: addmm(base, a.float(), b.float(), **options)
hidden, weight = (x.detach().bfloat16().requires_grad_() for x in inputs(300, 0)[:2])
def run():
    logps, entropies = head._LogpsEntropy.apply(hidden, weight, ids, form, 2, True)
    return logps.detach(), entropies.detach(), *torch.autograd.grad(logps.sum() - entropies.sum(), (hidden, weight))
compare("bfloat16 head", lambda: run()[:2])
compare("bfloat16 head gradients, of the largest", lambda: run()[2:])
torch.addmm = addmm

# A logit of 1e4 beside others, a target out of range, and no rows at all.
hidden, weight = torch.ones(1, 1), torch.zeros(300, 1)
weight[200] = 1e4
os.environ[head.CHOICE] = "triton"
logps, entropies = head.chunked_logps_entropy(hidden, weight, torch.tensor([200]), temperature=1.0, with_entropy=True)
out["one large logit"] = max(logps.abs().item(), entropies.abs().item())
logps, _ = head.chunked_logps_entropy(hidden, weight, torch.tensor([300]), temperature=1.0)
out["id out of range is NaN"] = 0.0 if logps.isnan().all() else 1.0
out["no rows"] = float(head.chunked_logps_entropy(hidden[:0], weight, torch.tensor([], dtype=torch.int64), temperature=1.0)[0].numel())
assert head._kernels(hidden) is head_triton and head._kernels(hidden.double()) is head_torch
print("RESULT" + json.dumps(out))
"""


def test_interpreted_kernels_equal_plain_torch(tmp_path):
    """Values, and gradients of every result and input; bfloat16 gradients to a unit in the last place (2^-7 at most)."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    errors = json.loads(run.stdout.partition("RESULT")[2])
    assert len(errors) == 4 * (4 + 3) + 12
    limits = {name: 2**-7 if name.startswith("bfloat16") and "gradient" in name else 1e-5 for name in errors}
    assert {name: error for name, error in errors.items() if not error <= limits[name]} == {}


FLAGS = {
    "_stats": [{"WITH_ENTROPY": flag} for flag in (False, True)],
    "_gradient": [{"WITH_ENTROPY": flag} for flag in (False, True)],
    "_kl_stats": [{}],
    "_kl_gradients": [{"WANT_P": True, "WANT_Q": True}, {"WANT_P": True, "WANT_Q": False}, {"WANT_P": False, "WANT_Q": True}],
}


@pytest.mark.parametrize(("logits", "gradient"), [("fp32", "bf16"), ("bf16", "bf16"), ("fp32", "fp32")])
@pytest.mark.parametrize("name", FLAGS)
def test_kernels_compile_for_sm_90(name, logits, gradient, tmp_path, monkeypatch):
    """PTX and a cubin, made without a GPU, without and with the soft cap."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mmrl import head_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(head_triton, name)
    for flags in FLAGS[name]:
        constants = {**flags, "CAPPED": flags.get("WITH_ENTROPY", True), "BLOCK": head_triton.BLOCK}
        signature = {}
        for argument in kernel.arg_names:
            if argument in constants:
                signature[argument] = "constexpr"
            elif argument in ("z", "z_p", "z_q"):
                signature[argument] = f"*{logits}"
            elif argument in ("out", "out_p", "out_q"):
                signature[argument] = f"*{gradient}"
            elif argument == "ids":
                signature[argument] = "*i64"
            elif argument == "vocabulary" or argument.endswith("_stride"):
                signature[argument] = "i32"
            else:
                signature[argument] = "fp32" if argument in ("temperature", "cap") else "*fp32"
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": head_triton.WARPS})
        assert ".target sm_90" in built.asm["ptx"]
        assert built.asm["cubin"].startswith(b"\x7fELF")
        assert "local" not in built.asm["ptx"]  # nothing spilled
