"""The step between two answers, stated once."""


def is_short(earlier: float, later: float, seconds: float) -> bool:
    """Tell whether the step between two answers' elapsed is under `seconds`, either way put."""
    return later - earlier < seconds or later < earlier + seconds
