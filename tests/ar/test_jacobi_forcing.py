"""Jacobi Forcing: paths are those of Jacobi decoding, noisy and clean copies do not see each other, and without noise
only ordinary training is left."""

import pytest
import torch
from tiny import seeded, tiny_gpt

from minimal import checkpoints, recipes
from minimal.ar.jacobi_forcing import forcing_loss, noisy_blocks, progressive, right_so_far
from minimal.nn.masks import Mask
from minimal.nn.rope import rotary
from minimal.nn.token_model import cross_entropy
from minimal.recipes import text
from minimal.samplers.cached import sample_cached
from minimal.samplers.jacobi import sample_jacobi, trajectories

P, n = 3, 4  # 12 tokens: a prompt of 3, two blocks of 4, and one left over


def model_without_labels(**changes):
    return tiny_gpt(num_classes=0, length=P + 2 * n, grid_width=None, **changes)


def prompts(model, B=5):
    return torch.randint(model.vocab_size, (B, P), generator=seeded(9))


# Paths


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1.3, "top_k": 4}], ids=["greedy", "sampled"])
def test_a_path_ends_in_what_sequential_decoding_writes(options):
    model = model_without_labels()
    paths = trajectories(model, prompts(model), n, seeded(1), **options)
    assert paths.shape == (5, 2, n + 1, n)
    expected = sample_cached(model, 5, prompt=prompts(model), generator=seeded(1), **options).tokens
    assert torch.equal(paths[:, :, -1].flatten(1), expected[:, P:])


def test_each_iterate_is_one_pass_over_the_one_before():
    model = model_without_labels()
    paths = trajectories(model, prompts(model), n, temperature=0)
    before = prompts(model)
    for j in range(2):
        for k in range(n):
            passed = model.logits(torch.cat((before, paths[:, j, k]), dim=1))[:, -n:].argmax(-1)
            assert torch.equal(passed, paths[:, j, k + 1])
        before = torch.cat((before, paths[:, j, -1]), dim=1)
    assert (paths[:, :, 0] == 0).all()


def test_after_k_passes_k_entries_are_right_and_a_path_is_as_long_as_jacobi_decoding():
    model = model_without_labels(seed=2)
    paths = trajectories(model, prompts(model), n, temperature=0)
    assert (right_so_far(paths) >= torch.arange(n + 1)).all()
    alone = sample_jacobi(tiny_short(model), 1, block=n, prompt=prompts(model)[:1], temperature=0)
    passes = (right_so_far(paths)[0, 0] < n).sum()  # what Jacobi decoding needs, or one more to see that it is over
    assert alone.trace.forwards["target"] - 1 <= passes <= alone.trace.forwards["target"]


def tiny_short(model):
    """The same weights with room for one block only."""
    short = tiny_gpt(num_classes=0, length=P + n, grid_width=None)
    short.load_state_dict(model.state_dict())
    return short


def test_paths_can_be_trained_on():
    model = model_without_labels().requires_grad_(True)
    paths = trajectories(model, prompts(model), n, temperature=0)
    forcing_loss(model, prompts(model), paths, torch.ones(5, 2))[0].backward()
    assert model.head.weight.grad.abs().sum() > 0


def test_a_block_that_does_not_fit_is_refused():
    model = model_without_labels()
    for block in (0, 9):
        with pytest.raises(ValueError, match=f"no block of {block} tokens fits behind a prompt of 3"):
            trajectories(model, prompts(model), block, temperature=0)


# Noise


def test_the_ramp_starts_again_every_w_blocks_wherever_it_is_entered():
    third = [i / 3 for i in range(4)]
    expected = torch.tensor([[*third, *third[:2]], [third[3], *third, third[0]]])
    assert torch.allclose(progressive(6, 4, torch.tensor([0, 3])), expected)
    assert (progressive(5, 1, torch.zeros(1, dtype=torch.long)) == 0).all()


