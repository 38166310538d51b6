"""The bench of purifiers: passes are counted where the image enters, and plain references find the same images."""

from __future__ import annotations

import json
import sys

import pytest
import torch

import passes
import purifiers
from passes import Passes
from robustmim.config import AMRMConfig, DenoiserConfig, DiffusionConfig, ReconstructionConfig
from robustmim.models.context_encoder import ContextEncoder
from robustmim.models.fast_cnn import FastCNN
from robustmim.models.mae import MaskedAutoencoder
from robustmim.models.maskdit import MaskDiT
from robustmim.models.masked_conv import MaskedConvolution
from robustmim.models.masked_denoiser import MaskedDenoiser
from robustmim.models.unet import UNet
from robustmim.purify.amrm import AMRMPure
from robustmim.purify.baselines.adp import AdaptiveDenoisingPurification
from robustmim.purify.baselines.coup import COUP
from robustmim.purify.baselines.dmae import DenoisingMaskedAutoencoder
from robustmim.purify.baselines.median import MedianFilter
from robustmim.purify.baselines.nim import NoisyImageModelling
from robustmim.purify.baselines.scoreopt import ScoreOpt
from robustmim.purify.baselines.soap import Soap
from robustmim.purify.diffusion import DiffusionPurifier
from robustmim.purify.reconstruct import MaskedReconstruction
from robustmim.radius import Radius
from robustmim.rng import keys

DRAWN = keys(0, "purify", torch.arange(4))
x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TRANSFORMER = {"image_size": 16, "width": 16, "depth": 2, "heads": 2}
TRANSFORMER |= {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
MODELS = {
    "mae": lambda: MaskedAutoencoder(**TRANSFORMER),
    "mae-normalised": lambda: MaskedAutoencoder(**TRANSFORMER, target="normalised"),
    "maskdit": lambda: MaskDiT(**TRANSFORMER),
    "masked-conv": lambda: MaskedConvolution(widths=(8, 16), blocks=(1, 1)),
    "context-encoder": lambda: ContextEncoder(image_size=16, widths=(8, 16)),
    "unet": lambda: UNet(image_size=16, widths=(8, 16), blocks=(1, 1), condition_width=8),
    "classifier": lambda: FastCNN(widths=(8, 8, 8)),
}


def tiny(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    for parameter in model.parameters():  # away from the zeros it begins with
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def amrm(name, **options):
    return AMRMPure(tiny(name), AMRMConfig(steps=3, **options))


def denoised(**options):
    return AMRMPure(MaskedDenoiser(tiny("maskdit"), DenoiserConfig(**options)), AMRMConfig(steps=3))


def coup(**options):
    return COUP(model=tiny("unet"), classifier=tiny("classifier"), steps=4, **options)


def diffusion(solver="ancestral", spacing="edm"):
    return DiffusionPurifier(tiny("unet"), DiffusionConfig(steps=4, solver=solver, spacing=spacing))


def soap(**options):
    return Soap(tiny("classifier"), radii=2, steps=3, **options)


HALF = ReconstructionConfig(mask_ratio=0.5)


@pytest.mark.parametrize(
    ("make", "network", "classifier"),
    [
        (lambda: amrm("mae"), (3, 3), (0, 0)),
        (lambda: amrm("masked-conv"), (3, 3), (0, 0)),
        (lambda: amrm("context-encoder"), (3, 3), (0, 0)),
        (lambda: amrm("maskdit"), (3, 3), (0, 0)),
        (denoised, (3, 3), (0, 0)),
        (lambda: amrm("maskdit", masks="complementary", mask_average=2), (6, 6), (0, 0)),
        (lambda: amrm("mae", gradient="target"), (3, 0), (0, 0)),
        (lambda: ScoreOpt(model=tiny("unet"), steps=5), (5, 5), (0, 0)),
        (lambda: ScoreOpt(model=tiny("maskdit"), form="noised", steps=5, spread=0.0), (6, 5), (0, 0)),
        (diffusion, (4, 0), (0, 0)),
        (lambda: diffusion("heun"), (7, 0), (0, 0)),
        (coup, (4, 0), (4, 4)),
        (lambda: coup(through="estimate"), (4, 4), (4, 4)),
        (soap, (0, 0), (2 + 2 * 2 * (3 + 1), 2 * 2 * 3)),
        (lambda: MaskedReconstruction(tiny("masked-conv"), HALF), (2, 0), (0, 0)),
        (lambda: AdaptiveDenoisingPurification(tiny("masked-conv"), steps=1), (4, 0), (0, 0)),
        (lambda: AdaptiveDenoisingPurification(tiny("unet"), steps=1), (2, 0), (0, 0)),
        (lambda: NoisyImageModelling(tiny("mae")), (1, 0), (0, 0)),
        (lambda: DenoisingMaskedAutoencoder(tiny("mae"), average=3), (3, 0), (0, 0)),
        (MedianFilter, (0, 0), (0, 0)),
    ],
)
def test_passes_are_counted_at_the_entry(make, network, classifier):
    purifier = make()
    alone = purifier(x, keys=DRAWN)
    held = [set(vars(part)) for part in passes.networks_of(purifier)]
    with Passes(purifier) as found:
        assert torch.equal(purifier(x, keys=DRAWN), alone)
    assert (found.network.forward / 4, found.network.backward / 4) == network
    assert (found.classifier.forward / 4, found.classifier.backward / 4) == classifier
    # Nothing is left on the networks.
    assert [set(vars(part)) for part in passes.networks_of(purifier)] == held
    assert not any(part._forward_pre_hooks for part in passes.networks_of(purifier))


def test_a_network_that_nobody_was_seen_to_ask_is_named():
    purifier = ScoreOpt(model=tiny("unet"), steps=1)
    with pytest.raises(RuntimeError, match="UNet"), Passes(purifier):
        pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: amrm("mae", momentum=0.7, schedule="cosine"),
        lambda: amrm("masked-conv", masks="complementary", mask_average=2, radius=Radius("5/255")),
        lambda: amrm("mae-normalised"),
        lambda: amrm("masked-conv", gradient="target", momentum=0.7),
        lambda: amrm("context-encoder", decay=0.5),
        lambda: denoised(noise_level="descending", loss="own"),
        diffusion,
        lambda: diffusion("euler", "vp"),
        lambda: diffusion("vp-sde", "vp"),
        lambda: coup(guidance=5.0),
        lambda: ScoreOpt(model=tiny("unet"), steps=5),
        lambda: ScoreOpt(model=tiny("maskdit"), form="noised", steps=5, spread=0.0),
        soap,
    ],
)
def test_plain_references_find_the_same_images(make):
    purifier = make()
    ours = purifier(x, keys=DRAWN)
    plain = purifiers.plain(purifier, x, DRAWN)()
    assert ((ours - plain).abs() > 1e-4).float().mean() < 0.002
    assert (ours - x).abs().mean() > 0.001
    # What is measured is not left changed by the reference.
    assert not any(weight.requires_grad for part in passes.networks_of(purifier) for weight in part.parameters())


