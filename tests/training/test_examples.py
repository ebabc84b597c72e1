"""The pictures of classes that a training keeps: which, and that commands leave them as they are."""

import numpy as np
import pytest
import torch
from recognisers import SPEC

from osr_lightning import OpenSetDataModule, load
from osr_lightning.__main__ import main
from osr_lightning.recogniser.examples import MOST
from osr_lightning.training.examples import choose_examples


def rows(label: list[int], predicted: list[int], nll: list[float]) -> dict[str, torch.Tensor]:
    """Of images in reverse order, as a row is told by its number alone."""
    found = {"row": range(len(label)), "label": label, "predicted_class": predicted}
    table = {name: torch.tensor(values) for name, values in found.items()}
    table["nll"] = torch.tensor(nll, dtype=torch.float64)
    return {name: values.flip(0) for name, values in table.items()}


def test_the_rightly_classified_image_of_the_median_loss_is_chosen():
    images = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 20, 20)
    found = choose_examples(
        #  cats, of which one is called a dog; no dog is right; the others are an even number
        rows([0, 0, 0, 0, 1, 2, 2, 3], [0, 0, 0, 1, 0, 2, 2, 2], [0.3, 0.1, 0.2, 9, 9, 0.7, 0.5, 0.1]),
        images,
        SPEC,
    )
    assert {name: pixels[0, 0, 0] for name, pixels in found.items()} == {"cat": 2, SPEC.classes[2]: 6}


def test_of_many_classes_evenly_spaced_ones_are_chosen():
    count = 100
    spec = SPEC._replace(classes=tuple(map(str, range(count))))
    images = torch.zeros(count, 3, 20, 20, dtype=torch.uint8)
    predicted = [k if k % 2 else 0 for k in range(count)]  # 0 and the odd ones are right
    found = choose_examples(rows([*range(count)], predicted, [0.0] * count), images, spec)
    assert len(found) == MOST
    labels = [int(name) for name in found]
    assert (labels[0], labels[-1]) == (0, 99)
    assert set(np.diff(labels)) <= {7, 8, 9, 10}


def kept(path) -> dict[str, bytes]:
    return {name: pixels.tobytes() for name, pixels in load(path).examples.items()}


@pytest.fixture(scope="module")
def trained(tiny_root, tmp_path_factory):
    """The folder of a fit of three epochs, after which most classes are told apart, and its datamodule."""
    folder = tmp_path_factory.mktemp("trained")
    words = [
        *("fit", f"--data.root={tiny_root}", "--data.batch_size=32", "--trainer.max_epochs=3"),
        *("--trainer.accelerator=cpu", f"--trainer.default_root_dir={folder}"),
        *("--trainer.enable_progress_bar=false", "--model.network=BaselineCNN", "--model.learning_rate=0.01"),
        *("--model=BaselineClassifier", "--model.network.channels=[4,8]", "--model.network.hidden=16"),
    ]
    assert main(words) == 0
    return folder / "lightning_logs" / "default" / "version_0" / "checkpoints" / "best.ckpt"


def test_they_are_validation_images_of_their_class(trained, tiny_root):
    recogniser = load(trained)
    data = OpenSetDataModule(root=str(tiny_root))
    _, val = data.tables.load_training()
    assert len(recogniser.examples) > 5
    for name, pixels in recogniser.examples.items():
        same = (val.images == torch.from_numpy(pixels)).flatten(1).all(1)
        assert same.sum() == 1
        assert recogniser.spec.classes[int(val.labels[same])] == name
        answer = recogniser.answer(pixels[None])
        assert recogniser.spec.classes[int(answer.probabilities.argmax())] == name


def test_a_calibration_keeps_them_or_takes_them_out(trained, tmp_path):
    words = ["calibrate", f"--ckpt_path={trained}", f"--trainer.default_root_dir={tmp_path}"]
    words += ["--trainer.enable_progress_bar=false", f"--output={tmp_path / 'new.ckpt'}"]
    assert main([*words, "--model.alpha=0.2"]) == 0
    assert kept(tmp_path / "new.ckpt") == kept(trained)
    assert main([*words, "--model.keep_examples=false"]) == 0
    assert kept(tmp_path / "new.ckpt") == {}


def test_a_training_need_not_keep_any(small, tmp_path):
    words = [*small, f"--trainer.default_root_dir={tmp_path}", "--model.keep_examples=false"]
    assert main(["fit", *words]) == 0
    folder = tmp_path / "lightning_logs" / "default" / "version_0" / "checkpoints"
    assert kept(folder / "best.ckpt") == kept(folder / "last.ckpt") == {}
