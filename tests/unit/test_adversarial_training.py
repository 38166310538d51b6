"""Each method's training step against a plain one, in double precision: the same weights and batch-norm averages after it."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustmim.config import AdversarialTrainingConfig, OptimizerConfig
from robustmim.data.loader import Batch
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.models.double_boundary import DoubleBoundary
from robustmim.registry import names, register
from robustmim.rng import Keys, keys
from robustmim.train import losses
from robustmim.train.attack import TrainingAttack, attackable
from robustmim.train.distributed import World
from robustmim.train.free import Free
from robustmim.train.generalist import Generalist, TwoLearners
from robustmim.train.methods import attack_of, make_method
from robustmim.train.objectives import Training
from robustmim.train.schedule import make_optimizer

EPS, RATE, CLASSES = 8 / 255, 0.3, 4


@register("classifier", "tiny-normed")
def network(*, classes: int = CLASSES) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.GELU(), nn.Flatten(), nn.Linear(6 * 36, classes)
    ).double()


def made(classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(0)
    return network(classes=classes)


def batch_of(n: int = 6, *, mixed: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(n, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    other = torch.randint(0, CLASSES, (n,), generator=generator)
    weight = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    goal = weight * F.one_hot(labels, CLASSES) + (1 - weight) * F.one_hot(other, CLASSES)
    return Batch(images, labels, torch.arange(n), goal if mixed else None)


def drawn(step: int = 0, n: int = 6) -> Keys:
    return keys(0, "step", torch.arange(n), step)


def descend(model: nn.Module, loss: torch.Tensor) -> None:
    """One step of plain gradient descent."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
        parameter.data -= RATE * gradient


def climb(f, x, start, loss, steps, length, *, project=True):
    """PGD, written out."""
    now = start
    for _ in range(steps):
        now = now.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(loss(f(now)).sum(), now)
        now = now.detach() + length * EPS * slope.sign()
        if project:
            now = torch.minimum(torch.maximum(now, x - EPS), x + EPS)
        now = now.clamp(0, 1)
    return now


def uniform(x, key, width=1.0):
    # The noise is drawn in single precision, and so multiplied in it.
    return (x + ((2 * key.fold("start").uniform(3, 8, 8) - 1) * (width * EPS)).to(x)).clamp(0, 1)


def normal(x, key):
    start = x + 0.001 / 0.031 * EPS * key.fold("start").normal(3, 8, 8).to(x)
    return torch.minimum(torch.maximum(start, x - EPS), x + EPS).clamp(0, 1)


def entropy(goal):
    """Cross-entropy with a distribution, by its definition."""
    return lambda logits: -(goal * logits.softmax(1).log()).sum(1)


def kl(p, q):
    return (p * (p / q).log()).sum(1)


def frozen(model, x):
    """The answers of a model as it is used."""
    model.eval()
    with torch.no_grad():
        return model(x).softmax(1)


def plain_natural(model, x, goal, key):
    descend(model, entropy(goal)(model(x)).mean())


def plain_pgd_at(model, x, goal, key):
    model.eval()
    attacked = climb(model, x, uniform(x, key), entropy(goal), 10, 0.25)
    model.train()
    descend(model, entropy(goal)(model(attacked)).mean())


def plain_fast(model, x, goal, key):
    twin = copy.deepcopy(model)  # the attack goes by the batch, and leaves the averages alone
    attacked = climb(twin, x, uniform(x, key), entropy(goal), 1, 1.25)
    descend(model, entropy(goal)(model(attacked)).mean())


def plain_n_fgsm(model, x, goal, key):
    twin = copy.deepcopy(model)
    attacked = climb(twin, x, uniform(x, key, 2.0), entropy(goal), 1, 1.0, project=False)
    descend(model, entropy(goal)(model(attacked)).mean())


