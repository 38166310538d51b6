"""The information term over the batch of all processes: DDP's gradient is that of one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.nn.parallel import DistributedDataParallel

from robustmim.config import InformationConfig, MaskedAttackConfig
from robustmim.data.loader import Batch
from robustmim.models.mae import MaskedAutoencoder
from robustmim.rng import keys
from robustmim.train.distributed import gathered
from robustmim.train.engine import _Step
from robustmim.train.pretraining import InformationTerm, MaskedPretraining

BATCH, PROCESSES = 12, 2
WIDTH = {"width": {"rule": "dimension", "value": 1.0}}  # fixed, so that finite differences would agree as well


def gradients(scope: str, rank: int, processes: int) -> dict[str, torch.Tensor]:
    """Return the gradients, and the estimate, of one MIMIR step on this process's share of the batch."""
    torch.manual_seed(0)
    sizes = {"width": 12, "depth": 1, "heads": 3, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
    model = MaskedAutoencoder(image_size=16, **sizes).double()
    term = InformationTerm(InformationConfig(weight=5.0, estimator="unbiased-hsic", options=WIDTH, batch=scope))
    step = _Step(model, MaskedPretraining((0.75,), attack=MaskedAttackConfig(), information=term))
    images = torch.rand(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = BATCH // processes
    own = slice(rank * share, (rank + 1) * share)
    ids = torch.arange(BATCH)[own]
    forward = DistributedDataParallel(step) if processes > 1 else step
    values = forward(Batch(images[own], torch.zeros(share).long(), ids), keys(0, "step", ids), 0)
    values["loss"].backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {"information": values["information"].detach()}


def _work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    rows = gathered(torch.full((2, 1), float(rank)))
    results = {scope: gradients(scope, rank, PROCESSES) for scope in ("global", "process")}
    torch.save({"rows": rows, **results}, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(_work, (str(folder),), nprocs=PROCESSES)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


def test_rows_come_in_the_order_of_the_processes(found):
    for part in found:
        assert part["rows"].flatten().tolist() == [0, 0, 1, 1]


def test_the_gathered_batch_gives_the_gradient_of_one_process(found):
    whole = gradients("global", 0, 1)
    for part in found:
        assert part["global"].keys() == whole.keys()
        for name, value in whole.items():
            torch.testing.assert_close(part["global"][name], value, rtol=1e-9, atol=1e-13)


def test_shares_of_the_batch_give_another_one(found):
    whole = gradients("global", 0, 1)
    name = "blocks.0.mlp.fc1.weight"
    assert (found[0]["process"][name] - whole[name]).abs().max() > 1e-3 * whole[name].abs().max()
    assert found[0]["process"]["information"] != found[1]["process"]["information"]
