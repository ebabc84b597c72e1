"""The options that users set, a line each, grouped by what they are for."""

from __future__ import annotations

from typing import NamedTuple


class Line(NamedTuple):
    """One line of the help.

    Attributes:
        option: its name, without dashes.
        takes: what follows it, the unit where there is one.
        text: what it does.
        unset: what holds while it is not given, where its default is None.
    """

    option: str
    takes: str
    text: str
    unset: str = ""


class Section(NamedTuple):
    """Lines below one heading.

    Attributes:
        heading: what they are for.
        commands: those that heed them; empty for all.
        lines: in the order of the page.
    """

    heading: str
    commands: tuple[str, ...]
    lines: tuple[Line, ...]


_TRAINING = ("run", "fit")
_JUDGING = ("run", "test")
_DECIDING = ("run", "fit", "calibrate")

GROUPS = (
    Section(
        "Settings",
        (),
        (
            Line("config", "FILE", "YAML of options; what follows it wins"),
            Line("print_config", "", "print all settings as YAML and stop"),
            Line("seed_everything", "N", "seed of weights, order, augmentation"),
            Line("verbose", "", "tell what Lightning does, too"),
            Line("trust_checkpoint", "", "let checkpoints import your code"),
        ),
    ),
    Section(
        "Resuming",
        _TRAINING,
        (Line("ckpt_path", "FILE", "checkpoint to go on from; or last"),),
    ),
    Section(
        "Checkpoint",
        ("calibrate", "validate", "test", "predict"),
        (
            Line("ckpt_path", "FILE", "a trained one; or best or last"),
            Line("output", "FILE", "new checkpoint", "NAME.calibrated.ckpt"),
            Line("in_place", "BOOL", "write over it and test it again"),
        ),
    ),
    Section(
        "Images (SOURCE: mnist, cifar10, ..., folder:PATH, npz:PATH, noise:uniform)",
        (),
        (
            Line("data.known", "SOURCE", "images of the known classes"),
            Line("data.known_classes", "LIST", "its classes that are known", "all"),
            Line("data.unknown", "MAP", "unknown test images, {NAME: SOURCE}"),
            Line("data.predict", "SOURCE", "images for predict", "test images"),
            Line("data.root", "DIR", "folder for downloaded data sets"),
            Line("data.channels", "1|3", "grey or colour", "as known images"),
            Line("data.image_size", "PIXELS", "height and width", "at most 64"),
            Line("data.mean", "NUMBERS", "mean of pixels in [0, 1]", "measured"),
            Line("data.std", "NUMBERS", "their deviation", "measured"),
            Line("data.val_fraction", "SHARE", "share of training images held out"),
            Line("data.unknown_fraction", "SHARE", "share of unknown images used"),
            Line("data.seed", "N", "seed of these two draws"),
            Line("data.test_seed", "N", "seed of test images held out"),
            Line("data.eval_batch_size", "N", "images per step of a test"),
            Line("data.memory_limit", "GIB", "larger folders stay on disk"),
            Line("data.num_workers", "N", "processes that read those", "1 per core"),
        ),
    ),
    Section(
        "Model",
        (),
        (
            Line("model", "CLASS", "see --model.help", "MCDropoutClassifier"),
            Line("model.network", "NAME", "see --model.network.help", "by images"),
            Line("model.num_samples", "N", "dropout passes per image"),
            Line("model.dropout", "P", "dropout probability", "network's, or 0.3"),
            Line("model.masks", "KIND", "dropout masks, or: independent"),
            Line("model.mask_seed", "N", "seed of dropout masks in predictions"),
        ),
    ),
    Section(
        "Score (msp, entropy, mutual_information, energy, fisher, knn, vim, ...)",
        (),
        (
            Line("model.score", "NAME", "tells unknown from known images"),
            Line("model.detectors", "LIST", "more scores to fit, as knn and vim"),
        ),
    ),
    Section(
        "Threshold",
        _DECIDING,
        (
            Line("model.calibration", "METHOD", "how it is chosen"),
            Line("model.alpha", "SHARE", "of known images it may reject"),
            Line("model.threshold", "SCORE", "its value, for calibration fixed"),
            Line("model.costs", "MAP", "costs of errors, for min_cost"),
            Line("model.unknown_prior", "SHARE", "unknown images to expect"),
            Line("data.calibration_unknown", "MAP", "unknown images, for max_accuracy"),
            Line("data.calibrate_on", "SPLIT", "images; test is optimistic"),
            Line("data.allow_overlap", "BOOL", "go on if the same are tested"),
        ),
    ),
    Section(
        "Training",
        _TRAINING,
        (
            Line("trainer.max_epochs", "N", "passes over the images", "by number"),
            Line("trainer.max_time", "DD:HH:MM:SS", "time after which to stop"),
            Line("data.batch_size", "N", "images per training step", "by network"),
            Line("model.learning_rate", "RATE", "learning rate, at its peak", "by network"),
            Line("model.schedule", "KIND", "one_cycle or step", "what suits"),
            Line("model.weight_decay", "RATE", "of AdamW; 0 for Adam", "by network"),
            Line("model.label_smoothing", "SHARE", "smoothing of labels", "what suits"),
            Line("model.augment", "KIND", "none, digits, photos ...", "by images"),
            Line("model.balance_classes", "BOOL", "let rare classes weigh as much"),
            Line("model.compile", "BOOL", "use torch.compile, for GPUs"),
            Line("optimizer", "CLASS", "see --optimizer.help", "Adam, AdamW"),
            Line("lr_scheduler", "CLASS", "see --lr_scheduler.help"),
            Line("trainer.gradient_clip_val", "NORM", "largest norm of gradients"),
            Line("trainer.limit_train_batches", "N", "steps per epoch, or share", "all"),
        ),
    ),
    Section(
        "Results",
        _JUDGING,
        (
            Line("evaluation.figures", "BOOL", "draw figures"),
            Line("evaluation.tsne_points", "N", "images in the t-SNE figure"),
            Line("evaluation.projector_points", "N", "images in TensorBoard's Projector"),
            Line("evaluation.bootstrap", "N", "resamples for 95% intervals"),
            Line("evaluation.seed", "N", "seed of these draws"),
        ),
    ),
    Section(
        "Run folder (DIR/lightning_logs/NAME/version_N)",
        (),
        (
            Line("trainer.default_root_dir", "DIR", "where lightning_logs is"),
            Line("trainer.experiment", "NAME", "name of the experiment"),
            Line("trainer.version", "N", "number, or a name", "next free number"),
            Line("trainer.logger", "CLASS", "false: no folder", "TensorBoard, CSV"),
            Line("trainer.enable_checkpointing", "BOOL", "write best.ckpt and last.ckpt"),
            Line("trainer.checkpoint_minutes", "N", "minutes between last.ckpt", "an epoch"),
        ),
    ),
    Section(
        "Machine",
        (),
        (
            Line("trainer.accelerator", "KIND", "cpu, gpu, tpu or auto"),
            Line("trainer.devices", "N", "number of devices, or their indices"),
            Line("trainer.precision", "KIND", "e.g. 32-true, bf16-mixed"),
            Line("trainer.enable_progress_bar", "BOOL", "show progress", "true"),
            Line("trainer.callbacks", "LIST", "callbacks of Lightning to add"),
        ),
    ),
)
