"""Classes that only give numbers their names."""


def numbers(names: type[object]) -> dict[str, int]:
    """The numbers of such a class, by name."""
    return {name: number for name, number in vars(names).items() if name.isupper()}
