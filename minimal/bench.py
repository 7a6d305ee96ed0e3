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
from torch import Tensor

from minimal.ar.raster import RasterGPT
from minimal.samplers.cached import sample_cached, sample_uncached
from minimal.samplers.fast import FastRaster

JOBS: dict[str, Callable[[str], None]] = {}


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


JOBS["decode"] = decode


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
