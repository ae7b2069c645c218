"""Heads against float64 formulas, one layer at a time."""

import math

from src.models.heads import TwistHead, mlp, projector

import pytest
import torch
from torch import nn


def normalised(x, eps=1e-5):
    """Batch norm in train mode, without weights."""
    return (x - x.mean(dim=0)) / torch.sqrt(x.var(dim=0, unbiased=False) + eps)


def layer_normalised(x, eps=1e-6):
    return (x - x.mean(dim=1, keepdim=True)) / torch.sqrt(x.var(dim=1, unbiased=False, keepdim=True) + eps)


ACTIVATIONS = {
    "relu": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),  # exact, not the tanh approximation
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", ["bn", "ln", "none"])
def test_twists_head_computes_its_formula(activation, norm):
    torch.manual_seed(0)
    head = TwistHead(5, 7, 6, activation=activation, norm=norm).double().train()
    x = torch.randn(9, 5, dtype=torch.float64)
    act = ACTIVATIONS[activation]
    norm_of = {"bn": normalised, "ln": layer_normalised, "none": lambda y: y}[norm]
    hidden, layers = x, head.projection_head
    for layer in (layers[0], layers[4]):
        hidden = act(norm_of(hidden @ layer.weight.T + layer.bias))
    expected = hidden @ head.last_linear.weight.T + head.last_linear.bias
    raw, logits = head(x)
    torch.testing.assert_close(raw, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(logits, normalised(expected), rtol=1e-10, atol=1e-12)
    identity = TwistHead(5, 7, 6, activation=activation, norm=norm, last_norm=False).double()
    raw, logits = identity(x)
    assert raw is logits


def test_twists_dropout_comes_after_the_first_activation_only():
    head = TwistHead(5, 7, 6, dropout=0.5)
    kinds = [type(layer) for layer in head.projection_head]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout, nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert head.projection_head[3].p == 0.5


def test_twists_truncated_start():
    head = TwistHead(64, 512, 256, truncated_init=True)
    for layer in (head.projection_head[0], head.projection_head[4], head.last_linear):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert layer.bias.abs().max() == 0


@pytest.mark.parametrize(
    ("layers", "bias", "batch_norm"), [(1, True, True), (2, True, True), (3, False, True), (3, True, False)]
)
def test_a_projector_is_linear_layers_with_norm_and_relu_between(layers, bias, batch_norm):
    torch.manual_seed(0)
    head = mlp(5, 7, 6, layers, bias=bias, batch_norm=batch_norm).double().train()
    x = torch.randn(9, 5, dtype=torch.float64)
    linears = [module for module in head if isinstance(module, nn.Linear)]
    assert len(linears) == layers
    assert [linear.bias is not None for linear in linears] == [bias] * (layers - 1) + [True]
    expected = x
    for linear in linears[:-1]:
        expected = expected @ linear.weight.T + (linear.bias if bias else 0)
        expected = (normalised(expected) if batch_norm else expected).clamp(min=0)
    expected = expected @ linears[-1].weight.T + linears[-1].bias
    torch.testing.assert_close(head(x), expected, rtol=1e-10, atol=1e-12)


def test_swavs_head_is_two_layers_or_one():
    assert isinstance(projector(5, 0, 6), nn.Linear)
    torch.manual_seed(0)
    head = projector(5, 7, 6).double().train()
    x = torch.randn(9, 5, dtype=torch.float64)
    first, last = head[0], head[-1]
    expected = normalised(x @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
    torch.testing.assert_close(head(x), expected, rtol=1e-10, atol=1e-12)
