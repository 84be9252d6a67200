"""What can go wrong, sorted by who can mend it; each kind fixes the exit code.

Exit code 2: the person who started the run mends it (config, data, credentials).
Exit code 75 (EX_TEMPFAIL): running the same command again resumes.
Exit code 1: a fault that neither a retry nor another config mends.
"""


class InternError(Exception):
    """Base of every error this package raises on purpose.

    The message is one line that names the field, file, row or address and the fix.
    """

    exit_code = 1


class ConfigError(InternError):
    """A config or command-line value is wrong; one fault a line."""

    exit_code = 2


class DataError(InternError):
    """Input data is unreadable, inconsistent or missing."""

    exit_code = 2


class MissingObjectError(DataError):
    """No object lies at the address asked for."""


class NoAnswerError(DataError):
    """A web address did not answer, or with a fault of its server: another try may succeed."""


class AccessError(InternError):
    """Credentials are missing or refused."""

    exit_code = 2


class ForbiddenError(AccessError):
    """The credentials are known, but have no right to this address."""


class CheckpointError(InternError):
    """A checkpoint or weight file does not fit the model or the config asked for."""

    exit_code = 2


class TrainingError(InternError):
    """Training cannot go on, for example because the loss is not finite."""

    exit_code = 1


class RetryableError(InternError):
    """A server is away or the process was asked to stop; the same command resumes."""

    exit_code = 75
