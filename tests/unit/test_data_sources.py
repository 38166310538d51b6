"""Data sets in their official forms: what is read, and what is said of files that cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from robustmim.data import sources
from robustmim.data.sources import FolderSource, ResidentSource, Selection, Source, load
from robustmim.errors import EnvironmentUnusable, InputError, RecipeError


def records(labels: list[list[int]], seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    return np.concatenate([np.array(labels, dtype=np.uint8), pixels], 1)


def write_cifar10(root: Path, *, labels: list[int] | None = None) -> np.ndarray:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for number in range(1, 6):
        records([[number], [9 - number]], number).tofile(folder / f"data_batch_{number}.bin")
    rows = records([[label] for label in labels or [3, 8, 0, 9, 1]])
    rows.tofile(folder / "test_batch.bin")
    return rows


def write_cifar100(root: Path, names: int = 100) -> np.ndarray:
    folder = root / "cifar-100-binary"
    folder.mkdir()
    rows = records([[1, 99], [2, 0]])
    rows.tofile(folder / "test.bin")
    (folder / "fine_label_names.txt").write_text("\n".join(f"name{n}" for n in range(names)) + "\n")
    return rows


def write_svhn(root: Path, **changes: object) -> np.ndarray:
    (root / "svhn").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 3), dtype=np.uint8)
    savemat(root / "svhn" / "test_32x32.mat", {"X": images, "y": np.array([[10], [1], [9]], np.uint8)} | changes)
    return images


def write_image(path: Path, colour: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (12, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, format="PNG")


def test_cifar10_bytes(tmp_path: Path) -> None:
    rows = write_cifar10(tmp_path)
    source = load("cifar10", "test", root=tmp_path)
    assert isinstance(source, Source)
    assert source.name == "cifar10"
    assert source.classes[source.labels[0]] == "cat"
    assert source.labels.tolist() == [3, 8, 0, 9, 1]
    assert source.ids.tolist() == [0, 1, 2, 3, 4]
    # channel by channel, each row by row
    assert torch.equal(source.fetch(torch.tensor([4, 1])), torch.from_numpy(rows[[4, 1], 1:].reshape(2, 3, 32, 32)))


def test_cifar10_train_joins_the_five_files_in_order(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    assert load("cifar10", "train", root=tmp_path).labels.tolist() == [1, 8, 2, 7, 3, 6, 4, 5, 5, 4]


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    rows = write_cifar100(tmp_path)
    source = load("cifar100", "test", root=tmp_path)
    assert source.labels.tolist() == [99, 0]
    assert source.classes[99] == "name99"
    assert torch.equal(source.fetch(torch.tensor([0])), torch.from_numpy(rows[:1, 2:].reshape(1, 3, 32, 32)))


def test_cifar100_names_that_are_not_100(tmp_path: Path) -> None:
    write_cifar100(tmp_path, names=3)
    with pytest.raises(InputError, match=r"fine_label_names.txt: 3 class names where 100 are expected"):
        load("cifar100", "test", root=tmp_path)


def test_svhn_ten_is_zero(tmp_path: Path) -> None:
    images = write_svhn(tmp_path)
    source = load("svhn", "test", root=tmp_path)
    assert source.labels.tolist() == [0, 1, 9]
    assert source.classes == tuple("0123456789")
    assert torch.equal(source.fetch(torch.tensor([2]))[0], torch.from_numpy(images[..., 2].transpose(2, 0, 1).copy()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": np.array([[0], [1], [9]])}, "labels must be 1 to 10"),
        ({"y": np.array([[11], [1], [9]])}, "labels must be 1 to 10"),
        ({"y": np.array([[1], [9]])}, r"shape \(32, 32, 3, 3\) beside 2 labels"),
        ({"X": np.zeros((32, 32, 3, 3))}, "X is float64"),
    ],
)
def test_svhn_contents_that_do_not_fit(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    write_svhn(tmp_path, **changes)
    with pytest.raises(InputError, match=rf"test_32x32.mat: .*{message}.*download\(\"svhn\"\)"):
        load("svhn", "test", root=tmp_path)


def test_truncated_svhn(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    path = tmp_path / "svhn" / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"test_32x32.mat: cannot be read as a MATLAB file"):
        load("svhn", "test", root=tmp_path)


@pytest.mark.parametrize("size", [0, 3072, 5000])
def test_truncated_cifar10(tmp_path: Path, size: int) -> None:
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=rf"data_batch_3.bin: {size:,} bytes .* 3,073 bytes.*download\(\"cifar10\"\)"):
        load("cifar10", "train", root=tmp_path)


def test_label_out_of_range(tmp_path: Path) -> None:
    write_cifar10(tmp_path, labels=[1, 10])
    with pytest.raises(InputError, match=r"test_batch.bin: the label 10 is out of range"):
        load("cifar10", "test", root=tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "tiny-imagenet"])
def test_missing_set_says_where_and_how(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        load(name, "train", root=tmp_path)
    for part in (str(tmp_path), "ROBUSTMIM_DATA", f'robustmim.data.download.download("{name}")'):
        assert part in str(caught.value)


def test_missing_imagenet_names_the_licence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"imagenet is not there.*ROBUSTMIM_DATA.*licence of image-net.org"):
        load("imagenet", "val", root=tmp_path)


def test_one_missing_file_is_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin").unlink()
    with pytest.raises(InputError, match=r"data_batch_4.bin was looked for.*holds cifar-10-batches-bin/"):
        load("cifar10", "train", root=tmp_path)


def test_unknown_split_and_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cifar10 has no split 'val'; use train or test"):
        load("cifar10", "val", root=tmp_path)
    with pytest.raises(RecipeError, match="Did you mean 'cifar10'"):
        load("cifar1O", "test", root=tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_small_sets_are_not_resized(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"{name} images are 32 × 32 pixels"):
        load(name, "test", root=tmp_path, size=64)


def test_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROBUSTMIM_DATA", str(tmp_path))
    write_cifar10(tmp_path)
    assert len(load("cifar10", "test")) == 5
    monkeypatch.delenv("ROBUSTMIM_DATA")
    assert sources.default_root() == Path.home() / ".cache" / "robustmim" / "data"


def test_parts_and_limit(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    held_out = load("cifar10", "train", root=tmp_path, part="held-out")
    development = load("cifar10", "train", root=tmp_path, part="development")
    assert held_out.ids.tolist() == [0, 4, 8]
    assert development.ids.tolist() == [1, 2, 3, 5, 6, 7, 9]
    whole = load("cifar10", "train", root=tmp_path)
    assert torch.equal(held_out.fetch(torch.arange(3)), whole.fetch(held_out.ids))
    assert torch.equal(held_out.labels, whole.labels[held_out.ids])
    assert load("cifar10", "train", root=tmp_path, part="development", limit=2).ids.tolist() == [1, 2]
    assert len(load("cifar10", "train", root=tmp_path, limit=1000)) == 10
    with pytest.raises(InputError, match="limit=0"):
        load("cifar10", "train", root=tmp_path, limit=0)


def test_a_selection_of_any_source() -> None:
    whole = ResidentSource("x", ("a",), torch.arange(12).to(torch.uint8).view(4, 3, 1, 1), *[torch.zeros(4).long()] * 2)
    some = Selection(whole, torch.tensor([3, 1]))
    assert isinstance(some, Source)
    assert len(some) == 2
    assert torch.equal(some.fetch(torch.tensor([0])), whole.images[3:])


def test_resident_source_is_checked() -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(InputError, match="2 images, 3 labels and 2 ids"):
        ResidentSource("x", ("a",), images, torch.zeros(3).long(), torch.arange(2))
    with pytest.raises(InputError, match="labels from 0 to 1, but the 1 classes"):
        ResidentSource("x", ("a",), images, torch.arange(2), torch.arange(2))


def test_folder_in_the_order_of_names(tmp_path: Path) -> None:
    for file in ("dog/b.png", "dog/a.PNG", "cat/c.jpg", "cat/notes.txt", "cat/.hidden.png"):
        write_image(tmp_path / file)
    source = load("folder", "train", root=tmp_path, size=4)
    assert isinstance(source, FolderSource)
    assert [Path(path).name for path in source.paths] == ["c.jpg", "a.PNG", "b.png"]
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0, 1, 1]
    assert source.fetch(torch.tensor([2, 0])).shape == (2, 3, 4, 4)
    assert source.fetch(torch.tensor([0]))[0, :, 0, 0].tolist() == [10, 20, 30]
    resident = source.resident()
    assert torch.equal(resident.images, source.fetch(torch.arange(3)))
    held_out = load("folder", "train", root=tmp_path, size=4, part="held-out")
    assert isinstance(held_out, FolderSource)
    assert held_out.ids.tolist() == [0]


def test_folder_with_splits(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "cat" / "a.png")
    write_image(tmp_path / "val" / "cat" / "b.png")
    source = load("folder", "val", root=tmp_path)
    assert isinstance(source, FolderSource)
    assert source.paths == [str(tmp_path / "val" / "cat" / "b.png")]
    with pytest.raises(InputError, match="no split 'test'; use train or val"):
        load("folder", "test", root=tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a.png")
    write_image(tmp_path / "plane" / "b.png")
    assert load("folder", "train", root=tmp_path).classes == ("plane", "train")


def test_resize_and_crop(tmp_path: Path) -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = 255  # the middle square
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "x.png")
    whole = load("folder", "train", root=tmp_path, size=40, resize=40)
    assert (whole.fetch(torch.tensor([0])) == 255).all()
    half = load("folder", "train", root=tmp_path, size=10, resize=20).fetch(torch.tensor([0]))
    assert half.shape == (1, 3, 10, 10)
    assert (half == 255).all()
    with pytest.raises(InputError, match="size=30 cannot be cut from a shorter side of resize=20"):
        load("folder", "train", root=tmp_path, size=30, resize=20)


def test_photographs_are_224_of_256(tmp_path: Path) -> None:
    write_image(tmp_path / "imagenet" / "val" / "n01443537" / "a.JPEG")
    source = load("imagenet", "val", root=tmp_path)
    assert isinstance(source, FolderSource)
    assert source.labels.tolist() == [1]
    assert len(source.classes) == 1000
    assert (source.size, source.resize) == (224, 256)
    assert source.fetch(torch.tensor([0])).shape == (1, 3, 224, 224)
    smaller = load("imagenet", "val", root=tmp_path, size=112)
    assert isinstance(smaller, FolderSource)
    assert smaller.resize == 128


def test_labels_come_from_the_list_of_all_classes(tmp_path: Path) -> None:
    write_image(tmp_path / "imagenet" / "val" / "n3" / "a.JPEG")
    write_image(tmp_path / "imagenet" / "val" / "n1" / "a.JPEG")
    listing = tmp_path / "imagenet" / "classes.txt"
    listing.write_text("n1\ttench, Tinca tinca\nn2\tgoldfish\nn3\twhite shark\n")
    source = load("imagenet", "val", root=tmp_path)
    assert source.labels.tolist() == [0, 2]
    assert source.classes == ("tench, Tinca tinca", "goldfish", "white shark")
    listing.write_text("n1\ttench\n")
    with pytest.raises(InputError, match=r"n3 is none of the 1 classes listed"):
        load("imagenet", "val", root=tmp_path)
    listing.unlink()
    with pytest.raises(InputError, match=r"n1 is none of the 1000 classes listed"):
        load("imagenet", "val", root=tmp_path)


def test_tiny_imagenet_in_both_forms(tmp_path: Path) -> None:
    official, folders = tmp_path / "official", tmp_path / "folders"
    table = {"val_0.JPEG": "n2", "val_1.JPEG": "n1", "val_2.JPEG": "n2"}
    top = official / "tiny-imagenet-200"
    for number, (file, wnid) in enumerate(table.items()):
        for path in (top / "val" / "images" / file, folders / "tiny-imagenet-200" / "val" / wnid / file):
            write_image(path, colour=(number, number, number), size=(64, 64))
    (top / "val" / "val_annotations.txt").write_text("".join(f"{f}\t{w}\t0\t0\t9\t9\n" for f, w in table.items()))
    write_image(top / "train" / "n2" / "images" / "n2_0.JPEG")
    (top / "train" / "n2" / "n2_boxes.txt").write_text("n2_0.JPEG\t0\t0\t9\t9\n")
    (top / "words.txt").write_text("n0\tentity\nn1\tgoldfish\nn2\tfrog\n")  # lists more than the set holds
    one, other = (load("tiny-imagenet", "val", root=root) for root in (official, folders))
    assert one.labels.tolist() == other.labels.tolist() == [0, 1, 1]
    assert torch.equal(one.fetch(torch.arange(3)), other.fetch(torch.arange(3)))
    assert one.fetch(torch.arange(3)).shape == (3, 3, 64, 64)
    assert one.classes == ("goldfish", "frog")
    assert load("tiny-imagenet", "train", root=official).classes == ("frog",)
    (top / "val" / "val_annotations.txt").write_text("val_0.JPEG n2\n")
    with pytest.raises(InputError, match=r"val_annotations.txt, line 1"):
        load("tiny-imagenet", "val", root=official)


def test_corrupt_and_missing_files_are_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "fine.png")
    (tmp_path / "a" / "broken.png").write_bytes((tmp_path / "a" / "fine.png").read_bytes()[:40])
    source = load("folder", "train", root=tmp_path, size=8)
    with pytest.raises(InputError, match=r"broken.png"):
        source.fetch(torch.tensor([0, 1]))
    (tmp_path / "a" / "fine.png").unlink()
    with pytest.raises(InputError, match=r"fine.png: there is no such file"):
        source.fetch(torch.tensor([1]))


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="say which folder with root"):
        load("folder", "train")
    with pytest.raises(InputError, match="is not a folder"):
        load("folder", "train", root=tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no images; one folder a class is expected"):
        load("folder", "train", root=tmp_path)


def test_samples() -> None:
    pytest.importorskip("foolbox", reason="ships the images")
    source = load("samples-cifar10", "test")
    assert source.labels[:4].tolist() == [3, 8, 8, 0]
    assert source.fetch(torch.arange(20)).shape == (20, 3, 32, 32)
    assert load("samples-cifar100", "test").labels[:2].tolist() == [49, 33]
    photographs = load("samples-imagenet", "test", limit=8)
    assert photographs.labels[:2].tolist() == [243, 559]
    assert len(photographs.classes) == 1000
    assert photographs.fetch(torch.arange(8)).shape == (8, 3, 224, 224)


def test_samples_without_foolbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustmim.data.samples.find_spec", lambda name: None)
    with pytest.raises(EnvironmentUnusable, match=r"pip install 'robustmim\[samples\]'"):
        load("samples-cifar10", "test")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "split", "count", "classes"),
    [
        ("cifar10", "train", 50_000, 10),
        ("cifar10", "test", 10_000, 10),
        ("cifar100", "train", 50_000, 100),
        ("cifar100", "test", 10_000, 100),
    ],
)
def test_real_cifar(data_root: Path, name: str, split: str, count: int, classes: int) -> None:
    source = load(name, split, root=data_root)
    assert len(source) == count
    assert torch.equal(source.labels.bincount(), torch.full((classes,), count // classes))
    assert len(source.classes) == classes


@pytest.mark.data
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_samples_are_test_images(data_root: Path, name: str) -> None:
    pytest.importorskip("foolbox", reason="ships the images")
    samples, real = load(f"samples-{name}", "test"), load(name, "test", root=data_root)
    images = real.fetch(torch.arange(len(real)))
    for image, label in zip(samples.fetch(torch.arange(20)), samples.labels.tolist(), strict=True):
        # Copies of CIFAR-100 differ in their order, so each is looked for.
        (place,) = (images == image).flatten(1).all(1).nonzero()[:, 0].tolist()
        assert int(real.labels[place]) == label


@pytest.mark.data
def test_real_photographs(data_root: Path) -> None:
    tiny = load("tiny-imagenet", "val", root=data_root)
    assert tiny.labels.bincount().tolist() == [len(tiny) // 200] * 200
    assert "goldfish" in tiny.classes
    assert tiny.fetch(torch.arange(4)).shape == (4, 3, 64, 64)
    photographs = load("imagenet", "val", root=data_root)
    assert len(photographs.classes) == 1000
    assert photographs.classes[0] == "tench"
    # Labels are ImageNet's own even where some classes have no images.
    assert int(photographs.labels.max()) > 900
    assert photographs.fetch(torch.tensor([0, len(photographs) - 1])).shape == (2, 3, 224, 224)
