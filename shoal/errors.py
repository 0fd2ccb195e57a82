"""Errors that a user can mend: one line that says what is wrong, where, and what to do."""


class ShoalError(Exception):
    """Base of all errors that the command line prints as one line, without a traceback."""


class ConfigError(ShoalError):
    """The configuration cannot work: unknown key, wrong type, impossible combination."""


class DataError(ShoalError):
    """A data set, a row or a template cannot be used."""


class TrainingError(ShoalError):
    """The run cannot go on: a loss that is not finite, too many missing rewards, a failed self-check."""


class StartRefused(TrainingError):
    """The start-up check failed: nothing was trained."""


class BudgetError(TrainingError):
    """The judge's budget is exhausted."""


class EngineError(TrainingError):
    """An inference server is not there, does not answer, or refuses what it is asked."""


class RolloutApiError(TrainingError):
    """The server of scored groups is not there, or refuses what it is asked."""


class RequestRefused(EngineError):
    """An inference server that works otherwise cannot answer this one request."""


class ServerGone(EngineError):
    """An inference server is gone for good, with its machine; the run goes on without it."""


class ServerDied(EngineError):
    """An inference server that answered before does not any more."""