def plain_apgd_at(model, x, goal, key):
    model.eval()
    label = goal.argmax(1)

    def error(logits):
        return F.cross_entropy(logits, label, reduction="none")

    first = (x + (2 * key.fold("start").fold("start", 0).uniform(3, 8, 8) - 1) * EPS).clamp(0, 1)
    second = climb(model, x, first, error, 1, 2.0)
    # Where the loss did not rise, the second move is half as long and begins at the first point; elsewhere it has momentum.
    rose = (error(model(second)) > error(model(first)))[:, None, None, None]
    straight = climb(model, x, second, error, 1, 2.0)
    third = second + 0.75 * (straight - second) + 0.25 * (second - first)
    shorter = climb(model, x, first, error, 1, 1.0)
    third = torch.where(rose, third, first + 0.75 * (shorter - first))
    third = torch.minimum(torch.maximum(third, x - EPS), x + EPS).clamp(0, 1)
    points = torch.stack([first, second, third])
    worst = points[torch.stack([error(model(point)) for point in points]).argmax(0), torch.arange(len(x))]
    model.train()
    descend(model, entropy(goal)(model(worst)).mean())


def plain_trades(model, x, goal, key):
    before = frozen(model, x)
    attacked = climb(model, x, normal(x, key), lambda a: kl(before, a.softmax(1)), 10, 0.007 / 0.031)
    model.train()
    clean, worst = model(x).softmax(1), model(attacked).softmax(1)
    descend(model, (entropy(goal)(clean.log()) + 6 * kl(clean, worst)).mean())


def plain_mart(model, x, goal, key):
    model.eval()
    attacked = climb(model, x, normal(x, key), entropy(goal), 10, 0.007 / 0.031)
    model.train()
    clean, worst = model(x).softmax(1), model(attacked).softmax(1)
    wrong = torch.stack([p[g == 0].max() for p, g in zip(worst, goal, strict=True)])
    boosted = entropy(goal)(worst.log()) - (1.0001 - wrong).log()
    descend(model, (boosted + 6 * kl(clean, worst) * (1 - (goal * clean).sum(1))).mean())


def plain_score(model, x, goal, key):
    before = frozen(model, x)
    attacked = climb(model, x, uniform(x, key), lambda a: ((a.softmax(1) - before) ** 2).sum(1), 10, 0.25)
    model.train()
    clean, worst = model(x).softmax(1), model(attacked).softmax(1)
    descend(model, (((clean - goal) ** 2).sum(1) + 4 * ((clean - worst) ** 2).sum(1)).mean())


def plain_dbat(model, x, goal, key):
    model.eval()
    network, label = model.classifier, goal.argmax(1)
    place = (key.fold("target class").uniform(1)[:, 0] * (2 * CLASSES - 2)).long()
    others = [[c for c in range(2 * CLASSES) if c % CLASSES != y] for y in label.tolist()]
    target = torch.tensor([some[p] for some, p in zip(others, place.tolist(), strict=True)])
    aim = F.one_hot(target, 2 * CLASSES).double()
    attacked = climb(network, x, uniform(x, key), lambda a: -entropy(aim)(a), 10, 0.125)
    model.train()
    clean, worst = torch.cat([goal, 0 * goal], 1), torch.cat([0 * goal, goal], 1)
    descend(model, (entropy(clean)(network(x)).mean() + entropy(worst)(network(attacked)).mean()) / 2)


PLAIN = {
    "natural": plain_natural,
    "pgd-at": plain_pgd_at,
    "apgd-at": plain_apgd_at,
    "n-fgsm": plain_n_fgsm,
    "fast": plain_fast,
    "trades": plain_trades,
    "mart": plain_mart,
    "score": plain_score,
    "dbat": plain_dbat,
}


