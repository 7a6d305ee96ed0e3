"""`minimal bench`: how fast is it, against the libraries that people use and against what the machine allows.

All cases run in one process and take turns, so that a busy machine slows them alike; medians are compared, as ratios.
One thread. The floor is the job with everything taken away but its arithmetic: the bare matrix products of a token and
the products that read the cache once. Peers come from the package registry: `pip install 'minimal[bench]'`.
"""

import importlib.util
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from minimal.ar.raster import RasterGPT
from minimal.bench_batching import batching
from minimal.bench_gpu import gpu
from minimal.bench_scale import next_scale
from minimal.bench_speculative import speculative
from minimal.samplers.cached import sample_cached, sample_uncached
from minimal.samplers.fast import FastRaster
from minimal.tokenizers.fsq import FSQ
from minimal.tokenizers.lfq import LFQ
from minimal.tokenizers.residual import ResidualQuantizer
from minimal.tokenizers.vq import VectorQuantizer


def main(job: str = "all", device: str = "cpu") -> None:
    """Run one job of `JOBS`, or all of them, and print tables."""
    if job != "all" and job not in JOBS:
        raise ValueError(f"unknown job {job!r}; the jobs are {', '.join(JOBS)} and all")
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    print(f"torch {torch.__version__}, {name}, one thread")
    for title, run in JOBS.items():
        if job in (title, "all"):
            run(device)


def race(cases: dict[str, Callable[[], object]], rounds: int = 7, device: str = "cpu") -> dict[str, float]:
    """Median seconds of each case.

    One round runs every case once. On a CPU the clock counts this thread's time only.
    """
    clock = time.perf_counter if device == "cuda" else time.thread_time
    seconds = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            start = clock()
            case()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first round warms up
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


# Decode: a Llama-style decoder of 8.9 M parameters, 256 tokens


SIZE = dict(dim=256, layers=8, heads=8, hidden=1024)
VOCAB, TOKENS = 1024, 256


def decode(device: str = "cpu", rounds: int = 5) -> None:
    """Tokens per second of greedy decoding, equal weights, against transformers and x-transformers."""
    torch.manual_seed(0)
    model = RasterGPT(VOCAB, TOKENS, **SIZE).eval().to(device)
    torch.nn.init.normal_(model.head.weight, std=0.2)  # logits far apart: a greedy token must not hang on the last bit
    fast = FastRaster(model)
    for batch in (1, 16):
        prompt = torch.full((batch, 1), VOCAB, device=device)  # the null class, our first input
        cases = {
            "minimal, cached": partial(sample_cached, model, batch, temperature=0),
            "minimal, fast step": partial(sample_cached, fast, batch, temperature=0),
            "floor: bare products + cache": bare_products(fast, batch),
        }
        if batch == 1:
            cases["minimal, no cache"] = partial(sample_uncached, model, batch, temperature=0)
        if importlib.util.find_spec("transformers"):
            peer = llama_peer(model)
            options = dict(max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
            cases["transformers, dynamic cache"] = partial(peer.generate, prompt, **options)
            cases["transformers, static cache"] = partial(
                peer.generate, prompt, cache_implementation="static", **options
            )
            for name, ours in (("cached", model), ("fast step", fast)):
                excused, wrong = disagreements(peer, prompt, sample_cached(ours, batch, temperature=0).tokens)
                print(
                    f"batch {batch}, {name}: {wrong} greedy tokens are not transformers', {excused} near-ties excused"
                )
        if importlib.util.find_spec("x_transformers"):
            other = x_transformers_peer().to(device)
            cases["x-transformers, cached"] = partial(other.generate, prompt, TOKENS, temperature=0.0, cache_kv=True)
        title, seconds = f"decode, batch {batch}", race(cases, rounds, device)
        report(title, seconds, batch * TOKENS, base="transformers, dynamic cache")


def report(title: str, seconds: dict[str, float], tokens: int, base: str) -> None:
    floor = seconds["floor: bare products + cache"]
    reference = seconds.get(base, seconds["minimal, cached"])
    print(f"\n{title:32s} tokens/s   x {base if base in seconds else 'minimal, cached'}   of the floor")
    for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"{name:32s} {tokens / value:8.0f}   {reference / value:5.2f}   {floor / value:12.0%}")


