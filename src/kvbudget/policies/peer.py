"""Methods that a library of others measures (`kvbudget.run.peers`)."""

from kvbudget.cache.policy import Policy
from kvbudget.errors import UserError


class Peer(Policy):
    """No policy of our caches, and says so."""

    def __init__(self, **options: object) -> None:
        raise UserError(
            "method 'kvpress' is a cell of a study, which kvpress itself measures, and no cache of "
            "ours; use another method, or kvpress"
        )
