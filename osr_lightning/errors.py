"""The exceptions that are told in one sentence."""


class UserError(ValueError):
    """A mistake in what the user gave: an option, a value or a file.

    Its message is one sentence that names the culprit and the way out. The command line prints
    just that sentence and exits with status 2; in Python it is an ordinary ``ValueError``.
    """


class Failure(RuntimeError):
    """What went wrong without a mistake: a full disk, a loss that is no number.

    Its message is one sentence as well; the command line exits with status 1.
    """
