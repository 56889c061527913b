"""The one error type that the command line turns into a single line and exit code 2."""


class CaseError(Exception):
    """Something the user gave is wrong: a folder, a file, a setting.

    The message is one line that names the thing, what was found and what to do about it. Ops raise
    ``TypeError`` and ``ValueError`` instead, as torch users expect; those are for programs, this is for people.
    """
