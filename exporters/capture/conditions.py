"""What torch says of the sizes for which code holds, in words for the one who wrote it, and what to write instead."""

import re

__all__ = ["condition_of", "without_the_size"]

_ALIKE = re.compile(r"The values of (\w+) = .* and (\w+) = .* must always be equal")
"""torch's words for two dimensions that have to be one."""


def without_the_size(text: str, rows: bool) -> str:
    """What to do about a size that the code fixes; ``rows``, if it is only their number."""
    if _ALIKE.search(text):
        return (
            "give both one name if they always are, an --example in which they have different sizes if the code only "
            "compares them, or write it so that they need not be"
        )
    if rows:
        return "write it without that size, for all rows at once, as layers take them, and choose with torch.where"
    if padded := re.search(r"% (\d+)\)+ % \1\)+ == 0", text):
        return (
            f"what is padded to a multiple of {padded[1]} is told apart by x.reshape(rows, -1, {padded[1]}, features) "
            f"without that condition, which unflatten(1, (-1, {padded[1]})) asks for again"
        )
    if re.search(r"% \d+\)* [!=]= 0", text):
        return (
            "do it for every size, as F.pad(x, (0, -n % 16)) does, which adds nothing where nothing is missing, or "
            "declare the dimension as a number and bring the inputs to it"
        )
    if re.search(r" != .*[a-z]", condition_of(text)):
        return (
            "a part that may be all of a tensor lies in memory in two ways: take it as x[:, :n].contiguous(), or "
            "declare the dimension as a number and bring the inputs to it"
        )
    return (
        "write it without that size (math.floor(n / 2) for int(n / 2)), or declare the dimension as a number and bring "
        "the inputs to it"
    )


def condition_of(text: str) -> str:
    """What torch found of a dimension: the sizes for which the code holds, or that it holds for one."""
    alike = _ALIKE.search(text)
    if alike is not None:
        return f"its code works only where {alike[2]} and {alike[1]} are the same"
    guard = re.search(r"the generated guard (.*?)\.?(?:Specializations unexpectedly|$)", text, re.MULTILINE)
    if guard is not None:
        return f"its code works only where {guard[1]}"
    constant = re.search(r"specialized it to be a constant \((\d+)\)", text)
    if constant is not None:
        return (
            f"its code makes the constant {constant[1]} of it, as range(n), int(n) and float(n) do with a size n "
            "(use n and n * 1.0), log(n) imported by name (use math.log(n)), and sqrt(n) imported by name (use "
            "math.sqrt(n))"
        )
    return next((line.strip(" -") for line in text.splitlines() if "specialized" in line), text.splitlines()[0])