def bare_products(fast: FastRaster, batch: int) -> Callable[[], None]:
    """The matrix products of `TOKENS` decode steps on preallocated buffers, and nothing else."""
    attention = fast.blocks[0].attention
    H, G, d = attention.heads, attention.kv_heads, attention.head_dim
    weight = fast.head_weight
    like = dict(device=weight.device, dtype=weight.dtype)
    layers = [(*weights, *(torch.randn(batch, w.shape[0], **like) for w in weights)) for weights in fast.layers]
    keys = torch.randn(len(layers), batch, G, TOKENS, d, **like)
    x = torch.randn(batch, weight.shape[0], **like)
    q = torch.randn(batch, G, H // G, d, **like)
    weights = [torch.randn(batch, G, H // G, t, **like) for t in range(1, TOKENS + 1)]

    @torch.inference_mode()
    def run() -> None:
        for t in range(TOKENS):
            for layer, (qkv, out, gate_up, down, x1, x2, x3, x4) in enumerate(layers):
                torch.mm(x1, qkv)
                past = keys[layer, :, :, : t + 1]
                q @ past.mT
                weights[t] @ past
                torch.addmm(x, x2, out)
                torch.mm(x3, gate_up)
                torch.addmm(x, x4, down)
            torch.mm(x, weight)

    return run


@torch.inference_mode()
def disagreements(peer, prompt: Tensor, tokens: Tensor, gap: float = 1e-4) -> tuple[int, int]:
    """Greedy tokens (B, N) that the peer, given what stands before each, would not have chosen: near-ties, and others.

    After a near-tie two greedy decoders part for good, so token strings cannot be compared; choices can.
    """
    logits = peer(torch.cat((prompt, tokens[:, :-1]), dim=1)).logits[:, -tokens.shape[1] :]
    lack = logits.amax(-1) - logits.gather(-1, tokens[..., None]).squeeze(-1)
    return int(((lack > 0) & (lack < gap)).sum()), int((lack >= gap).sum())


def x_transformers_peer():
    """x-transformers' decoder of the same sizes, with weights of its own."""
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    dim, heads = SIZE["dim"], SIZE["heads"]
    decoder = Decoder(
        dim=dim,
        depth=SIZE["layers"],
        heads=heads,
        attn_dim_head=dim // heads,
        attn_flash=True,
        rotary_pos_emb=True,
        rotary_emb_dim=dim // heads,
        ff_glu=True,
        ff_swish=True,
        ff_mult=SIZE["hidden"] // dim,
        ff_no_bias=True,
        use_rmsnorm=True,
    )
    return AutoregressiveWrapper(
        TransformerWrapper(num_tokens=VOCAB + 1, max_seq_len=TOKENS + 1, attn_layers=decoder)
    ).eval()


def llama_peer(model: RasterGPT):
    """transformers' Llama with the weights of `model`.

    It pairs rotary channels (i, i + d / 2) where we pair (2i, 2i + 1).
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    attention = model.blocks[0].attention
    peer = (
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=model.vocab_size + 1,
                hidden_size=model.head.in_features,
                intermediate_size=model.blocks[0].feed_forward.out.in_features,
                num_hidden_layers=len(model.blocks),
                num_attention_heads=attention.heads,
                num_key_value_heads=attention.kv_heads,
                rms_norm_eps=model.norm.eps,
                max_position_embeddings=2 * model.length,
                tie_word_embeddings=False,
                eos_token_id=None,
            )
        )
        .eval()
        .to(model.head.weight.device)
    )

    def halves(weight: Tensor) -> Tensor:
        """Rows of each head from interleaved pairs to two halves."""
        return weight.unflatten(0, (-1, attention.head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)

    with torch.no_grad():
        peer.model.embed_tokens.weight.copy_(model.embedding.weight)  # its last row is the first input, the null class
        peer.model.norm.weight.copy_(model.norm.weight)
        peer.lm_head.weight[:-1] = model.head.weight
        peer.lm_head.weight[-1] = 0  # a logit of 0 is never the largest of these 1,025
        for block, layer in zip(model.blocks, peer.model.layers):
            sizes = [n * attention.head_dim for n in (attention.heads, attention.kv_heads, attention.kv_heads)]
            q, k, v = block.attention.qkv.weight.split(sizes)
            gate, up = block.feed_forward.gate_up.weight.chunk(2)
            layer.self_attn.q_proj.weight.copy_(halves(q))
            layer.self_attn.k_proj.weight.copy_(halves(k))
            layer.self_attn.v_proj.weight.copy_(v)
            layer.self_attn.o_proj.weight.copy_(block.attention.out.weight)
            layer.mlp.gate_proj.weight.copy_(gate)
            layer.mlp.up_proj.weight.copy_(up)
            layer.mlp.down_proj.weight.copy_(block.feed_forward.out.weight)
            layer.input_layernorm.weight.copy_(block.norm1.weight)
            layer.post_attention_layernorm.weight.copy_(block.norm2.weight)
    return peer


# Quantizers: one step of training on 64 images of 256 tokens


CODES, DIM, DEPTH = 1024, 64, 4


def quantizers(device: str = "cpu", rounds: int = 7) -> None:
    """Forward and backward of each quantizer against vector-quantize-pytorch, on the same vectors and codes.

    The floor is the forward's matrix products: vectors times codes; for LFQ one half codebook's use times the other's.
    """
    if not importlib.util.find_spec("vector_quantize_pytorch"):
        print("\nquantizers: no peer to measure against; pip install 'minimal[bench]'")
        return
    print(f"\n{'quantizers, 64 x 256 tokens':28s} ours, ms   peer, ms   x peer   target   of the floor   other tokens")
    for title, (ours, peer, floor, target) in quantizer_pairs().items():
        ours, peer, z = ours.to(device), peer.to(device), torch.randn(64, 256, ours.dim, device=device)
        other = other_tokens(ours, peer, z)
        cases = {"ours": partial(quantizer_step, ours, z), "peer": partial(quantizer_step, peer, z)}
        if floor is not None:
            cases["floor"] = partial(floor, z.flatten(0, 1))
        seconds = race(cases, rounds if floor is not None else 30 * rounds, device)  # rounding takes a millisecond
        ratio = seconds["peer"] / seconds["ours"]
        share = f"{seconds['floor'] / seconds['ours']:.0%}" if floor is not None else "-"
        print(
            f"{title:28s} {seconds['ours'] * 1e3:8.1f}   {seconds['peer'] * 1e3:8.1f}   {ratio:6.1f}   {target:6.0f}   "
            f"{share:>12s}   {other:12d}" + ("" if ratio >= target else "   below target")
        )


def quantizer_pairs() -> dict[str, tuple]:
    """Ours, the peer with the same codes, the bare products, and the ratio we aim at."""
    import vector_quantize_pytorch as peers

    options = dict(decay=0.99, rotation_trick=False, commitment_weight=0.25)
    vq, their_vq = VectorQuantizer(CODES, DIM), peers.VectorQuantize(DIM, CODES, **options)
    residual = ResidualQuantizer(CODES, DIM, DEPTH)
    their_residual = peers.ResidualVQ(dim=DIM, num_quantizers=DEPTH, codebook_size=CODES, **options)
    for table, codes in zip([vq, *residual.tables], [their_vq.codebook, *their_residual.codebooks], strict=True):
        table.start(codes.clone())
    levels, bits = (8, 5, 5, 5), 10
    their_lfq = peers.LFQ(dim=bits, codebook_size=2**bits, entropy_loss_weight=0.1, commitment_loss_weight=0.25)

    def lookup(rows: Tensor, times: int = 1) -> None:
        for _ in range(times):
            for part in rows.split(512):
                torch.mm(part, vq.codebook.mT)

    def halves(rows: Tensor) -> None:
        use = rows.new_zeros(len(rows), 2 ** (bits // 2))
        torch.mm(use.mT, use)

    return {
        f"VQ, {CODES} codes of {DIM}": (vq, their_vq, lookup, 7),
        f"residual VQ, {DEPTH} times": (residual, their_residual, partial(lookup, times=DEPTH), 7),
        f"FSQ, levels {levels}": (FSQ(levels), peers.FSQ(list(levels)), None, 1),
        f"LFQ, {bits} bits, entropy loss": (LFQ(bits), their_lfq, halves, 15),
    }


@torch.no_grad()
def other_tokens(ours: nn.Module, peer: nn.Module, z: Tensor) -> int:
    """How many of the peer's tokens differ from ours; near-ties may. Its depths are the last dimension."""
    mine, theirs = ours.eval()(z)[1], peer.eval()(z)[1]
    for quantizer in (ours, peer):
        quantizer.train()
    return int((mine != (theirs.mT.flatten(1) if theirs.ndim == 3 else theirs)).sum())


def quantizer_step(quantizer: nn.Module, z: Tensor) -> None:
    """Forward and backward; the peers return codes, indices and, with one exception, a loss. Codebooks move too."""
    z = z.detach().requires_grad_()
    q, _, *losses = quantizer(z)
    (q.square().mean() + sum(loss.sum() for loss in losses)).backward()


JOBS: dict[str, Callable[[str], None]] = {"decode": decode, "quantizers": quantizers} | {
    job.__name__: partial(job, race) for job in (next_scale, speculative, batching, gpu)
}
