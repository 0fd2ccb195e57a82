"""Units of answers: what is dropped where only one side has it, and compared where both have."""

from __future__ import annotations

import re

# Every name of a unit by the one that it is compared by.
NAMES = {
    "millimeter": "mm millimeter millimetre", "centimeter": "cm centimeter centimetre",
    "meter": "m meter metre", "kilometer": "km kilometer kilometre", "inch": "in inch inches",
    "foot": "ft foot feet", "yard": "yd yard", "mile": "mi mile", "gram": "g gram", "kilogram": "kg kilogram",
    "milligram": "mg milligram", "pound": "lb lbs pound", "ounce": "oz ounce", "ton": "ton tonne",
    "second": "s sec second", "minute": "min minute", "hour": "h hr hour", "day": "day", "week": "week",
    "month": "month", "year": "yr year", "liter": "L l liter litre", "milliliter": "mL ml milliliter millilitre",
    "gallon": "gal gallon", "radian": "rad radian", "degree": "deg degree", "mph": "mph", "kph": "kph",
    "dollar": "dollar USD US$", "cent": "cent ¢", "euro": "euro EUR €", "sterling": "GBP £ quid",
    "yen": "yen JPY ¥", "yuan": "yuan CNY RMB", "rupee": "rupee INR ₹ Rs Rs.", "": "unit",
    "newton": "N newton", "joule": "J joule", "watt": "W watt", "volt": "V volt", "kelvin": "K kelvin",
    "hertz": "Hz hertz", "pascal": "Pa pascal", "celsius": "celsius", "fahrenheit": "fahrenheit",
}  # fmt: skip
UNITS = {name: unit for unit, names in NAMES.items() for name in names.split()}
UNITS |= {f"{name}s": unit for name, unit in list(UNITS.items()) if len(name) > 2 and name.isalpha()}
ALONE = "mgsh"  # single letters that are units in plain text, after a number and a space
LONG = sorted((re.escape(name) for name in UNITS if len(name) > 1 and name.isalpha()), key=len, reverse=True)
SINGLE = "".join(sorted(name for name in UNITS if len(name) == 1 and name.isalpha()))
POWER = r"(?:\s*\^\s*\{?\s*([23])\s*\}?)?"
ONE = rf"(?:(square|sq\.?|cubic|cu\.?)\s+)?({'|'.join(LONG)}|[{SINGLE}])(?![A-Za-z])\.?{POWER}"
AT_END = re.compile(rf"(?<![A-Za-z\\])\s*{ONE}(?:\s*(?:/|per|a|an)\s*{ONE})?[\s}}.]*$", re.IGNORECASE)
FONT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
MEASURED = re.compile(r".*(?:[\d)}\]%]|\\[A-Za-z]+|(?<![A-Za-z])[A-Za-z])\s*$", re.DOTALL)
CURRENCY = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<before>US\$|€|£|¥|₹|Rs\.?|USD|EUR|GBP|JPY|INR|\\pounds|\\euro)\s*(?P<value>[+-]?\d[\d,.]*)"
    r"|(?P<number>[+-]?\d[\d,.]*)\s*(?P<after>€|£|¥|₹|¢)"
)
DOLLARS = re.compile(r"\s*[+-]?\s*(?:\\\$|\$)\s*[+-]?\s*\d[\d,.{}\\!]*\s*")
COMMANDS = {"\\pounds": "sterling", "\\euro": "euro"}


def split_unit(text: str) -> tuple[str, str | None]:
    """An answer without its unit, and the unit's name; None where it has no known one.

    "units" is a unit that is none in particular. What stands in a font's command may be a single letter.
    """
    if DOLLARS.fullmatch(text):
        return text, "dollar"
    if money := CURRENCY.fullmatch(FONT.sub(r"\1", text).strip()):
        sign = money["before"] or money["after"]
        unit = COMMANDS.get(sign) or UNITS.get(sign)
        return (money["sign"] or "") + money["value"] if money["value"] else money["number"], unit
    plain = FONT.sub(r" \1 ", text)
    found = AT_END.search(plain)
    if found is None or not MEASURED.fullmatch(value := plain[: found.start()]):
        return text, None
    marked = FONT.search(text) is not None
    last = value.rstrip()[-1:]
    if not marked:
        name = found[2]
        single = len(name) == 1 and found[5] is None
        if last.isalpha() and not re.search(r"\\[A-Za-z]+\s*$", value):
            return text, None
        if single and not (name in ALONE and plain[: found.start(2)][-1:].isspace() and last.isdigit()):
            return text, None
    names = [_name(found[1], found[2], found[3])]
    if found[5]:
        names.append(_name(found[4], found[5], found[6]))
    if None in names:
        return text, None
    name = "/".join(str(one) for one in names)
    name = {"mile/hour": "mph", "kilometer/hour": "kph"}.get(name, name)
    return value.strip(), name if name.strip("^23") else None


def _name(prefix: str | None, name: str, power: str | None) -> str | None:
    unit = UNITS.get(name, UNITS.get(name.lower()) if len(name) > 1 else None)
    if unit is None:
        return None
    if prefix:
        power = "2" if prefix.lower().startswith("sq") else "3"
    return f"{unit}^{power}" if power and unit else unit
