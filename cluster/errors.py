"""Every error that Shoal raises on purpose.

The command line turns them into a few lines and an exit code: 2 where the request was wrong
(a config, a file, too few resources), 1 where the run failed. Each message gives the value,
what is allowed and what to change. Each class takes one string, so that it survives pickling
between processes.
"""


class ShoalError(Exception):
    """Root of all errors raised by Shoal."""

    exit_code = 1


class RequestError(ShoalError):
    """What was asked for cannot be done as asked; nothing was started or lost."""

    exit_code = 2


class ConfigError(RequestError):
    """The experiment file, an override or an argument is wrong."""


class DataError(RequestError):
    """The data cannot be used as asked."""


class StorageError(RequestError):
    """A place to read from or write to is missing, read-only or held by someone else."""


class FullError(StorageError):
    """A place is full: nothing is wrong with the request, but the run failed."""

    exit_code = 1


class InUseError(StorageError):
    """Another live process holds the place."""


class ResourceError(RequestError):
    """The job needs more than the cluster has, or the cluster cannot be reached."""


class RunError(ShoalError):
    """A run that had started could not be finished."""


class DivergedError(RunError):
    """A fit's loss, gradient or predictions stopped being numbers."""


class StoppedError(RunError):
    """A run was asked to stop, and did so in a state that the same command resumes."""


class CorruptShardError(RunError):
    """A shard's bytes are not those that its manifest recorded."""


class CollectiveTimeoutError(RunError):
    """A worker did not take part in a collective operation in time."""


class ContractError(RunError):
    """A run proved itself wrong: workers that do not train one model, a plan that overlaps."""