def test_the_iterate_with_the_nearest_noise_is_chosen():
    paths = torch.tensor([[[[9, 9, 9, 9], [1, 9, 9, 9], [1, 2, 3, 9], [1, 2, 3, 4], [1, 2, 3, 4]]]])
    for ratio, chosen in ((0, 3), (0.1, 3), (0.3, 2), (0.7, 1), (0.9, 0), (1, 0)):
        assert torch.equal(noisy_blocks(paths, torch.tensor([[float(ratio)]]))[0, 0], paths[0, 0, chosen])


# The loss


def rows(ratios):
    """A model, its paths, and the clean and the noisy copy."""
    model = model_without_labels().requires_grad_(True)
    paths = trajectories(model, prompts(model), n, temperature=0)
    copies = paths[:, :, -1], noisy_blocks(paths, ratios)
    return model, paths, *(torch.cat((prompts(model), blocks.flatten(1)), dim=1) for blocks in copies)


def gradient(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)])


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_without_noise_only_ordinary_training_is_left(weight):
    ratios = torch.zeros(5, 2)
    model, paths, clean, noisy = rows(ratios)
    loss, logs = forcing_loss(model, prompts(model), paths, ratios, weight=weight)
    ordinary = cross_entropy(model.logits(clean)[:, P:], clean[:, P:])
    assert torch.equal(clean, noisy) and logs["consistency"] == 0
    assert torch.allclose(loss, weight * ordinary)
    assert torch.allclose(gradient(loss, model), weight * gradient(ordinary, model))


def by_hand(model, clean, noisy, from_first_wrong=True, target_moves=False):
    """Cross-entropy of noisy against clean distributions, position by position."""
    p, log_q = model.logits(clean).softmax(-1), model.logits(noisy).log_softmax(-1)
    p, terms = p if target_moves else p.detach(), []
    for b in range(len(clean)):
        for start in (P, P + n):
            wrong = False
            for j in range(start, start + n):
                wrong = wrong or bool(clean[b, j] != noisy[b, j])
                if wrong or not from_first_wrong:
                    terms.append(-(p[b, j] * log_q[b, j]).sum())
    return sum(terms) / len(terms)


def test_consistency_counts_from_the_first_wrong_entry_and_moves_the_noisy_side_alone():
    ratios = torch.tensor([[0.5, 1.0]] * 5)
    model, paths, clean, noisy = rows(ratios)
    loss, logs = forcing_loss(model, prompts(model), paths, ratios, weight=0.0)
    right = by_hand(model, clean, noisy)
    assert torch.allclose(loss, right.to(loss)) and loss == logs["consistency"]
    assert torch.allclose(gradient(loss, model), gradient(right, model), atol=1e-6)
    assert not torch.allclose(loss, by_hand(model, clean, noisy, from_first_wrong=False).to(loss), rtol=1e-3)
    moving = by_hand(model, clean, noisy, target_moves=True)
    assert not torch.allclose(gradient(loss, model), gradient(moving, model), atol=1e-4)


# One packed sequence, as in the paper: the prompt, then the clean blocks, then the noisy ones


def packed_mask(P, N):
    """Entries 0 .. N - 1 are the prompt and the clean inputs; the others are noisy and stand at places P .. N - 1."""

    def place(x):
        return torch.where(x.position < N, x.position, x.position - N + P)

    return Mask(lambda q, k: (place(k) <= place(q)) & (((q.position < N) == (k.position < N)) | (k.position < P)))


def packed(model, clean, noisy, mask):
    """Logits (B, N, V) and (B, N - P, V) of one pass over both, and the embedded inputs."""
    N = clean.shape[1]
    start = model.start(None, len(clean), clean.device)
    inputs = torch.cat((start, clean[:, :-1], noisy[:, P - 1 : -1]), dim=1)
    place = torch.cat((torch.arange(N), torch.arange(P, N)))
    rotation = rotary(model.coordinates[place], model.blocks[0].attention.head_dim)
    x = embedded = model.embedding(inputs).detach().requires_grad_(True)
    for layer, block in enumerate(model.blocks):
        x = block(x, rotation, mask, None, layer)
    logits = model.head(model.norm(x))
    return logits[:, :N], logits[:, N:], embedded


