"""The errors a user can meet. Each message says what is wrong, with the value, and what fixes it."""


class GptscaleError(Exception):
    """A mistake or a condition that the user can mend; commands print it as one line and exit with 2."""


class ConfigError(GptscaleError):
    """The config file or an override cannot be used."""


class DataError(GptscaleError):
    """A source, a corpus or a tokenizer cannot be used."""


class CheckpointError(GptscaleError):
    """A checkpoint cannot be written or read."""


class CheckpointAccessError(CheckpointError):
    """A checkpoint cannot be reached, which says nothing about what it holds."""


class WeightsError(GptscaleError):
    """Weights cannot be imported, exported or found."""


class TrainingError(GptscaleError):
    """A run cannot start or go on."""


class TakenOverError(TrainingError):
    """A later start has taken the run over."""


class RankError(GptscaleError):
    """This rank failed alone; the others end as PeerError."""


class PeerError(GptscaleError):
    """Another rank failed and says why; this one ends without a word."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
