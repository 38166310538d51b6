"""The low-frequency attack stays among the cosines it is given."""

from __future__ import annotations

import pytest
import torch
from scipy.fft import dctn, idctn

from robustmim.attacks.low_frequency import low_pass
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.registry import build
from tests.unit.test_attacks_apgd import images, network, target_of

SHARES = (0.125, 0.25, 0.5, 1.0)


@pytest.mark.parametrize("share", SHARES)
def test_low_pass_is_a_truncated_cosine_transform(share):
    x = torch.randn(2, 3, 8, 16, generator=torch.Generator().manual_seed(0))
    spectrum = dctn(x.double().numpy(), axes=(2, 3), norm="ortho")
    spectrum[:, :, round(share * 8) :] = 0
    spectrum[..., round(share * 16) :] = 0
    expected = torch.from_numpy(idctn(spectrum, axes=(2, 3), norm="ortho")).float()
    torch.testing.assert_close(low_pass(x, share), expected, rtol=1e-4, atol=1e-5)


def test_all_frequencies_are_plain_pgd():
    model, x = network(), images()
    y = model(x).argmax(1)
    ball = Ball(norm="l2", eps=0.5)
    low = build("attack", "low-frequency", share=1.0, steps=5)(target_of(model, x), x, y, ball)
    plain = build("attack", "pgd", steps=5)(target_of(model, x), x, y, ball)
    torch.testing.assert_close(low, plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("norm", "least"), [("l2", 0.999), ("linf", 0.9)])
def test_the_perturbation_is_of_low_frequency(norm, least):
    model, x = network(), 0.4 + 0.2 * images()  # far from black and white, so that [0, 1] clips nothing
    ball = Ball(norm=norm, eps={"l2": 1.0, "linf": 0.1}[norm])
    found = build("attack", "low-frequency", share=0.5, drop=False)(
        target_of(model, x, drop=False), x, model(x).argmax(1), ball
    )
    shift = found - x
    assert (ball.distance(found, x) <= ball.eps * (1 + 1e-5)).all()
    kept = low_pass(shift, 0.5).flatten(1).norm(dim=1) / shift.flatten(1).norm(dim=1)
    assert kept.min() > least


def test_it_breaks_images_and_does_not_depend_on_the_batch():
    model, x = network(), images()
    y = model(x).argmax(1)
    ball = Ball(norm="linf", eps=0.15)
    attack = build("attack", "low-frequency", share=0.5)
    found = attack(target_of(model, x), x, y, ball)
    assert (model(found).argmax(1) != y).sum() >= 2
    some = torch.tensor([5, 2])
    alone = attack(target_of(model, x[some]), x[some], y[some], ball)
    torch.testing.assert_close(alone, found[some], rtol=0, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_outside_zero_to_one_is_refused(share):
    with pytest.raises(RecipeError, match="share"):
        build("attack", "low-frequency", share=share)
