"""The one exception whose message is meant for the user."""


class UserError(Exception):
    """Something the user can mend: the message names the field and the fix.

    `main` prints it as one line, without a traceback, and exits with code 2.
    """
