"""Every recipe that ships can be read, and does what it says for two steps; mistakes are answered by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from robustmim.cli.main import main
from robustmim.config import (
    CertifyRecipe,
    CorruptionsRecipe,
    DetectRecipe,
    EvaluateRecipe,
    PretrainRecipe,
    PurifyRecipe,
    RobustifyRecipe,
    TrainRecipe,
)
from robustmim.errors import RecipeError
from robustmim.radius import Radius, radius_text
from robustmim.recipe import RECIPES as RECIPES_FOLDER
from robustmim.recipe import find_recipe, load_recipe, parse, recipe_from, recipe_names
from robustmim.runs import read_json, read_lines, to_plain

KINDS = {
    "train": TrainRecipe,
    "pretrain": PretrainRecipe,
    "robustify": RobustifyRecipe,
    "purify": PurifyRecipe,
    "evaluate": EvaluateRecipe,
    "corruptions": CorruptionsRecipe,
    "certify": CertifyRecipe,
    "detect": DetectRecipe,
}
RECIPES = recipe_names()
TRAINED = [name for name, path in RECIPES.items() if path.parent.name in ("train", "pretrain")]


def test_no_two_recipes_that_ship_share_a_name():
    """A name finds one file: the other could not be asked for, and no test below would meet it."""
    files = [path.stem for path in RECIPES_FOLDER.glob("*/*.yaml")]
    assert len(files) == len(RECIPES) == len(set(files))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_typed_and_says_what_it_is(name):
    path = RECIPES[name]
    recipe = load_recipe(KINDS[path.parent.name], name)
    assert path.read_text().startswith("# ")
    again = yaml.safe_load(yaml.safe_dump(to_plain(recipe)))
    assert recipe_from(KINDS[path.parent.name], again) == recipe  # as from a run folder


@pytest.mark.parametrize("name", TRAINED)
def test_every_training_recipe_runs_two_steps(name, tmp_path):
    pytest.importorskip("foolbox")
    kind = RECIPES[name].parent.name
    image_set = "samples-imagenet" if "photos" in name else "samples-cifar10"
    words = [kind, name, "--out", str(tmp_path), "--device", "cpu", "--run.epochs", "1", "--run.batch_size", "4"]
    words += ["--data.name", image_set, "--data.split", "test", "--data.part", "all", "--data.limit", "8"]
    words += ["--validation.name", image_set, "--validation.split", "test", "--validation.limit", "4"]
    words += ["--validation.part", "all", "--data.size", "null", "--data.resize", "null"]
    if "photos" in name:
        words += ["--mixture", "[]", "--data.crop", "32"]
    if name.startswith("paper-mae-base") and name != "paper-mae-base-cifar10":
        # The same network of 110 M parameters but for its statistics: once in full is enough.
        small = {"width": 32, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
        options = load_recipe(PretrainRecipe, name).model.options | small
        words += ["--model.name", "mae", "--model.options", yaml.safe_dump(options, default_flow_style=True)]
    if name == "paper-maskdit-xl-imagenet":
        # 730 M parameters: shrunk, as its network is that of the others.
        small = {"image_size": 32, "width": 32, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_depth": 1}
        small |= {"decoder_heads": 2, "classes": 10}
        words += ["--model.options", yaml.safe_dump(small, default_flow_style=True)]
        words += ["--validation.size", "null", "--validation.resize", "null"]
    if kind == "pretrain":
        words += ["--probe.data", "samples-cifar10", "--probe.images", "2", "--probe.attack_steps", "1"]
        words += ["--probe.radii", "[8/255]", "--probe.amrm.steps", "1"]
    if "second" in name or "unmasked" in name or "finetune" in name:
        words += ["--start_from", "null"]  # the encoders of fine-tuning are held to their recipes in test_fine_tuning
    if kind == "train" and load_recipe(TrainRecipe, name).adversarial:
        words += ["--adversarial.steps", "1", "--adversarial.validation_steps", "1"]
    if name.startswith("paper-mimir-code"):
        words += ["--information.group", "4"]
    if name.startswith("wrn-28-10") and name != "wrn-28-10-cifar10":
        words += ["--model.name", "wide-resnet", "--model.options", "{depth: 10, widen: 2}"]
    if name.startswith(("paper-finetune", "paper-end-to-end")):
        words += ["--model.name", "vit", "--model.options", "{patch_size: 8, width: 32, depth: 2, heads: 2}"]
    assert main(words) == 0
    assert read_json(tmp_path / "run.json")["status"] == "finished"
    assert (tmp_path / "model.safetensors").exists()
    last = read_lines(tmp_path / "log.jsonl")[-1]
    free = load_recipe(PretrainRecipe, name).free if kind == "pretrain" else None
    assert last["step"] == 2 * (free.replays if free else 1)
    if kind == "pretrain" and load_recipe(PretrainRecipe, name).probe.classifier:
        assert last["sees 8/255"] > 0.5
        assert 0 <= last["purified clean"] <= 1


def names_in(kind):
    return [name for name, path in RECIPES.items() if path.parent.name == kind]


@pytest.fixture(scope="module")
def shrunken(tmp_path_factory):
    """Masked models of two blocks in the place of the large ones that a robustify recipe begins with."""
    from robustmim.config import ModelConfig
    from robustmim.models.zoo import save_model, saved_config
    from robustmim.registry import build

    sizes = {"width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    folders = {}
    for network in ("mae", "maskdit"):
        config = ModelConfig(name=network, options=sizes | {"image_size": 32, "patch_size": 4})
        folders[network] = tmp_path_factory.mktemp(network)
        torch.manual_seed(0)
        model = build("masked-model", network, **config.options)
        for weight in model.parameters():
            weight.data.add_(torch.randn_like(weight), alpha=0.05)  # MaskDiT begins as the skip connection
        save_model(folders[network], model, saved_config("masked-model", config))
    return folders


@pytest.mark.parametrize("name", names_in("robustify"))
def test_every_robustify_recipe_runs_two_steps(name, shrunken, tmp_path):
    pytest.importorskip("foolbox")
    from robustmim.models.zoo import load_model

    recipe = load_recipe(RobustifyRecipe, name)
    begun = recipe.masked_model
    words = ["robustify", name, "--out", str(tmp_path), "--device", "cpu", "--run.epochs", "1", "--run.batch_size", "2"]
    for part, images in (("data", 4), ("validation", 2)):
        words += [f"--{part}.name", "samples-cifar10", f"--{part}.split", "test", f"--{part}.limit", str(images)]
        words += [f"--{part}.size", "null", f"--{part}.resize", "null"]
    if recipe.reconstruction is None:
        words += ["--amrm.steps", "2"]
    if name.startswith("paper-"):
        begun = shrunken["maskdit" if "maskdit" in name else "mae"]
    # Where the classifier is not in the zoo: large, or a file of someone else's.
    if name.startswith("paper-") or recipe.arch is not None:
        words += ["--classifier", "fast-cnn-cifar10", "--arch", "null"]
    while str(begun).startswith("runs/"):  # what another recipe leaves there: begin where that one begins
        begun = load_recipe(RobustifyRecipe, Path(begun).name).masked_model
    assert main([*words, "--masked_model", str(begun), "--attack_steps", "1"]) == 0
    last = read_lines(tmp_path / "log.jsonl")[-1]
    assert last["step"] == 2
    assert {"clean", "gray_box", "white_box"} <= last.keys()
    before, after = load_model(begun).state_dict(), load_model(tmp_path).state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_whatever_a_recipe_begins_with_is_trained_by_a_recipe():
    """From images to purifier by name: runs/NAME is what the recipe NAME of the right command leaves behind."""
    named = []
    for name in names_in("purify"):
        purify = load_recipe(PurifyRecipe, name)
        model = purify.baseline.model if purify.baseline else purify.masked_model
        named.append((name, model, ("pretrain", "robustify")))
    for name in names_in("robustify"):
        robustify = load_recipe(RobustifyRecipe, name)
        named += [(name, robustify.masked_model, ("pretrain", "robustify")), (name, robustify.classifier, ("train",))]
    for name in names_in("pretrain"):
        named.append((name, load_recipe(PretrainRecipe, name).start_from, ("pretrain",)))
    for name in names_in("train"):
        named.append((name, load_recipe(TrainRecipe, name).start_from, ("pretrain", "train")))
    runs = [(name, model.removeprefix("runs/"), kinds) for name, model, kinds in named if model and "runs/" in model]
    assert len(runs) > 30
    missing = [(name, run) for name, run, kinds in runs if run not in RECIPES or RECIPES[run].parent.name not in kinds]
    assert not missing


@pytest.mark.parametrize("name", [name for name in names_in("purify") if name.startswith("paper-rma")])
def test_the_papers_robust_purifiers_are_trained_for_the_steps_they_take(name):
    purify = load_recipe(PurifyRecipe, name)
    if purify.diffusion is not None:  # Table 16: what was trained to be descended, asked to denoise
        return
    robustify = load_recipe(RobustifyRecipe, purify.masked_model.removeprefix("runs/"))
    assert (robustify.amrm, robustify.denoiser) == (purify.amrm, purify.denoiser)


@pytest.mark.parametrize("name", names_in("evaluate"))
def test_a_defence_can_face_every_attack_of_an_evaluation(name):
    from robustmim.evaluate.run import Evaluator
    from robustmim.models.zoo import load_model
    from robustmim.purify.load import load_purifier

    recipe = load_recipe(EvaluateRecipe, name)
    guided = {"adaptive-smooth": "guided-cifar10", "adaptive-guided": "anti-adversary-cifar10"}
    defence = load_model("fast-cnn-cifar10"), load_purifier(guided.get(name, "recommended-cifar10"))
    evaluator = Evaluator(*defence, recipe, torch.rand(64, 3, 32, 32))
    assert list(evaluator.attacks) == [attack.name for attack in recipe.attacks]


@pytest.mark.parametrize(
    ("purifier", "left_out"),
    [
        (None, {"joint", "joint on the classifier"}),
        ("jpeg", {"joint", "joint on the classifier", "one pass alone"}),
        ("median", {"joint", "joint on the classifier", "one pass alone"}),
        ("gaussian-noise", {"joint", "joint on the classifier", "one pass alone"}),
    ],
)
def test_the_adaptive_suite_leaves_out_what_a_defence_cannot_face(purifier, left_out):
    from robustmim.evaluate.run import Evaluator
    from robustmim.models.zoo import load_model
    from robustmim.purify.load import load_purifier

    recipe = load_recipe(EvaluateRecipe, "adaptive-purifier")
    defence = load_model("fast-cnn-cifar10"), load_purifier(purifier) if purifier else None
    evaluator = Evaluator(*defence, recipe, torch.rand(64, 3, 32, 32))
    assert evaluator.left_out.keys() == left_out
    assert all(why for why in evaluator.left_out.values())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: {name: mae}\nrun: {epoch: 3}\n", "run has no key 'epoch'.*Did you mean 'epochs'"),
        ("model: {name: mae}\nrun: {epochs: five}\n", "run.epochs.*'five', but must be a number"),
        ("modle: {name: mae}\n", "no key 'modle'.*Did you mean 'model'"),
        ("model: {name: mae}\nprobe: {radii: [8]}\n", "probe.radii.*8/255"),
        ("model: {name: mae}\nprobe: {radii: 8/255}\n", "probe.radii.*'8/255', but must be a list"),
        ("model: {name: mae}\nmixture: [{nam: x}]\n", "line 2: mixture has no key 'nam'.*Did you mean 'name'"),
        ("model: {name: mae}\nmixture: [{extra: {}}]\n", "line 2: mixture has no key 'extra'"),
        ("model: {name: mae}\nrun:\n", "line 2: run is empty"),
        ("model: {name: mae}\nrun: {epochs: 1, epochs: 2}\n", "line 2: run.epochs is there twice"),
        ("model: [x\n", "line 2: this is no YAML"),
        ("- a list\n", "holds no keys"),
        ("a sentence\n", "holds no keys"),
        ("", "is empty"),
        ("# nothing but a comment\n", "is empty"),
    ],
)
def test_mistakes_name_the_key_the_file_and_the_right_spelling(tmp_path, text, says):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=f"(?is){says}") as caught:
        load_recipe(PretrainRecipe, str(path))
    assert "wrong.yaml" in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "says", "silent"),
    [
        (["--run.epochs", "five"], "run.epochs is 'five', but must be a number", "recipe"),
        (["--run.epoch", "5"], "no option --run.epoch. Did you mean 'run.epochs'?", ""),
        (["--out"], "--out needs a value", "mae-patch4-cifar10"),
        (["extra"], "'extra' is no option", "mae-patch4-cifar10"),
        (["--optimizer.name", "lion"], "optimizer.name is 'lion', but must be one of 'adamw', 'sgd'", "Literal"),
        (["--start_from"], "--start_from needs a value", ""),
        (["--information.weight", "x"], "information.weight is 'x', but must be a number", "NestedArg"),
        (["--max-time", "5x"], "max_time: write a time as 90s, 45m or 2h", "Duration"),
    ],
)
def test_mistakes_on_the_command_line_are_not_laid_at_the_recipes_door(words, says, silent, capsys):
    assert main(["pretrain", "mae-patch4-cifar10", *words]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert says in told
    assert not silent or silent not in told


def test_a_recipe_of_another_kind_is_called_that(capsys):
    assert main(["purify", "x.png", "--recipe", "cifar10-linf"]) == 2
    assert "evaluate where purify is asked for" in capsys.readouterr().err


def test_a_file_of_bytes_is_no_recipe(tmp_path):
    (tmp_path / "x.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(RecipeError, match=r"x\.yaml is no text"):
        load_recipe(PurifyRecipe, str(tmp_path / "x.yaml"))


def test_unknown_models_and_options_are_answered_with_the_nearest(capsys, tmp_path):
    assert main(["pretrain", "masked-conv-cifar10", "--model.name", "masked-cov", "--dry-run"]) in (1, 2)
    pytest.importorskip("foolbox")
    base = ["pretrain", "masked-conv-cifar10", "--data.name", "samples-cifar10", "--data.split", "test"]
    base += ["--validation.name", "samples-cifar10", "--run.batch_size", "4", "--out", str(tmp_path)]
    assert main([*base, "--model.name", "masked-cov"]) == 2
    assert "Did you mean 'masked-conv'" in capsys.readouterr().err
    assert main([*base, "--model.options", "{width: [8]}"]) == 2
    assert "Did you mean 'widths'" in capsys.readouterr().err
    assert main(["pretrain", "masked-conv-cifar"]) == 2
    assert "Did you mean 'masked-conv-cifar10'" in capsys.readouterr().err
    assert main(["pretrian"]) == 2
    assert "Did you mean 'pretrain'" in capsys.readouterr().err


def test_the_command_line_wins_over_the_file_and_flags_need_no_value():
    from robustmim.cli.arguments import JobOptions

    recipe, options, name = parse(
        "pretrain",
        PretrainRecipe,
        JobOptions,
        ["masked-conv-cifar10", "--optimizer.learning-rate", "0.5", "--dry-run", "--max-time", "2h"],
    )
    assert recipe.optimizer.learning_rate == 0.5
    assert recipe.mask_ratios == load_recipe(PretrainRecipe, "masked-conv-cifar10").mask_ratios
    assert options.dry_run
    assert options.max_time == 7200
    assert name == "masked-conv-cifar10"


def test_a_file_beats_a_shipped_name_and_init_copies_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "recommended-cifar10", "mine.yaml"]) == 0
    assert Path("mine.yaml").read_text() == RECIPES["recommended-cifar10"].read_text()
    assert find_recipe("mine.yaml") == Path("mine.yaml")
    assert main(["init", "recommended-cifar10", "mine.yaml"]) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), ("0.5", 0.5), (0.5, 0.5), ("0/255", 0.0), ("inf", float("inf"))]
)
def test_budgets(text, value):
    assert Radius(text) == pytest.approx(value)
    assert Radius(radius_text(Radius(text))) == Radius(text)


@pytest.mark.parametrize("text", ["8", "eight", "-1/255", "1/0", "nan", ""])
def test_budgets_that_nobody_means(text):
    with pytest.raises(ValueError, match=r"budget|255"):
        Radius(text)


def test_help_and_import_are_quick_and_free_of_torch():
    code = (
        "import sys, time; began = time.perf_counter(); import robustmim; from robustmim.cli.main import main\n"
        "main(['--help']); main(['--version']); assert time.perf_counter() - began < 0.5\n"
        "try: main(['train', '--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "assert time.perf_counter() - began < 2.0"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


def test_weights_are_drawn_from_the_seed_alone():
    from robustmim.registry import build

    first, second = [], []
    for kept in (first, second):
        torch.manual_seed(3)
        kept += [p.clone() for p in build("masked-model", "masked-conv", widths=[8, 16], blocks=[1, 1]).parameters()]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
