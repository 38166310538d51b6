"""The runner: verdicts, worst cases, columns, halves, shards, and what it says of broken defences."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import time

import pytest
import torch
from torch import nn

from robustmim.attacks.target import Interrupted
from robustmim.config import AttackConfig, ChecksConfig, DataConfig, EvaluateRecipe, GradientConfig
from robustmim.data.loader import Batch
from robustmim.errors import InputError, RecipeError
from robustmim.evaluate.active_checks import SO_FAR, active_checks
from robustmim.evaluate.claims import claim, conclude, faced_by_sample, proportion, worst_case
from robustmim.evaluate.honesty import status
from robustmim.evaluate.run import Evaluator, read_records
from robustmim.evaluate.table import Cell, in_rising_order
from robustmim.evaluate.verdict import broken, judge, share, worst_of_each
from robustmim.geometry import Ball
from robustmim.purify.traits import Traits
from robustmim.radius import Radius
from robustmim.report.evaluation import _suite
from robustmim.report.sections import Charts
from robustmim.rng import keys
from robustmim.runs import RunFolder, read_json, read_lines
from robustmim.train.distributed import World
from tests.toys import purifier

CPU = torch.device("cpu")
R = Radius("8/255")


def drawn_records(right, draws, generator):
    """Return the records of one sample, under attacks that leave draws right with these probabilities."""
    return [
        {"attack": str(i), "draws": draws}
        | {k: int((torch.rand(draws, generator=generator) < p).sum()) for k in ("right", "again")}
        for i, p in enumerate(right)
    ]


class Halves(nn.Module):
    """Two classes: is the left half of the image lighter than the right one?"""

    def __init__(self, gain=10.0):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        side = x.shape[-1] // 2
        score = self.gain * (x[..., :side].mean((1, 2, 3)) - x[..., side:].mean((1, 2, 3)))
        return torch.stack([-score, score], 1)


class Images:
    """A source of images whose halves differ by a known amount: image i falls at ε = gap_i / 2."""

    name, classes = "halves", ("left darker", "left lighter")

    def __init__(self, n=12, side=8, largest=32):
        self.ids = torch.arange(n) + 100
        gap = torch.linspace(2, largest, n).round()
        self.labels = (torch.arange(n) % 2).long()
        x = torch.full((n, 3, side, side), 128.0)
        x[..., : side // 2] += (gap * (2 * self.labels - 1)).view(-1, 1, 1, 1)
        self.images = x.to(torch.uint8)
        self.gap = gap / 255

    def __len__(self):
        return len(self.ids)

    def fetch(self, indices):
        return self.images[indices]


class Purify:
    """A purifier made of one function of (images, keys)."""

    def __init__(self, change, *, randomised, optimises=False, ball=None):
        self.change = change
        self.traits = Traits(randomised=randomised, optimises_at_test_time=optimises, steps=1, ball=ball)

    def __call__(self, x, *, keys, callback=None):
        with torch.no_grad():
            return self.change(x, keys).clamp(0, 1)


def noisy(scale):
    return Purify(lambda x, drawn: x + scale * drawn.normal(*x.shape[1:]), randomised=True)


def recipe(*attacks, **changes):
    attacks = attacks or (AttackConfig(name="pgd", eot=4),)
    plain = EvaluateRecipe(data=DataConfig(name="halves"), radii=(R,), attacks=attacks, batch_size=4, draws=4)
    return dataclasses.replace(plain, **changes)


def evaluated(path, evaluator, source=None, **options):
    folder = RunFolder(path, recipe={"evaluate": evaluator.recipe}, kind="evaluate")
    source = Images() if source is None else source
    assert evaluator.run(source, folder, device=CPU, **options)
    return source, folder, read_records(path)


def concluded(path, evaluator, source=None):
    source, folder, records = evaluated(path, evaluator, source)
    checks = active_checks(evaluator, source, folder, device=CPU)
    named = {"classifier": "halves", "purifier": "p" if evaluator.purifier else None, "classes": source.classes}
    return claim(records, evaluator, folder=path, checks=checks, **named)


def levels(content):
    return {one["check"]: one["level"] for one in content["findings"]}


class TestVerdict:
    def test_counts_draws_in_two_sets(self):
        x, y = torch.rand(3, 3, 4, 4), torch.tensor([0, 1, 1])
        right = judge(lambda z, drawn: torch.eye(2)[y], x, y, keys(0, "v", torch.arange(3)), draws=5)
        assert right.right.tolist() == [5, 5, 5]
        assert right.again.tolist() == [5, 5, 5]
        coin = judge(
            lambda z, drawn: torch.eye(2)[(drawn.uniform(1)[:, 0] < 0.5).long()],
            x[:1].expand(2000, -1, -1, -1),
            torch.zeros(2000, dtype=torch.long),
            keys(0, "v", torch.arange(2000)),
            draws=4,
        )
        assert abs(coin.right.mean() / 4 - 0.5) < 0.02
        both = torch.corrcoef(torch.stack([coin.right, coin.again]))[0, 1]
        assert abs(both) < 0.1  # the second set is independent of the first

    def test_not_a_number_is_no_answer(self):
        y = torch.zeros(2, dtype=torch.long)
        logits = torch.tensor([[torch.nan, 0.0], [1.0, 0.0]])
        found = judge(lambda z, drawn: logits, torch.rand(2, 3, 4, 4), y, keys(0, "v", torch.arange(2)), draws=1)
        assert found.right.tolist() == [0, 1]
        assert found.predicted.tolist() == [-1, 0]

    def test_a_break_must_be_confirmed(self):
        row = {"attack": "a", "draws": 4, "right": 1, "again": 3}
        assert not broken(row)
        assert broken(row | {"again": 2})
        assert share(row) == 0.5
        assert broken({"attack": "a", "draws": 1, "right": 0})

    def test_the_worst_of_many_lucky_draws_is_not_worse_than_each(self):
        """Twenty attacks that do nothing, on a defence right three times in four: chosen and scored on the same draws,
        the worst would look far worse."""
        generator = torch.Generator().manual_seed(0)
        samples = {number: drawn_records([0.75] * 20, 8, generator) for number in range(400)}
        naive = [min(row["right"] for row in rows) / 8 for rows in samples.values()]
        ours = [worst.share for worst in worst_of_each(samples).values()]
        assert abs(sum(ours) / 400 - 0.75) < 0.02
        assert sum(naive) / 400 < 0.55

    def test_the_worst_of_many_weak_attacks_and_a_strong_one_is_the_strong_one(self):
        """Nine attacks leave two draws in three right and the last a tenth: few draws are no reason to prefer a lucky one."""
        generator = torch.Generator().manual_seed(0)
        samples = {number: drawn_records([0.67] * 9 + [0.1], 4, generator) for number in range(400)}
        worst = [one.share for one in worst_of_each(samples).values()]
        assert abs(sum(worst) / 400 - 0.1) < 0.03

    def test_attacks_that_each_break_their_half_are_worth_more_together(self):
        generator = torch.Generator().manual_seed(0)
        samples = {i: drawn_records([0.9, 0.1] if i % 2 else [0.1, 0.9], 4, generator) for i in range(400)}
        worst = [one.share for one in worst_of_each(samples).values()]
        assert sum(worst) / 400 < 0.15


class TestRunner:
    def test_accuracy_is_what_geometry_says(self, tmp_path):
        """Halves falls at ε ≥ gap / 2: the attack must find exactly those."""
        evaluator = Evaluator(Halves(), None, recipe())
        source, _, records = evaluated(tmp_path, evaluator)
        found = {number: row["right"] for number, row in records["pgd", "8/255", "bare"].items()}
        assert found == {
            int(i): int(g > 2 * 8 / 255)
            for i, g in zip(source.ids, source.gap, strict=True)
            if abs(g - 16 / 255) > 1e-6
        } | {int(i): found[int(i)] for i, g in zip(source.ids, source.gap, strict=True) if abs(g - 16 / 255) <= 1e-6}

    @pytest.mark.parametrize("cascade", [False, True])
    def test_processes_share_the_work_with_the_same_result(self, tmp_path, cascade):
        attacks = (AttackConfig(name="one", eot=2, options={"steps": 2}), AttackConfig(name="two", eot=2))
        evaluator = Evaluator(Halves(), noisy(0.02), recipe(*attacks, cascade=cascade))
        source, _, alone = evaluated(tmp_path / "alone", evaluator)

        class Pretend(World):
            def any(self, value):
                return value

        folder = RunFolder(tmp_path / "two", recipe={"evaluate": evaluator.recipe}, kind="evaluate")
        for rank in (1, 0):  # the leader last: it merges
            evaluator.run(source, folder, device=CPU, world=Pretend(rank, 2, CPU))
        assert read_records(tmp_path / "two") == alone
        assert (tmp_path / "two" / "records.jsonl").read_bytes() == (tmp_path / "alone" / "records.jsonl").read_bytes()
        assert not list((tmp_path / "two").glob("records.*.jsonl"))
        if cascade:
            skipped = [row for row in alone["two", "8/255", "purified"].values() if row.get("skipped")]
            assert skipped
            assert all(broken(alone["one", "8/255", "purified"][row["id"]]) for row in skipped)

    def test_cut_anywhere_it_ends_with_the_same_file(self, tmp_path):
        """Cuts at every kind of place: in the middle of a line, of a cell, between cells."""
        attacks = (
            AttackConfig(name="gray", against="classifier"),
            AttackConfig(name="white", eot=2, options={"steps": 3}),
        )
        evaluator = Evaluator(Halves(), noisy(0.02), recipe(*attacks))
        source, _, _ = evaluated(tmp_path / "whole", evaluator)
        whole = (tmp_path / "whole" / "records.jsonl").read_bytes()
        generator = torch.Generator().manual_seed(0)
        for cut in torch.randint(len(whole), (24,), generator=generator).tolist():
            path = tmp_path / f"cut{cut}"
            folder = RunFolder(path, recipe={"evaluate": evaluator.recipe}, kind="evaluate")
            (path / "records.jsonl").write_bytes(whole[:cut])
            assert evaluator.run(source, folder, device=CPU)
            assert (path / "records.jsonl").read_bytes() == whole

    def test_records_that_vanish_meanwhile_are_told_of_and_computed_again(self, tmp_path):
        evaluator = Evaluator(Halves(), noisy(0.02), recipe())
        source, _, _ = evaluated(tmp_path / "whole", evaluator)
        whole = (tmp_path / "whole" / "records.jsonl").read_bytes()
        path = tmp_path / "robbed" / "records.jsonl"
        folder = RunFolder(path.parent, recipe={"evaluate": evaluator.recipe}, kind="evaluate")

        def rob(done, note):
            path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[3:]))

        with pytest.raises(InputError, match=r"verdicts are gone from .*robbed"):
            evaluator.run(source, folder, device=CPU, report=rob)
        assert evaluator.run(source, folder, device=CPU)
        assert path.read_bytes() == whole

    def test_only_white_box_attacks_spare_an_image_the_next_ones(self, tmp_path):
        blur = GradientConfig(mode="replacement", forward="smooth")
        attacks = (
            AttackConfig(name="gray", against="classifier"),
            AttackConfig(name="black", attack="square", options={"queries": 60}, eot=2),
            AttackConfig(name="stand-in", gradient=blur, eot=2),
            AttackConfig(name="white", eot=2),
            AttackConfig(name="after", eot=2),
        )
        evaluator = Evaluator(Halves(), noisy(0.02), recipe(*attacks, cascade=True))
        _, _, records = evaluated(tmp_path, evaluator)
        cells = {a.name: records[a.name, "8/255", "purified"] for a in attacks}
        for name in ("gray", "black", "stand-in", "white"):
            assert any(broken(row) for row in cells[name].values())
            assert not any(row.get("skipped") for row in cells[name].values())
        spared = {number: row.get("skipped") for number, row in cells["after"].items()}
        assert spared == {number: "white" if broken(row) else None for number, row in cells["white"].items()}

    def test_told_to_stop_it_does_before_the_next_query(self, tmp_path):
        """The cell it was at is begun anew, so that the records are those of a run that nobody stopped."""
        attacks = (
            AttackConfig(name="gray", against="classifier", options={"steps": 30}),
            AttackConfig(name="white", eot=2, options={"steps": 30, "drop": False}),
        )
        evaluator = Evaluator(Halves(), noisy(0.02), recipe(*attacks))
        source, _, _ = evaluated(tmp_path / "whole", evaluator)
        path = tmp_path / "stopped"
        folder = RunFolder(path, recipe={"evaluate": evaluator.recipe}, kind="evaluate")
        asked = []

        def stop():
            asked.append(None)
            return len(asked) % 150 == 0  # at another place of the 30 · 2 queries of an attack each time

        calls = 1
        while not evaluator.run(source, folder, device=CPU, stop=stop):
            calls += 1
            assert len(read_lines(path / "records.jsonl")) % 4 == 0  # batches of four, whole cells
        assert calls > 2
        assert (path / "records.jsonl").read_bytes() == (tmp_path / "whole" / "records.jsonl").read_bytes()

    def test_an_attack_takes_no_longer_than_it_may(self, tmp_path, monkeypatch):
        ticks = itertools.count()
        monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))  # a second from look to look
        long = AttackConfig(name="long", options={"steps": 3000, "drop": False})
        folder = RunFolder(tmp_path, recipe={}, kind="evaluate")
        assert not Evaluator(Halves(), None, recipe(long)).run(Images(), folder, device=CPU, max_seconds=40)
        assert next(ticks) < 60
        assert {row["attack"] for row in read_lines(tmp_path / "records.jsonl")} == {"none"}

    def test_memory_that_does_not_suffice_halves_the_batch(self, tmp_path):
        class Small(Halves):
            def forward(self, x):
                if len(x) > 2:
                    raise torch.OutOfMemoryError("pretended")
                return super().forward(x)

        _, _, small = evaluated(tmp_path / "small", Evaluator(Small(), None, recipe()))
        _, _, large = evaluated(tmp_path / "large", Evaluator(Halves(), None, recipe()))
        for key, rows in large.items():
            assert {i: row["right"] for i, row in rows.items()} == {i: row["right"] for i, row in small[key].items()}

    def test_nor_do_the_checks_and_pictures_at_the_end_need_more(self, tmp_path):
        class Small(Halves):
            def forward(self, x):
                if len(x) > 2:
                    raise torch.OutOfMemoryError("pretended")
                return super().forward(x)

        evaluator = Evaluator(Small(), None, recipe(batch_size=2, checks=ChecksConfig(images=8)))
        source, folder, _ = evaluated(tmp_path, evaluator)
        content = conclude(evaluator, source, folder, classifier="small", purify=None, device=CPU)
        assert {row["n"] for row in read_json(tmp_path / "checks.json") if "n" in row} <= {1, 2}
        assert content["worst_case"]["n"] == len(source)
        assert (tmp_path / "examples.safetensors").exists()

    def test_not_a_number_stays_with_its_sample(self, tmp_path):
        class Poisoned(Halves):
            def forward(self, x):
                logits = super().forward(x)
                bad = (x[:, 0, 0, 0] > 0.75)[:, None]  # one image, wherever an attack may move it
                return logits.masked_fill(bad, torch.nan)

        source = Images(n=5, largest=120)
        _, _, sound = evaluated(tmp_path / "sound", Evaluator(Halves(), None, recipe()), source)
        _, _, found = evaluated(tmp_path / "poisoned", Evaluator(Poisoned(), None, recipe()), source)
        for key, rows in sound.items():
            for number, row in rows.items():
                assert found[key][number]["predicted"] == (-1 if number == 103 else row["predicted"])

    def test_columns_of_known_and_fixed_draws(self, tmp_path):
        """Noise that hides: fresh draws protect by luck, an attacker who knows the draw sees through it."""
        attacks = (
            AttackConfig(name="fresh", eot=1, options={"steps": 10, "drop": False}),
            AttackConfig(name="known", randomness="known"),
            AttackConfig(name="fixed", randomness="fixed"),
        )
        evaluator = Evaluator(Halves(), noisy(0.3), recipe(*attacks))
        _, _, records = evaluated(tmp_path, evaluator)
        shares = {
            name: sum(share(row) for row in records[name, "8/255", "purified"].values()) / 12
            for name in ("fresh", "known", "fixed")
        }
        assert shares["known"] <= shares["fresh"] + 0.05
        assert all(row["draws"] == 1 for row in records["known", "8/255", "purified"].values())
        summed = worst_case(records, evaluator.recipe, R, purified=True)
        assert summed["accuracy"] == pytest.approx(shares["fresh"], abs=1e-3)  # fresh draws alone make the headline

    def test_recipes_that_contradict_themselves_are_refused(self):
        for attacks, words in (
            ((AttackConfig(name="a"), AttackConfig(name="a")), "two attacks"),
            ((AttackConfig(name="a", randomness="known", eot=2),), "nothing to average"),
            ((AttackConfig(name="a", radii=(Radius("1/255"),)),), "not among the recipe's radii"),
            ((AttackConfig(name="a", attack="pdg"),), "Did you mean 'pgd'"),
            ((AttackConfig(name="a", attack="rays"),), "works in linf"),
            ((AttackConfig(name="a", options={"steps": 1.5}),), "'steps' is a whole number, not 1.5"),
        ):
            with pytest.raises(RecipeError, match=words):
                Evaluator(Halves(), None, recipe(*attacks, norm="l2"))
        with pytest.raises(RecipeError, match="offers no tanh gradient"):
            Evaluator(Halves(), noisy(0.1), recipe(AttackConfig(name="a", gradient=GradientConfig(mode="tanh"))))

    def test_budgets_rise_and_come_once(self):
        radii = tuple(map(Radius, ("8/255", "2/255", 8 / 255, "8/255", "4/255")))
        with pytest.raises(RecipeError, match="budgets rise"):
            Evaluator(Halves(), None, recipe(radii=radii))
        assert [str(radius) for radius in in_rising_order(radii)] == ["2/255", "4/255", "8/255"]

    def test_optional_attacks_that_a_defence_cannot_face_are_left_out_and_said(self, tmp_path):
        joint = AttackConfig(name="joint", attack="joint", optional=True)
        tanh = AttackConfig(name="tanh", gradient=GradientConfig(mode="tanh"), optional=True)
        pgd = AttackConfig(name="pgd", eot=2, options={"steps": 2})
        evaluator = Evaluator(Halves(), noisy(0.1), recipe(joint, tanh, pgd))
        assert [attack.name for attack in evaluator.recipe.attacks] == ["pgd"]
        content = concluded(tmp_path, evaluator)
        assert set(content["left_out"]) == {"joint", "tanh"}
        assert "masked model" in content["left_out"]["joint"]
        assert "offers no tanh gradient" in content["left_out"]["tanh"]
        assert {row["attack"] for row in content["cells"]} == {"none", "pgd"}
        with pytest.raises(RecipeError, match="masked model"):
            Evaluator(Halves(), noisy(0.1), recipe(dataclasses.replace(joint, optional=False), pgd))

    def test_what_falls_before_another_purifier_is_not_left_alone(self):
        source = Images()
        batch = Batch(source.images.float() / 255, source.labels, source.ids)

        def dropped(**gradient):
            attack = AttackConfig(name="a", gradient=GradientConfig(**gradient))
            return Evaluator(Halves(), purifier(), recipe(attack)).target(attack, batch, R).drop

        assert dropped() and dropped(mode="tanh") and dropped(mode="replacement")
        assert not dropped(mode="tanh", ball_scale=2.0)
        assert not dropped(mode="tanh", steps=1)
        assert not dropped(mode="tanh", forward="smooth")


class TestChecks:
    """What an evaluation says of itself; the tour of broken defences is in test_tour.py, each check alone in test_honesty.py."""

    def test_probabilities_and_hidden_state_are_told(self, tmp_path):
        softmax = nn.Sequential(Halves(), nn.Softmax(1))
        assert levels(concluded(tmp_path / "softmax", Evaluator(softmax, None, recipe())))["probabilities"] == "amber"
        moody = Purify(lambda x, drawn: x + 0.5 * torch.randn_like(x), randomised=True)  # the global generator
        assert levels(concluded(tmp_path / "moody", Evaluator(Halves(), moody, recipe())))["not-repeatable"] == "red"

    def test_an_attack_that_does_not_climb_is_told(self, tmp_path):
        class Backwards(Halves):
            """Right answers, gradients of the wrong sign."""

            def forward(self, x):
                return super().forward(2 * x.detach() - x)

        checks = ChecksConfig(images=8)
        content = concluded(tmp_path, Evaluator(Backwards(), None, recipe(checks=checks)))
        assert levels(content)["loss-not-rising"] == "red"
        assert levels(content)["large-budget"] == "red"

    def test_stopped_anywhere_they_go_on_after_the_last_that_ended(self, tmp_path):
        evaluator = Evaluator(Halves(), noisy(0.02), recipe(checks=ChecksConfig(images=4)))
        named = {"classifier": "halves", "purify": None, "device": CPU}
        whole = conclude(evaluator, *evaluated(tmp_path / "whole", evaluator)[:2], **named)
        source, folder, _ = evaluated(tmp_path / "stopped", evaluator)
        asked, tries, ended = [], 0, set()

        def interrupt():
            asked.append(None)
            if len(asked) in (50, 150, 400, 800):
                raise Interrupted

        content = None
        while content is None:
            with contextlib.suppress(Interrupted):
                content = conclude(evaluator, source, folder, **named, interrupt=interrupt)
            tries += 1
            if content is None and (tmp_path / "stopped" / SO_FAR).exists():
                rows = read_json(tmp_path / "stopped" / SO_FAR)["rows"]
                assert ended <= rows.keys()
                ended |= rows.keys()
        assert tries > 2
        assert {"noise-suffices", "more-steps"} <= ended
        assert (tmp_path / "stopped" / "checks.json").read_bytes() == (tmp_path / "whole" / "checks.json").read_bytes()
        assert levels(content) == levels(whole)
        assert not (tmp_path / "stopped" / SO_FAR).exists()

    def test_a_sound_evaluation_is_not_red(self, tmp_path):
        source = Images(n=40)
        content = concluded(tmp_path, Evaluator(Halves(), None, recipe(checks=ChecksConfig(images=16))), source)
        assert status(content["findings"]) == "amber"  # few images, and nothing else
        assert set(levels(content)) == {"few-images"}


def test_the_worst_case_is_no_better_than_any_attack():
    rows = {}
    for number in range(30):
        for name, right in (("a", number % 5), ("b", (number * 7) % 5)):
            row = {"id": number, "label": 0, "attack": name, "radius": "8/255", "defence": "purified", "predicted": 0}
            rows.setdefault((name, "8/255", "purified"), {})[number] = row | {
                "right": right,
                "again": right,
                "draws": 4,
            }
    found = worst_case(rows, recipe(AttackConfig(name="a"), AttackConfig(name="b")), R, purified=True)
    for name in "ab":
        cell = Cell(name, R, "purified")
        alone = proportion([share(one[0]) for one in faced_by_sample(rows, [cell]).values()])
        assert found["accuracy"] <= alone["accuracy"]


def test_every_adversarial_image_is_within_the_budget():
    source = Images()
    evaluator = Evaluator(Halves(), noisy(0.05), recipe())
    batch = Batch(source.images.float() / 255, source.labels, source.ids)
    found, about, _ = evaluator.attacked(evaluator.recipe.attacks[0], batch, R)
    assert Ball(eps=R).distance(found, batch.images).max() <= R * (1 + 1e-5)
    assert sum(about["failed"]) == 0


def test_records_are_lines_of_json(tmp_path):
    evaluated(tmp_path, Evaluator(Halves(), None, recipe()))
    rows = read_lines(tmp_path / "records.jsonl")
    assert len(rows) == 24
    assert json.loads((tmp_path / "costs.jsonl").read_text().splitlines()[0])["forward"] > 0


def test_one_search_for_the_nearest_tells_accuracy_at_every_budget(tmp_path):
    near = AttackConfig(name="near", attack="fast-minimum-norm", options={"steps": 60, "drop": False})
    stops = AttackConfig(name="stops", attack="fast-minimum-norm", options={"steps": 60})
    source = Images()
    content = concluded(tmp_path, Evaluator(Halves(), None, recipe(near, stops, radii=(R, Radius("14/255")))), source)
    assert list(content["nearest"]) == ["near"]
    found = content["nearest"]["near"]
    assert found["radius"] == "14/255"
    assert found["n"] == len(source)
    # Halves of a known gap meet where each has moved by half of it.
    exact = (source.gap / 2)[source.gap / 2 < 14 / 255].tolist()
    assert found["distances"] == pytest.approx(exact, rel=0.02)
    assert found["distances"] == sorted(found["distances"])
    section = next(one for one in _suite(content) if "nearest" in one.title)
    assert isinstance(section, Charts)
    line = section.plots[0].lines[0]
    assert line.y[0] == 1
    assert line.x[20] == pytest.approx(7.0)
    assert line.y[20] == pytest.approx(float((source.gap / 2 > 7 / 255).float().mean()), abs=1 / 12 + 1e-6)


def test_what_other_attacks_left_standing_tells_no_distances(tmp_path):
    near = AttackConfig(name="near", attack="fast-minimum-norm", options={"steps": 30, "drop": False})
    attacks = (near, AttackConfig(name="pgd"), dataclasses.replace(near, name="later"))
    content = concluded(tmp_path, Evaluator(Halves(), None, recipe(*attacks, cascade=True)))
    assert list(content["nearest"]) == ["near"]  # it faced all images


def test_what_draws_nothing_is_asked_once_however_many_draws_an_attack_averages_over(tmp_path):
    def passes(defence, name):
        evaluator = Evaluator(Halves(), defence, recipe())
        evaluated(tmp_path / name, evaluator)
        return sum(row["forward"] for row in read_lines(tmp_path / name / "costs.jsonl"))

    assert passes(noisy(0.0), "random") > 3 * passes(Purify(lambda x, drawn: x, randomised=False), "same")