def test_a_form_that_has_no_plain_reference_is_not_taken_for_the_same():
    assert purifiers.plain(MedianFilter(), x, DRAWN) is None
    descents = (amrm("mae", norm="l2"), amrm("mae", gradient="target"), amrm("masked-conv", gradient="input"))
    for purifier in (*descents, diffusion("heun"), coup(through="estimate"), soap(auxiliary="rotation")):
        with pytest.raises(NotImplementedError, match="plain"):
            purifiers.plain(purifier, x, DRAWN)


def test_results_that_differ_stop_the_bench():
    assert purifiers.agreement("same", x, x)["largest_difference"] == 0
    with pytest.raises(SystemExit, match=r"other: 50\.00%"):
        purifiers.agreement("other", x, torch.cat([x[:2], x[2:] + 0.01]))


def test_a_record_tells_what_was_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(purifiers, "__file__", str(tmp_path / "purifiers.py"))
    monkeypatch.chdir(tmp_path)  # where there are no runs
    monkeypatch.setattr(sys, "argv", ["purifiers.py", "--record", "--rounds", "1", "median", "distilled-cifar10"])
    purifiers.main()
    (path,) = tmp_path.glob("records/*-purifiers/record.json")
    record = json.loads(path.read_text())
    assert record["results"].keys() == {"median"}
    assert record["results"]["median"]["plain"] == "the same"
    assert "there is no folder runs/" in record["left_out"]["distilled-cifar10"]
