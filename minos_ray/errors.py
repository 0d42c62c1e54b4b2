"""The one exception that means: the request was wrong, not the work."""


class UserError(Exception):
    """One clear line for the user (which key, which value, what would do); the command exits with code 2."""
