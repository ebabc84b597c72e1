"""The one exception that stands for a user's mistake."""


class UserError(ValueError):
    """A mistake in what the user gave: an option, a value or a file.

    Its message is one sentence that names the culprit and the way out. The command line prints
    just that sentence and exits with status 2; in Python it is an ordinary ``ValueError``.
    """
