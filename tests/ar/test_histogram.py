import torch

from minimal.ar.histogram import Histogram


def test_a_histogram_counts_its_training_tokens():
    tokens = torch.tensor([[0, 2], [0, 1], [1, 1], [1, 1]])
    labels = torch.tensor([0, 0, 1, 1])
    model = Histogram(tokens, 3, labels, num_classes=2, pseudo_count=0.5)
    p = model.logits(tokens[:1], torch.tensor([0])).exp()[0]
    torch.testing.assert_close(p, torch.tensor([[2.5, 0.5, 0.5], [0.5, 1.5, 1.5]]) / 3.5)
    p = model.logits(tokens[:1]).exp()[0]
    torch.testing.assert_close(p, torch.tensor([[2.5, 2.5, 0.5], [0.5, 3.5, 1.5]]) / 5.5)


def test_its_likelihood_sums_to_one_over_all_sequences():
    model = Histogram(torch.randint(3, (20, 2)), 3)
    everything = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    torch.testing.assert_close(model.logprob(everything).exp().sum(), torch.tensor(1.0))
