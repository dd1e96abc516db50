"""The one exception that a user's mistake raises."""


class UserError(Exception):
    """A mistake in the input (config, list, image, mask, checkpoint, flag).

    Its message names the file, the key or line, the value, what is allowed and what to do. The
    entry scripts print it as one line without a traceback and exit with status 1.
    """