def test_two_rows_compute_what_the_packed_sequence_computes_and_neither_copy_sees_the_other():
    model, N = model_without_labels(), P + 2 * n
    paths = trajectories(model, prompts(model), n, temperature=0)
    clean = torch.cat((prompts(model), paths[:, :, -1].flatten(1)), dim=1)
    noisy = torch.cat((prompts(model), noisy_blocks(paths, torch.ones(5, 2)).flatten(1)), dim=1)
    positions = torch.arange(2 * N - P)
    mask = packed_mask(P, N)(positions, positions)
    from_clean, from_noisy, embedded = packed(model, clean, noisy, mask)
    assert torch.allclose(from_clean, model.logits(clean)) and torch.allclose(from_noisy, model.logits(noisy)[:, P:])

    def seen(logits):
        return torch.autograd.grad(logits.sum(), embedded, retain_graph=True)[0].abs().sum((0, 2)) > 0

    assert seen(from_clean).tolist() == [True] * N + [False] * (N - P)
    assert seen(from_noisy).tolist() == [True] * P + [False] * (N - P) + [True] * (N - P)
    assert seen(from_noisy[:, n]).tolist() == [True] * P + [False] * (N - P) + [True] * (n + 1) + [False] * (n - 1)
    causal = positions[:, None] >= positions  # the broken twin: a noisy block reads the clean ones
    assert not torch.allclose(packed(model, clean, noisy, causal)[1], from_noisy)


# The shipped model


def test_the_header_meets_the_bar_and_the_control_does_not():
    metrics = checkpoints.header("pydoc_jacobi")["metrics"]
    before = metrics["before_greedy_iterations_16"]
    assert metrics["greedy_iterations_16"] <= 0.7 * before < metrics["control_greedy_iterations_16"]
    assert metrics["validation_nats_per_character"] <= 1.03 * metrics["before_validation_nats_per_character"]
    assert metrics["sampled_iterations_16"] <= 0.8 * metrics["before_sampled_iterations_16"]


@pytest.mark.slow
def test_the_shipped_model_is_as_good_as_its_header_says():
    model, metrics = checkpoints.load("pydoc_jacobi"), checkpoints.header("pydoc_jacobi")["metrics"]
    held_out = text.windows(text.pydoc("validation").tokens)
    nats = text.nats_per_character(model, held_out)
    assert nats == pytest.approx(metrics["validation_nats_per_character"], abs=2e-3)  # stored in float16
    passes, _ = recipes.jacobi_forcing.iterations(model, 16, temperature=0)
    assert passes == pytest.approx(metrics["greedy_iterations_16"], abs=0.03)


def test_a_phrase_counts_as_repeated_from_its_second_time_on():
    rows = torch.tensor([[1, 2, 1, 2, 1, 2], [1, 2, 3, 4, 5, 6]])
    assert recipes.jacobi_forcing.repeats(rows, size=2) == pytest.approx(3 / 10)


def test_training_draws_from_the_training_text_and_the_paths_alone():
    model = tiny_gpt(num_classes=0, vocab_size=96, length=32 + 16, grid_width=None, dtype=torch.float32)
    model.requires_grad_(True)
    train = torch.zeros(200, dtype=torch.long)
    given = torch.ones(3, 32, dtype=torch.long)
    paths = given, trajectories(model.eval(), given, 16, temperature=0).short()
    seen = []
    model.embedding.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    options = dict(steps=1, batch_size=4, progress=False)
    recipes.jacobi_forcing.train_further(model, train, torch.zeros(2, 48, dtype=torch.long), paths, **options)
    real, both = seen[:2]
    assert real.shape == (4, 48) and (real[:, 1:] == 0).all()
    assert both.shape == (4, 48) and (both[:, 1:33] == 1).all()  # two paths, clean and noisy
