"""The recipe of exposure bias: `shapes_var` trained on in four ways, from the same weights, with three seeds each.

    plain      nothing new: cross-entropy given the truth
    student    and again given the model's own argmax, strength times, with the truth as target
    sar        the same with that argmax as target
    noise      given tokens of which a share, the strength, was moved to a code near by

All see the same batches, at the rate at which the schedule of `shapes_var` ended. Strengths come from one pilot of
three values each, judged by the Fréchet distance of 1,000 samples. Two arms make two forwards a step, so `plain` goes
on for twice as many steps and is measured after as many steps, and after as many multiply-adds.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from minimal import checkpoints
from minimal.ar.scale import NextScale
from minimal.ar.self_refine import InputNoise, SelfRefinement, predict
from minimal.nn.token_model import cross_entropy
from minimal.recipes.autoregressive import BATCH, Trained, coded, guided, judged
from minimal.samplers.cached import sample_cached
from minimal.tokenizers.perturb import perturb_indices
from minimal.train import EMA, adamw, fit

ARMS = ("plain", "student", "noise", "sar")
STEPS, EVERY, RATE, SEEDS = 300, 150, 5e-4, 3
STRENGTHS, PILOT_STEPS, PILOT_SEED = (0.02, 0.1, 0.5), 50, 9
NEAR = 32  # codes, an eighth of them, among which a wrong token stays
GUIDANCE = 2.0
HELD_OUT = 500


def step_of(arm: str, strength: float, model: NextScale) -> Callable | None:
    """The training step of an arm; None is the model's own loss."""
    if arm == "plain":
        return None
    if arm == "noise":
        codes = model.quantizer.table(0).codebook
        return InputNoise(model, partial(perturb_indices, codes=codes, alpha=strength, delta=NEAR))
    return SelfRefinement(model, strength, "prediction" if arm == "sar" else "truth")


@torch.inference_mode()
def exposure(model: NextScale, tokens: Tensor, labels: Tensor) -> dict[str, float]:
    """Nats per true token of `tokens` (B, N) over all scales, and the entropy of the last scale and its nats per true
    token in three contexts.

    The context is the truth; what the model predicts for every scale from true ones, by argmax; or scales that it drew
    for the label, in which another picture begins.
    """
    last = model.levels == model.levels[-1]
    logits = model.logits(tokens, labels)
    drawn = sample_cached(model, len(tokens), cond=labels, generator=torch.Generator().manual_seed(0)).tokens
    found = {"nats_per_token": cross_entropy(logits, tokens)}
    for name, rows in (
        ("true", logits),
        ("predicted", model.logits(predict(logits), labels)),
        ("drawn", model.logits(drawn, labels)),
    ):
        logp = rows[:, last].log_softmax(-1)
        found[f"last_scale_{name}"] = cross_entropy(logp, tokens[:, last])
        found[f"entropy_{name}"] = -(logp.exp() * logp).sum(-1).mean()
    return {name: value.item() for name, value in found.items()}


def further(
    arm: str, seed: int, strength: float = 0.0, steps: int = STEPS, whole: bool = True, device: str = "cpu", **options
) -> Trained:
    """One arm from one seed: `shapes_var` trained on, and what is measured after every `EVERY` steps.

    Without `whole`, only the Fréchet distance of unguided samples.
    """
    tokenizer, model = checkpoints.load("shapes_multiscale", device), checkpoints.load("shapes_var", device)
    codes = {split: tuple(part.to(device) for part in parts) for split, parts in coded(tokenizer).items()}
    held_out, metrics = tuple(part[:HELD_OUT] for part in codes["validation"]), {}

    def validate(step: int) -> float:
        metrics.update({f"step{step}_{name}": x for name, x in measured(model, tokenizer.decode, held_out, whole)})
        return metrics[f"step{step}_frechet_guidance_1"]

    fit(
        model,
        codes["train"],
        adamw(model, RATE),
        steps=2 * steps if arm == "plain" and whole else steps,
        step_fn=step_of(arm, strength, model),
        batch_size=BATCH,
        seed=seed,
        warmup=0.0,
        floor=1.0,  # the rate stays as it is
        ema=EMA(model, 0.99),
        validate=validate,
        validate_every=min(EVERY, steps),
        keep_best=False,
        desc=f"{arm} {strength:g}, seed {seed}",
        **options,
    )
    return model, metrics


def measured(model: NextScale, paint: Callable, held_out: tuple[Tensor, Tensor], whole: bool = True):
    """Names and values: the judge's view of 1,000 samples; if `whole`, with and without guidance, and `exposure`."""
    samplers = {"1": partial(sample_cached, model)} | ({f"{GUIDANCE:g}": guided(model, GUIDANCE)} if whole else {})
    for scale, sample in samplers.items():
        seen = judged(sample, paint)
        yield from ((f"{name}_guidance_{scale}", seen[name]) for name in ("accuracy", "frechet"))
    if whole:
        yield from exposure(model, *held_out).items()


def treated(arm: str, seeds: tuple[int, ...], steps: int = STEPS, save_to=None, **options) -> Trained:
    """Pilots of an arm, then its runs; `save_to` is for the last of them."""
    metrics, strength = {}, 0.0
    if arm != "plain":
        for value in STRENGTHS:
            pilot = dict(steps=min(steps, PILOT_STEPS), whole=False)
            [found] = [v for k, v in further(arm, PILOT_SEED, value, **pilot, **options)[1].items() if "frechet" in k]
            metrics[f"{arm}_pilot_{value:g}_frechet"] = found
        strength = min(STRENGTHS, key=lambda value: metrics[f"{arm}_pilot_{value:g}_frechet"])
        metrics[f"{arm}_strength"] = strength
    for seed in seeds:
        last = seed == seeds[-1]
        model, found = further(arm, seed, strength, steps, save_to=save_to if last else None, **options)
        metrics |= {f"{arm}_seed{seed}_{name}": value for name, value in found.items()}
    return model, metrics


def start(device: str = "cpu") -> dict[str, float]:
    """What is measured before."""
    tokenizer, model = checkpoints.load("shapes_multiscale", device), checkpoints.load("shapes_var", device)
    held_out = tuple(part[:HELD_OUT].to(device) for part in coded(tokenizer)["validation"])
    return {f"start_{name}": value for name, value in measured(model, tokenizer.decode, held_out)}


def shapes_var_sar(seed: int = 0, device: str = "cpu", save_to=None, **options) -> Trained:
    """SAR on `shapes_var`. The metrics are those of all arms and seeds; the model is that of the first seed."""
    seeds, metrics = tuple(range(seed + SEEDS - 1, seed - 1, -1)), start(device)
    for arm in ARMS:
        own = save_to if arm == ARMS[-1] else None
        model, found = treated(arm, seeds, save_to=own, device=device, **options)
        metrics |= found
    return model, metrics


RECIPES: dict[str, Callable[..., Trained]] = {"shapes_var_sar": shapes_var_sar}
