"""What can go wrong at Rondo's borders: each message says what was got, what was expected and what to do."""


class RondoError(Exception):
    """Base of every error that a user can act on; the command line prints its text and nothing else."""


class ParamsError(RondoError):
    """`params.yaml` says something that is unknown, of the wrong type or impossible."""


class SourceError(RondoError):
    """The source of images cannot be listed or holds nothing readable."""


class ArtifactError(RondoError):
    """A file between stages is missing, damaged or not what its type promises."""


class AnswersError(RondoError):
    """A file of answers cannot be read as a whole (rows that are wrong one by one go to the rejects instead)."""


class WorkspaceError(RondoError):
    """The workspace, its git or DVC repository, or the state of its rounds does not allow what was asked."""
