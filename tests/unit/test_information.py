"""Estimators of dependence against direct definitions in double precision, their invariances, and one that fails."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from robustmim.errors import InputError, RecipeError
from robustmim.information.bounds import binary_entropy, lower_bound, upper_bound
from robustmim.information.cka import cka
from robustmim.information.estimators import ESTIMATORS, estimator
from robustmim.information.hsic import biased_hsic, hsic, unbiased_hsic
from robustmim.information.hsic_cca import hsic_cca
from robustmim.information.kernels import Width, check_pair, gaussian_gram, linear_gram, squared_distances
from robustmim.information.renyi import entropy, joint_entropy, mutual_information, renyi
from robustmim.rng import keys


def normal(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return keys(seed, "samples", torch.arange(n)).normal(*shape).double()


def image_like(n: int) -> torch.Tensor:
    """Images that differ in brightness and in coarse shapes, as photographs do."""
    draw = keys(0, "images", torch.arange(n))
    coarse = F.interpolate(draw.fold("coarse").uniform(3, 8, 8), size=32, mode="bilinear")
    return 0.5 * draw.fold("brightness").uniform(1, 1, 1) + 0.5 * coarse


def linear_code(x: torch.Tensor, width: int) -> torch.Tensor:
    rows = x.flatten(1) - x.flatten(1).mean(0)
    z = rows @ keys(1, "weights", torch.arange(rows.shape[1])).normal(width).to(rows.dtype)
    return z / z.std()


def direct_gram(x: np.ndarray, sigma: float) -> np.ndarray:
    n = len(x)
    return np.array([[math.exp(-((x[i] - x[j]) ** 2).sum() / (2 * sigma**2)) for j in range(n)] for i in range(n)])


FIXED = {"rule": "fixed", "value": 2.0}
EVERY = [
    ("hsic", {"width": FIXED}),
    ("hsic", {"width": FIXED, "divisor": "(n-1)²"}),
    ("unbiased-hsic", {"width": {"rule": "dimension", "value": 0.7}}),
    ("hsic-cca", {"width": {"rule": "dimension", "value": 1.0}, "epsilon": 1e-2}),
    ("cka", {}),
    ("cka", {"unbiased": True}),
    ("kernel-cka", {"width": FIXED}),
    ("renyi", {"width": FIXED}),
    ("renyi", {"width": FIXED, "alpha": 1.01}),
    ("renyi", {"width": FIXED, "alpha": 1.0}),
    ("renyi", {"width": FIXED, "alpha": 0.5}),
]


@pytest.mark.parametrize(("name", "options"), EVERY)
class TestEveryEstimator:
    def test_does_not_depend_on_the_order_of_samples(self, name, options):
        x, z = normal(12, 3, 2, 2), normal(12, 5, seed=1)
        measure, order = estimator(name, **options), torch.tensor([3, 1, 0, 2, 11, 10, 9, 8, 7, 6, 5, 4])
        assert measure(x[order], z[order]).item() == pytest.approx(measure(x, z).item(), rel=1e-9)

    def test_is_symmetric_and_a_scalar(self, name, options):
        x, z = normal(12, 4), normal(12, 5, seed=1)
        measure = estimator(name, **options)
        assert measure(x, z).shape == ()
        assert measure(x, z).item() == pytest.approx(measure(z, x).item(), rel=1e-9)

    def test_single_precision_agrees_with_double(self, name, options):
        x, z = normal(40, 6) + 3, normal(40, 5, seed=1)
        z[:, :3] += x[:, :3]
        measure = estimator(name, **options)
        assert measure(x.float(), z.float()).item() == pytest.approx(measure(x, z).item(), rel=2e-3, abs=1e-5)
        assert measure(x.float(), z.float()).dtype == torch.float32

    def test_its_gradient_is_right(self, name, options):
        x, z = (side.requires_grad_() for side in (normal(7, 3), normal(7, 2, seed=1)))
        assert torch.autograd.gradcheck(estimator(name, **options), (x, z), atol=1e-7)

    def test_gradients_are_finite_for_equal_samples(self, name, options):
        x, z = torch.zeros(6, 3, requires_grad=True), torch.ones(6, 2, requires_grad=True)
        estimator(name, **options)(x, z).backward()
        assert torch.isfinite(x.grad).all()
        assert torch.isfinite(z.grad).all()

    def test_a_constant_says_nothing(self, name, options):
        x, z = normal(12, 4), torch.ones(12, 3, dtype=torch.float64)
        assert estimator(name, **options)(x, z).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_dependent_samples_score_higher_than_permuted_ones(name):
    x = image_like(128)
    z = linear_code(x, 64)
    measure = estimator(name)
    assert measure(x, z) > measure(x, z.roll(17, 0))


class TestKernels:
    def test_distances_and_grams_against_loops(self):
        x = normal(9, 2, 3) + 100
        rows = x.flatten(1).numpy()
        expected = ((rows[:, None] - rows[None]) ** 2).sum(-1)
        assert np.allclose(squared_distances(x).numpy(), expected, atol=1e-9)
        assert np.allclose(gaussian_gram(x, Width("fixed", 1.5)).numpy(), direct_gram(rows, 1.5), atol=1e-9)
        assert np.allclose(linear_gram(x).numpy(), rows @ rows.T)
        # In single precision too, though the samples lie far from the origin.
        assert np.allclose(squared_distances(x.float()).numpy(), expected, rtol=1e-3, atol=1e-3)

    def test_widths_against_loops(self):
        x = normal(15, 4)
        distances = squared_distances(x)
        away = distances.sqrt().numpy()
        pairs = sorted(away[i, j] for i in range(15) for j in range(i))
        assert float(Width("median", 2.0).sigma(distances, 4)) == pytest.approx(2 * pairs[(len(pairs) - 1) // 2])
        nearest = np.mean([sorted(away[i])[1:4] for i in range(15)])
        assert float(Width("neighbours", neighbours=3).sigma(distances, 4)) == pytest.approx(nearest)
        assert float(Width("neighbours", neighbours=99).sigma(distances, 4)) == pytest.approx(away.sum() / (15 * 14))
        assert Width("dimension", 5.0).sigma(distances, 4) == 10
        assert Width("fixed", 3.0).sigma(distances, 4) == 3

    def test_half_precision_is_not_computed_in_half(self):
        x = normal(8, 3000).bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            gram = gaussian_gram(x, Width("median"))
        assert gram.dtype == torch.float32
        assert torch.allclose(gram.double(), gaussian_gram(x.double(), Width("median")), atol=1e-4)

    def test_mistakes(self):
        with pytest.raises(InputError, match="two are needed"):
            gaussian_gram(normal(1, 3), Width())
        with pytest.raises(InputError, match="pairs"):
            check_pair(normal(3, 1), normal(4, 1))
        with pytest.raises(InputError, match="four"):
            unbiased_hsic(torch.eye(3), torch.eye(3))
        with pytest.raises(RecipeError, match="divided"):
            biased_hsic(torch.eye(4), torch.eye(4), divisor="n")
        for wrong in ({"rule": "medain"}, {"value": 0.0}, {"neighbours": 0}):
            with pytest.raises(RecipeError, match=r"median|positive"):
                Width(**wrong)


class TestHSIC:
    def test_biased_against_the_trace(self):
        x, z = normal(11, 3), normal(11, 2, seed=1)
        k, m = direct_gram(x.numpy(), 1.3), direct_gram(z.numpy(), 0.8)
        centre = np.eye(11) - 1 / 11
        expected = np.trace(k @ centre @ m @ centre)
        found = hsic(x, z, width=Width("fixed", 1.3), z_width=Width("fixed", 0.8))
        assert found.item() == pytest.approx(expected / 121, rel=1e-9)
        assert biased_hsic(torch.tensor(k), torch.tensor(m), divisor="(n-1)²").item() == pytest.approx(expected / 100)

    def test_unbiased_against_sums_over_distinct_samples(self):
        n = 7
        k, m = direct_gram(normal(n, 3).numpy(), 1.0), direct_gram(normal(n, 2, seed=1).numpy(), 1.0)
        # The U-statistic itself: each expectation of Eq. 28 over tuples of distinct samples.
        distinct = range(n)
        both = [k[i, j] * m[i, j] for i in distinct for j in distinct if i != j]
        apart = [k[i, j] * m[q, r] for i in distinct for j in distinct for q in distinct for r in distinct
                 if len({i, j, q, r}) == 4]  # fmt: skip
        half = [k[i, j] * m[i, q] for i in distinct for j in distinct for q in distinct if len({i, j, q}) == 3]
        expected = np.mean(both) + np.mean(apart) - 2 * np.mean(half)
        assert unbiased_hsic(torch.tensor(k), torch.tensor(m)).item() == pytest.approx(expected, rel=1e-9)

    def test_unbiased_is_zero_on_average_for_independent_samples_and_biased_is_not(self):
        found = torch.stack(
            [hsic(normal(16, 4, seed=2 * s), normal(16, 4, seed=2 * s + 1), unbiased=True) for s in range(300)]
        )
        error = found.std() / 300**0.5
        assert abs(found.mean()) < 4 * error
        biased = torch.stack([hsic(normal(16, 4, seed=2 * s), normal(16, 4, seed=2 * s + 1)) for s in range(30)])
        assert biased.mean() > 10 * error

    def test_the_gram_of_nearly_equal_samples_keeps_its_digits(self):
        x, z = normal(64, 5), normal(64, 5, seed=1)
        z[:, 0] += x[:, 0]
        wide = Width("fixed", 30.0)
        exact = hsic(x, z, width=wide, unbiased=True)
        assert hsic(x.float(), z.float(), width=wide, unbiased=True).item() == pytest.approx(exact.item(), rel=0.05)


class TestHSICCCA:
    def test_against_the_definition_of_the_code(self):
        n, epsilon = 20, 1e-5
        x, z = normal(n, 6), normal(n, 3, seed=1)
        centre = np.eye(n) - 1 / n
        parts = []
        for side in (x, z):
            kh = direct_gram(side.numpy(), 5 * math.sqrt(side.shape[1])) @ centre
            parts.append(kh @ np.linalg.inv(kh + epsilon * n * np.eye(n)))
        assert hsic_cca(x, z).item() == pytest.approx((parts[0] * parts[1].T).sum(), rel=1e-6)

    def test_it_does_not_measure_dependence_at_the_batch_it_is_used_with(self):
        """A known failure, kept: 128 samples, σ = 5√d. Independent codes score higher than a linear code of the image."""
        x = image_like(128)
        dependent, independent = linear_code(x, 384), normal(128, 384, seed=5).float()
        assert hsic_cca(x, independent) > hsic_cca(x, dependent)
        # The unbiased estimate on the same samples is not in doubt.
        sure = estimator("kernel-cka", unbiased=True)
        assert sure(x, dependent) > 0.9
        assert abs(sure(x, independent)) < 0.1

    def test_what_it_does_measure_is_spread(self):
        x = image_like(128)
        z = linear_code(x, 384)
        # Shrinking a code takes no information from it.
        assert hsic_cca(x, 0.03 * z) < 0.1 * hsic_cca(x, z)
        sure = estimator("cka", unbiased=True)
        assert sure(x, 0.03 * z).item() == pytest.approx(sure(x, z).item(), rel=1e-3)


class TestCKA:
    def test_linear_against_the_formula_over_features(self):
        x, z = normal(20, 6), normal(20, 4, seed=1)
        z[:, :2] += x[:, :2]
        a, b = x - x.mean(0), z - z.mean(0)
        expected = (a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm())
        assert cka(x, z).item() == pytest.approx(expected.item())

    @pytest.mark.parametrize("options", [{}, {"unbiased": True}, {"kernel": "gaussian"}])
    def test_one_with_itself_and_no_change_under_turns_scales_and_shifts(self, options):
        x, z = normal(20, 6), normal(20, 4, seed=1)
        assert cka(x, x, **options).item() == pytest.approx(1)
        turn = torch.linalg.qr(normal(4, 4, seed=9)).Q
        assert cka(x, 7 * z @ turn + 2, **options).item() == pytest.approx(cka(x, z, **options).item(), rel=1e-9)

    def test_unbiased_is_near_zero_where_biased_is_near_one(self):
        x, z = normal(32, 2000), normal(32, 2000, seed=1)
        assert cka(x, z) > 0.9
        assert abs(cka(x, z, unbiased=True)) < 0.1

    def test_unknown_kernels_are_refused(self):
        with pytest.raises(RecipeError, match="linear"):
            estimator("cka", kernel="liner")(normal(5, 2), normal(5, 2))


class TestRenyi:
    def test_entropy_of_samples_all_alike_and_all_apart(self):
        for alpha in (0.5, 1.0, 1.01, 2.0, 5.0):
            assert entropy(torch.ones(8, 8, dtype=torch.float64), alpha).item() == pytest.approx(0, abs=1e-9)
            assert entropy(torch.eye(8, dtype=torch.float64), alpha).item() == pytest.approx(3)

    @pytest.mark.parametrize("alpha", [0.5, 1.01, 2.0, 3.7])
    def test_against_the_eigenvalues(self, alpha):
        gram = direct_gram(normal(14, 3).numpy(), 1.0)
        values = np.linalg.eigvalsh(gram / np.trace(gram))
        expected = math.log2((values.clip(0) ** alpha).sum()) / (1 - alpha)
        assert entropy(torch.tensor(gram), alpha).item() == pytest.approx(expected, rel=1e-9)

    def test_order_two_is_the_limit_of_its_neighbours_and_one_is_too(self):
        gram = torch.tensor(direct_gram(normal(14, 3).numpy(), 1.0))
        for order in (1.0, 2.0):
            assert entropy(gram, order).item() == pytest.approx(entropy(gram, order + 1e-7).item(), rel=1e-5)

    @pytest.mark.parametrize("alpha", [0.5, 1.01, 2.0])
    def test_bounds_of_joint_entropy_and_information(self, alpha):
        for seed in range(5):
            x, z = normal(20, 3, seed=2 * seed), normal(20, 4, seed=2 * seed + 1)
            k, m = gaussian_gram(x, Width()), gaussian_gram(z, Width())
            joint, own = joint_entropy(k, m, alpha), (entropy(k, alpha), entropy(m, alpha))
            assert max(own) <= joint + 1e-9
            assert joint <= sum(own) + 1e-9
            assert mutual_information(k, m, alpha) >= -1e-9

    def test_information_of_copies_is_the_entropy(self):
        # A kernel's square is the kernel of a width smaller by √2; for samples all alike or far apart it is the same.
        labels = (torch.arange(32) % 4)[:, None].double() * 100
        assert renyi(labels, labels, width=Width("fixed")).item() == pytest.approx(2)
        assert renyi(labels, normal(32, 3), width=Width("fixed")) > 0

    def test_orders_that_are_none_are_refused(self):
        for alpha in (0.0, -1.0, math.inf):
            with pytest.raises(RecipeError, match="positive"):
                entropy(torch.eye(3), alpha)


class TestBounds:
    def test_by_hand(self):
        p = torch.tensor([0.0, 0.5, 0.9, 1.0], dtype=torch.float64)
        assert binary_entropy(p).tolist() == pytest.approx([0, 1, 0.468995593, 0])
        whole = math.log2(10)
        low = lower_bound(p, whole, 10)
        assert low[0].item() == pytest.approx(whole)
        assert low[2].item() == pytest.approx(0, abs=1e-9)  # Figure 2: the least value is at 0.9
        assert upper_bound(p, whole, 10).tolist() == pytest.approx([whole, whole - 1, whole - 1.8, whole - 2])

    def test_the_lower_bound_falls_to_the_chance_level_and_stays_below_the_upper_one(self):
        for classes in (3, 10, 100):
            p = torch.linspace(0, 1 - 1 / classes, 50, dtype=torch.float64)
            low, high = (bound(p, math.log2(classes), classes) for bound in (lower_bound, upper_bound))
            assert (low.diff() < 0).all()
            assert (low <= high + 1e-9).all()

    def test_fano_holds_for_a_channel_that_errs_evenly(self):
        # Labels a, b of ten classes, b = a but for errors spread evenly: Fano is an equality, and the bound is I(a; b).
        error, classes = 0.3, 10
        joint = np.full((classes, classes), error / (classes - 1) / classes)
        np.fill_diagonal(joint, (1 - error) / classes)
        information = (joint * np.log2(joint * classes * classes)).sum()
        found = lower_bound(torch.tensor(error, dtype=torch.float64), math.log2(classes), classes)
        assert found.item() == pytest.approx(information)

    def test_mistakes(self):
        for wrong in (torch.tensor(1.1), torch.tensor([-0.1, 0.5])):
            with pytest.raises(InputError, match="between 0 and 1"):
                lower_bound(wrong, 1.0, 10)
            with pytest.raises(InputError, match="between 0 and 1"):
                upper_bound(wrong, 1.0, 10)
        for bits, classes in ((4.0, 10), (-1.0, 10), (0.0, 1)):
            with pytest.raises(InputError, match="classes"):
                lower_bound(torch.tensor(0.5), bits, classes)


class TestRegistry:
    def test_mistakes_name_the_nearest(self):
        with pytest.raises(RecipeError, match="Did you mean 'hsic-cca'"):
            estimator("hsic-cka2")
        with pytest.raises(RecipeError, match="Did you mean 'width'"):
            estimator("hsic", widht=3)
        with pytest.raises(RecipeError, match="no option 'unbiased'"):
            estimator("unbiased-hsic", unbiased=False)
        with pytest.raises(RecipeError, match="rule, value"):
            estimator("hsic", width={"sigma": 3})

    def test_widths_come_as_a_recipe_has_them(self):
        x, z = normal(10, 3), normal(10, 2, seed=1)
        found = estimator("hsic", width={"rule": "fixed", "value": 2.0})(x, z)
        assert found == hsic(x, z, width=Width("fixed", 2.0))