def same(a: nn.Module, b: nn.Module, tolerance: float = 1e-10) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, value in a.state_dict().items():
        if not name.endswith("num_batches_tracked"):  # a counter that no layer with a momentum reads
            torch.testing.assert_close(value, b.state_dict()[name], atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("method", PLAIN)
def test_a_step_of_each_method_is_that_of_its_formula(method, mixed):
    model = made()
    if method == "dbat":
        torch.manual_seed(0)
        model = DoubleBoundary(classifier="tiny-normed", classes=CLASSES)
    batch, config = batch_of(mixed=mixed), AdversarialTrainingConfig(method=method)
    single = method == "apgd-at"  # an attack that keeps its books in single precision
    if single:
        model, batch = model.float(), replace(batch, images=batch.images.float())
    plain = copy.deepcopy(model)
    found = make_method(config, 0.0)(model.train(), batch, drawn(), 0)
    descend(model, found["loss"])
    goal = batch.mixed if mixed else F.one_hot(batch.labels, CLASSES).double()
    PLAIN[method](plain.train(), batch.images, goal, drawn())
    same(model, plain, 1e-6 if single else 1e-10)
    assert all(module.training for module in model.modules())


def test_every_registered_method_is_tested_here():
    assert set(names("method")) == {*PLAIN, "free", "generalist"}


def test_free_training_replays_a_batch_and_moves_along_the_gradient_of_the_step_before():
    model, batch, x = made(), batch_of(), batch_of().images
    plain = copy.deepcopy(model)
    objective = make_method(AdversarialTrainingConfig(method="free", options={"replays": 3}), 0.0)
    assert isinstance(objective, Free)
    start = [uniform(x, drawn(step)) for step in (0, 3)]
    seen = start[0]
    for step in range(5):
        loss = objective(model.train(), batch, drawn(step), step)["loss"]
        model.zero_grad()
        loss.backward()
        for parameter in model.parameters():
            parameter.data -= RATE * parameter.grad

        seen = (start[step // 3] if step % 3 == 0 else seen).detach().requires_grad_(True)
        error = F.cross_entropy(plain.train()(seen), batch.labels)
        (slope,) = torch.autograd.grad(error, seen, retain_graph=True)
        descend(plain, error)
        seen = torch.minimum(torch.maximum(seen + EPS * slope.sign(), x - EPS), x + EPS).clamp(0, 1)
        same(model, plain)


def test_generalist_trains_two_learners_and_mixes_them():
    pair, batch = TwoLearners(made()), batch_of()
    robust, natural, mixed = (copy.deepcopy(made()) for _ in range(3))
    method = make_method(AdversarialTrainingConfig(method="generalist", options={"communicate_every": 2}), 0.0)
    assert isinstance(method, Generalist)
    for step in range(1, 11):
        descend(pair, method(pair.train(), batch, drawn(step), step)["loss"])
        robust.eval()
        attacked = climb(robust, batch.images, uniform(batch.images, drawn(step)), entropy(goal_of(batch)), 10, 7 / 31)
        robust.train()
        descend(robust, F.cross_entropy(robust(attacked), batch.labels))
        descend(natural.train(), F.cross_entropy(natural(batch.images), batch.labels))

        optimizer = torch.optim.SGD(pair.parameters(), lr=1.0)
        method.after_step(Training(pair, {}, optimizer, step, 10, 2, World(0, 1, torch.device("cpu"))))
        share = 1.0 if step <= 20 / 3 else 1 - 0.6 * (step - 20 / 3) / (10 / 3)
        alpha = min(0.999, (1 + step) / (10 + step))
        state, r, n = mixed.state_dict(), robust.state_dict(), natural.state_dict()
        for name in state:
            if state[name].dtype.is_floating_point:
                state[name].copy_(alpha * state[name] + (1 - alpha) * (share * r[name] + (1 - share) * n[name]))
        if step == 8:  # the fourth of five epochs of two steps is the first even one after 0.625 of the run
            robust.load_state_dict(state)
            natural.load_state_dict(state)
        for own, plain in ((pair.robust, robust), (pair.natural, natural), (pair.mixed, mixed)):
            same(own, plain)
    pair.eval()
    assert torch.equal(pair(batch.images), pair.mixed(batch.images))


def goal_of(batch: Batch) -> torch.Tensor:
    return F.one_hot(batch.labels, CLASSES).double()


def test_the_default_method_is_what_adversarial_training_was_before_there_were_others():
    model, batch = made().float(), batch_of()
    batch = Batch(batch.images.float(), batch.labels, batch.ids)
    config = AdversarialTrainingConfig(steps=1, step_size=1.0, start_noise=2.0)
    found = make_method(config, 0.1)(model.train(), batch, drawn(), 0)["loss"]

    twin = copy.deepcopy(model).train()
    start = Ball(eps=config.radius * 2.0).random(batch.images, drawn().fold("start")).requires_grad_(True)
    (slope,) = torch.autograd.grad(F.cross_entropy(twin(start), batch.labels, reduction="none").sum(), start)
    attacked = (start.detach() + 1.0 * config.radius * slope.sign()).clamp(0, 1)
    assert torch.equal(found, F.cross_entropy(model(attacked), batch.labels, label_smoothing=0.1))
    assert attack_of(config) == attack_of(AdversarialTrainingConfig())


def test_an_attack_leaves_no_trace_in_a_model_that_trains():
    model = made().train()
    model[1].eval()  # a layer someone has frozen stays so
    before = copy.deepcopy(model)
    for statistics in ("batch", "running"):
        with attackable(model, statistics):
            assert model.training == (statistics == "batch")
            model(batch_of().images)
        same(model, before, 0)
        assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
        assert model[1].momentum == before[1].momentum


def test_the_attack_of_a_sample_does_not_depend_on_its_batch():
    model, batch = made().eval(), batch_of()
    images = batch.images
    for attack in (
        TrainingAttack(),
        TrainingAttack(start="normal", start_noise=0.5),
        TrainingAttack(ball=Ball(norm="l2")),
    ):

        def loss(x, labels):
            return F.cross_entropy(model(x), labels, reduction="none")

        whole = attack(model, images, lambda x: loss(x, batch.labels), drawn())
        two = attack(model, images[2:4], lambda x: loss(x, batch.labels[2:4]), drawn()[2:4])
        torch.testing.assert_close(whole[2:4], two, atol=1e-12, rtol=0)
        assert (attack.ball.distance(whole, images) <= attack.ball.eps * (1 + 1e-5)).all()


def test_losses_in_two_classes_are_what_one_computes_by_hand():
    even, sure = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])  # p = ½ ½ and ¾ ¼
    goal = torch.tensor([[1.0, 0.0]])
    assert losses.divergence(sure, sure).item() == pytest.approx(0, abs=1e-7)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert losses.divergence(sure, even).item() == pytest.approx(expected)
    assert losses.trades(sure, sure, goal, beta=6).item() == pytest.approx(-math.log(0.75))
    boosted = math.log(2) - math.log(1.0001 - 0.5)
    assert losses.mart(sure, even, goal, beta=2).item() == pytest.approx(boosted + 2 * expected * 0.25)
    assert losses.score(sure, even, goal, beta=4).item() == pytest.approx(2 * 0.25**2 + 4 * 2 * 0.25**2)
    four = torch.tensor([[math.log(3.0), 0.0, 0.0, 0.0]])
    assert losses.double_boundary(four, four, goal).item() == pytest.approx((math.log(2) + math.log(6)) / 2)
    assert losses.cross_entropy(even, goal, 0.1).item() == pytest.approx(math.log(2))


def test_two_classes_of_an_answer_become_one_logit():
    torch.manual_seed(0)
    x = batch_of().images
    largest = DoubleBoundary(classifier="tiny-normed", classes=CLASSES).eval()
    logits = largest.doubled(x)
    assert logits.shape[1] == 2 * CLASSES
    assert torch.equal(largest(x).argmax(1), logits.argmax(1) % CLASSES)
    largest.projection = "sum"
    p = logits.softmax(1)
    torch.testing.assert_close(largest(x).softmax(1), p[:, :CLASSES] + p[:, CLASSES:])


def test_an_optimiser_leaves_the_mixture_alone():
    pair = TwoLearners(made())
    held = {id(p) for g in make_optimizer(pair, OptimizerConfig()).param_groups for p in g["params"]}
    assert held == {id(p) for part in (pair.robust, pair.natural) for p in part.parameters()}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"method": "trade"}, "Did you mean 'trades'"),
        ({"method": "trades", "options": {"betta": 1}}, "Did you mean 'beta'"),
        ({"method": "trades", "options": {"attack": 1}}, r"adversarial\.steps"),
        ({"method": "free", "options": {"replays": 1}}, "second step"),
        ({"method": "free", "steps": 4}, "replays"),
    ],
)
def test_mistakes_are_named(config, says):
    with pytest.raises(RecipeError, match=says):
        make_method(AdversarialTrainingConfig(**config), 0.0)
