from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nullsae.config.toy import ToyTraining
from nullsae.core.randomness import torch_generator
from nullsae.toy.training import Weights, decode, encode, standardize, start_weights, train_together

COEFFICIENTS = (0.003, 0.03, 0.3)
SETTINGS = ToyTraining(epochs=4, batch_samples=32)
N, D, N_LATENTS = 200, 6, 12


def vectors() -> Tensor:
    codes = torch.rand(N, 9, generator=torch_generator(0, "codes"))
    sparse = codes * (torch.rand(N, 9, generator=torch_generator(0, "active")) < 0.2)
    return sparse @ torch.randn(9, D, generator=torch_generator(0, "directions"))


def order(epoch: int) -> Tensor:
    return torch.randperm(N, generator=torch_generator(0, "order", epoch))


def trained(coefficients: tuple[float, ...]) -> Weights:
    start = start_weights(D, N_LATENTS, torch_generator(0, "start"))
    return train_together(vectors(), start, coefficients, SETTINGS, order=order)


class OneByOne(nn.Module):
    """The SAE of the paper, written with PyTorch's modules."""

    def __init__(self, start: Weights) -> None:
        super().__init__()
        self.encoder = nn.Linear(D, N_LATENTS)
        self.decoder = nn.Linear(N_LATENTS, D, bias=False)
        self.encoder.weight.data = start.encoder[0].T.clone()
        self.encoder.bias.data = start.bias[0, 0].clone()
        self.decoder.weight.data = start.decoder[0].T.clone()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean(dim=-1, keepdim=True)
        std = (x - mean).std(dim=-1, keepdim=True)
        codes = F.relu(self.encoder((x - mean) / (std + 1e-8)))
        self.decoder.weight.data /= self.decoder.weight.data.norm(dim=0, keepdim=True)
        return self.decoder(codes) * std + mean, codes


def test_training_together_is_training_one_by_one_with_pytorchs_modules() -> None:
    together, x = trained(COEFFICIENTS), vectors()
    for index, coefficient in enumerate(COEFFICIENTS):
        model = OneByOne(start_weights(D, N_LATENTS, torch_generator(0, "start")))
        optimizer = torch.optim.Adam(model.parameters(), lr=SETTINGS.lr)
        for epoch in range(SETTINGS.epochs):
            for batch in order(epoch).split(SETTINGS.batch_samples):
                output, codes = model(x[batch])
                loss = F.mse_loss(output, x[batch]) + coefficient * codes.abs().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        model(x)  # norms of the decoder
        one = together.one(index)
        for found, expected in (
            (one.encoder[0].T, model.encoder.weight),
            (one.bias[0, 0], model.encoder.bias),
            (one.decoder[0].T, model.decoder.weight),
        ):
            torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)
    # The coefficient matters, so equality is not due to the tolerance.
    assert not torch.allclose(together.encoder[0], together.encoder[2], rtol=1e-4, atol=1e-5)


def test_an_sae_does_not_depend_on_the_others_of_its_job() -> None:
    together = trained(COEFFICIENTS)
    for index, coefficient in enumerate(COEFFICIENTS):
        alone = trained((coefficient,))
        for one, other in zip(together.one(index).tensors, alone.tensors, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_order_of_the_coefficients_does_not_matter() -> None:
    forth, back = trained(COEFFICIENTS), trained(COEFFICIENTS[::-1])
    for one, other in zip(forth.tensors, back.tensors, strict=True):
        torch.testing.assert_close(one, other.flip(0), rtol=1e-4, atol=1e-5)


def test_training_twice_gives_the_same_bits() -> None:
    for one, other in zip(
        trained(COEFFICIENTS).tensors, trained(COEFFICIENTS).tensors, strict=True
    ):
        assert torch.equal(one, other)


def test_decoder_rows_keep_their_unit_norm() -> None:
    norms = trained(COEFFICIENTS).decoder.norm(dim=2)
    torch.testing.assert_close(norms, torch.ones(3, N_LATENTS))


def test_a_larger_coefficient_makes_codes_smaller() -> None:
    together, x = trained((1e-4, 0.1, 10.0)), standardize(vectors())
    sizes = encode(together, x).sum(dim=(1, 2))
    assert bool((sizes.diff() < 0).all())


def test_the_start_is_as_pytorch_starts_a_linear_layer_and_orthogonal() -> None:
    start = start_weights(64, 128, torch_generator(0, "start"))
    for tensor in (start.encoder, start.bias):
        assert float(tensor.abs().max()) <= 1 / math.sqrt(64)
    # U(-b, b) has variance b^2 / 3.
    assert float(start.encoder.var()) == pytest.approx(1 / 64 / 3, rel=0.05)
    rows = start.decoder[0]
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(128))
    # Columns of a tall orthogonal matrix are orthogonal, and nearly so with unit rows.
    raw = nn.init.orthogonal_(torch.empty(128, 64), generator=torch_generator(0, "other"))
    gram = F.normalize(raw, dim=1).T @ F.normalize(raw, dim=1)
    own = rows.T @ rows
    off = own - own.diagonal().diag()
    assert float(off.abs().max()) < 3 * float((gram - gram.diagonal().diag()).abs().max())
    assert float(own.diagonal().mean()) == pytest.approx(2.0, rel=1e-4)


def test_standardizing_is_that_of_numpy() -> None:
    x = torch.randn(20, D, generator=torch_generator(0, "x")) * 3 + 1
    found = standardize(x)
    exact = x.double().numpy()
    expected = (exact - exact.mean(axis=1, keepdims=True)) / exact.std(
        axis=1, ddof=1, keepdims=True
    )
    np.testing.assert_allclose(found.z.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_constant_vector_is_given_back_as_it_is() -> None:
    x = torch.full((2, D), 0.7)
    scaled = standardize(x)
    assert torch.equal(scaled.z, torch.zeros(2, D))
    weights = start_weights(D, N_LATENTS, torch_generator(0, "start"))
    torch.testing.assert_close(decode(weights, encode(weights, scaled), scaled)[0], x)


def test_progress_is_told() -> None:
    seen: list[tuple[int, int]] = []
    start = start_weights(D, N_LATENTS, torch_generator(0, "start"))
    train_together(
        vectors(),
        start,
        COEFFICIENTS,
        SETTINGS,
        order=order,
        progress=lambda done, total, loss: seen.append((done, total)),
    )
    assert seen == [(7, 28), (14, 28), (21, 28), (28, 28)]
