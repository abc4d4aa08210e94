"""What deploy mode asks of a layer; see :func:`cyclemlp_mm.models.to_deploy`."""


class Foldable:
    """A module that knows a form with less to compute for inference."""

    def fold(self) -> None:
        """Take that form, in place; a second call changes nothing."""
        raise NotImplementedError
