"""osr calibrate and osr drift for features that somebody else's network made."""

import csv

import numpy as np
import pytest

from osr_lightning.__main__ import main
from osr_lightning.errors import UserError
from osr_lightning.sklearn import OpenSetClassifier, load, save


def blobs(seed, count=120, width=6):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    return rng.normal(size=(count, width)) + 4 * np.eye(width)[labels], np.array(["ant", "bee", "cat"])[
        labels
    ]


def write_csv(path, features, labels=None):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        head = [f"f{place}" for place in range(features.shape[1])]
        writer.writerow(head if labels is None else [*head, "label"])
        for row, one in enumerate(features):
            writer.writerow([*one] if labels is None else [*one, labels[row]])
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def kept(place):
    features, labels = blobs(0)
    np.savez(place / "train.npz", features=features, labels=labels)
    assert (
        main(["calibrate", f"--features={place}/train.npz", f"--output={place}/kept.npz", "--alpha=0.1"]) == 0
    )
    return str(place / "kept.npz")


def test_what_is_written_answers_as_the_estimator(kept):
    features, labels = blobs(0)
    expected = OpenSetClassifier(alpha=0.1).fit(features, labels)
    found = load(kept)
    new = np.concatenate([blobs(1)[0], np.random.default_rng(2).normal(size=(40, 6)) * 9])
    assert (found.predict(new) == expected.predict(new)).all()
    assert np.allclose(found.score_samples(new), expected.score_samples(new))
    assert np.allclose(found.p_values(new), expected.p_values(new))
    assert "unknown" in found.predict(new)


@pytest.mark.parametrize("options", [["--unit_length"], ["--score=msp"], ["--score=vim"], ["--style=2"]])
def test_a_table_in_a_csv_file_is_the_same(options, place, capsys):
    features, labels = blobs(0)
    table = write_csv(place / "train.csv", features, labels)
    assert main(["calibrate", f"--features={table}", f"--output={place}/other.npz", *options]) == 0
    assert "3 classes, 120 samples, threshold" in capsys.readouterr().out
    score = next((word[8:] for word in options if word.startswith("--score=")), "fisher")
    style = 2 * ("--style=2" in options)
    expected = OpenSetClassifier(score_name=score, unit_length="--unit_length" in options, style=style)
    expected.fit(features, labels)
    found = load(place / "other.npz")
    assert found.threshold_ == pytest.approx(expected.threshold_)
    assert np.allclose(found.score_samples(features), expected.score_samples(features))


def test_drift_is_told_of_features(kept, place, capsys):
    same, other = write_csv(place / "same.csv", blobs(3)[0]), place / "other_day.npz"
    np.savez(other, features=np.random.default_rng(4).normal(size=(100, 6)) * 9)
    assert main(["drift", "--ckpt_path", kept, same]) == 0
    assert "no alarm at alpha 0.01" in capsys.readouterr().out
    assert main(["drift", "--ckpt_path", kept, str(other), "--output", str(place / "found")]) == 3
    assert "more images are called unknown than calibration explains" in capsys.readouterr().out
    assert (place / "found" / "drift.png").is_file()
    assert main(["drift", "--ckpt_path", kept, same, str(other), "--sequential"]) == 3


def test_mistakes_get_one_sentence(kept, place, capsys):
    features, labels = blobs(0)
    np.savez(place / "no_labels.npz", features=features)
    np.savez(place / "flat.npz", features=features[0], labels=labels)
    np.savez(place / "nan.npz", features=np.where(features > 5, np.nan, features), labels=labels)
    np.savez(place / "narrow.npz", features=features[:, :2])
    np.savez(place / "few.npz", features=features[:9], labels=labels[:9])
    (place / "words.csv").write_text("a,b,label\n1,x,ant\n")
    wanted = {
        "none.npz": "there is no file",
        "no_labels.npz": "has no labels, which calibration needs: add an array labels",
        "flat.npz": "has features and labels of shape (6,) and (120,)",
        "nan.npz": "has numbers that are not finite, first in row",
        "words.csv": "is no table of features (could not convert string to float",
        "kept.npz": "is no table of features",
        "few.npz": "--alpha 0.05 needs 19 samples, and",
    }
    for name, told in wanted.items():
        words = ["calibrate", f"--features={place / name}", f"--output={place}/x.npz"]
        assert main(words) == 2, name
        assert told in capsys.readouterr().err
    assert main(["calibrate", f"--features={place}/train.npz", f"--output={place}/x.ckpt"]) == 2
    assert main(["calibrate", f"--features={place}/train.npz", f"--output={place}/x.npz", "--score=x"]) == 2
    assert "there is no score_name 'x'" in capsys.readouterr().err
    assert not (place / "x.npz").exists()
    before = (place / "train.npz").read_bytes()
    for same in (f"{place}/train.npz", f"{place}/../{place.name}/train.npz"):
        assert main(["calibrate", f"--features={place}/train.npz", f"--output={same}"]) == 2
        assert "is the file of the features: name another file" in capsys.readouterr().err
    assert (place / "train.npz").read_bytes() == before
    assert main(["drift", "--ckpt_path", kept, str(place / "narrow.npz")]) == 2
    assert "has 2 features a row, and" in capsys.readouterr().err
    assert main(["drift", "--ckpt_path", kept, "--score=msp", str(place / "train.npz")]) == 2
    assert "has the score fisher alone, not msp; leave --score out" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="needs 19 samples"):
        save(OpenSetClassifier().fit(features[:9], labels[:9]), place / "open.npz")
    assert main(["drift", "--ckpt_path", str(place / "open.npz"), str(place / "train.npz")]) == 2
    assert "has no threshold, as it was fitted to too few samples" in capsys.readouterr().err
    assert main(["drift", "--ckpt_path", str(place / "narrow.npz"), kept]) == 2
    assert "is no file of osr calibrate --features" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["predict", "a.png"], ["test"], ["explain", "a.png"], ["calibrate"]])
def test_other_commands_say_what_takes_such_a_file(words, kept, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    (place / "a.png").touch()
    for name in (kept, f"{place}/train.npz"):
        assert main([words[0], "--ckpt_path", name, *words[1:]]) == 2
        assert "is no checkpoint but arrays: osr drift and" in capsys.readouterr().err


def test_only_the_default_classifier_is_kept_as_arrays(place):
    from sklearn.naive_bayes import GaussianNB

    model = OpenSetClassifier(GaussianNB(), score_name="msp").fit(*blobs(0))
    with pytest.raises(
        UserError, match="only the default classifier is kept as arrays, and this is GaussianNB"
    ):
        save(model, place / "x.npz")
