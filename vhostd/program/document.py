"""What is said of a JSON document that is not as it should be."""

from pydantic import ValidationError


def first_fault(error: ValidationError) -> str:
    """The first of what is wrong, in a line: where, and what."""
    first = error.errors()[0]
    place = ".".join(str(each) for each in first["loc"])
    what = first["msg"].removeprefix("Value error, ")
    return f"{place}: {what}" if place else what
