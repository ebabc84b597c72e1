"""Options of tests that train or test: no progress bars, no figures, as little resampling as will do."""

TRAINER = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
EVALUATION = ["--evaluation.figures=false", "--evaluation.projector_points=0", "--evaluation.bootstrap=20"]
# where the network is not looked at: the one that is chosen for few images takes seconds
SMALL_NETWORK = ["--model.network=MCDropoutCNN", "--model.network.channels=[2,3]", "--model.network.hidden=5"]
FAST = [*QUIET, "--trainer.accelerator=cpu", *EVALUATION]
