"""Recipes: named functions that build data, model and schedule, and train a checkpoint that the course ships.

    minimal train digits_ar        or        recipes.run("digits_ar", steps=200)

A recipe returns the trained module and what was measured on it. Weights are chosen on the validation split; the test
split is opened once, at the end, by one process (`by_first`). The course's live training calls the same bodies with
fewer steps.
"""

from collections.abc import Callable
from pathlib import Path

from minimal import checkpoints, judge, processes
from minimal.recipes import (
    any_subset,
    autoregressive,
    captions,
    flex_scale,
    jacobi_forcing,
    masked,
    neighbour,
    self_refine,
    start,
    text,
    tokenizers,
)
from minimal.recipes.start import (
    DRAFT,
    Trained,
    bits,
    digits,
    fit_flow,
    fit_tokens,
    fit_vq,
    pixel_gpt,
    pixel_tokenizer,
    tour_networks,
)
from minimal.recipes.tokenizers import fit_tokenizer, measured, scenes


def run(name: str, out: str | None = None, steps: int | None = None, seed: int = 0, device: str = "cpu") -> Path:
    """Train recipe `name` and save its checkpoint to `out`, by default among the shipped ones.

    Continues a killed run.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}; there are: {', '.join(names())}")
    path = Path(out) if out else checkpoints.folder() / f"{name}.safetensors"
    state = path.with_suffix(".training")
    options = {} if steps is None else {"steps": steps}
    module, metrics = RECIPES[name](seed=seed, device=device, save_to=state, **options)
    if processes.rank() == 0:
        checkpoints.save(module, path, recipe=name, metrics=metrics)
        state.unlink(missing_ok=True)
    return path


def names() -> list[str]:
    return list(RECIPES)


def judge_recipe(name: str) -> Callable[..., Trained]:
    def train(steps: int | None = None, **options) -> Trained:
        return judge.train_judge(name, steps=steps, **options)

    return train


RECIPES: dict[str, Callable[..., Trained]] = {
    **start.RECIPES,
    **tokenizers.RECIPES,
    **autoregressive.RECIPES,
    **captions.RECIPES,
    **flex_scale.RECIPES,
    **neighbour.RECIPES,
    **masked.RECIPES,
    **self_refine.RECIPES,
    **text.RECIPES,
    **any_subset.RECIPES,
    **jacobi_forcing.RECIPES,
    **{name: judge_recipe(name) for name in judge.RECIPES},
}
