"""The formats of strings that are regular, as languages. Others are annotations, as draft 2020-12 has it.

Each language has only strings that the format allows; some leave out rare ones (leap seconds, comments, quoted local parts).
"""

from __future__ import annotations

from radixlm.grammar.schema.languages import Between, Language, Pattern, both, negate

_DAY = r"(?:0[1-9]|1[0-9]|2[0-8])"
_LEAP = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DATE = rf"(?:[0-9]{{4}}-(?:(?:0[1-9]|1[0-2])-{_DAY}|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)|{_LEAP}-02-29)"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
_GROUP = "[0-9A-Fa-f]{1,4}"
_IPV6 = "|".join(
    [f"(?:{_GROUP}:){{7}}(?:{_GROUP}|:)", f"(?:(?:{_GROUP}:){{6}}|::(?:{_GROUP}:){{0,5}}){_IPV4}"]
    + [f"{_GROUP}(?::{_GROUP}){{0,{before - 1}}}::(?:{_GROUP}:){{0,{5 - before}}}{_IPV4}" for before in range(1, 6)]
    + [
        f"(?:{_GROUP}(?::{_GROUP}){{0,{before - 1}}})?::(?:(?:{_GROUP}:){{0,{6 - before}}}{_GROUP})?"
        if before
        else f"::(?:(?:{_GROUP}:){{0,6}}{_GROUP})?"
        for before in range(7)
    ]
)
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_SHORT_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,28}[A-Za-z0-9])?"
_HOST = "|".join(
    rf"{label}(?:\.{label}){{0,{more}}}" for label, more in ((_LABEL, 2), (_SHORT_LABEL, 7))
)  # 253 at most
_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_NAME_CHAR = r"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})"
_FIRST_CHAR = rf"(?:{_NAME_CHAR}|@)"  # of a path that could be taken for a scheme
_URI_CHAR = rf"(?:{_NAME_CHAR}|[:@])"
_PATH = rf"(?:/{_URI_CHAR}*)*"
_AUTHORITY = rf"//(?:(?:{_NAME_CHAR}|:)*@)?(?:{_NAME_CHAR}*|\[(?:{_IPV6})\])(?::[0-9]*)?{_PATH}"
_TAIL = rf"(?:\?(?:{_URI_CHAR}|[/?])*)?(?:#(?:{_URI_CHAR}|[/?])*)?"
_SCHEME = "[A-Za-z][A-Za-z0-9+.-]*"
_URI = f"{_SCHEME}:(?:{_AUTHORITY}|/?{_URI_CHAR}+{_PATH}|/)?"
_TIMES = "T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_DATES = "(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"
_POINTER = "(?:/(?:[^~/]|~[01])*)*"

_OUTER = {
    "time": "[0-9]{2}:[0-9]{2}:[0-9]{2}[^]*",
    "date-time": "[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][^]*",
    "email": "[^]*@[^]*",
    "hostname": "[A-Za-z0-9.-]*",
}
_HYPHENS = Pattern(r"(?:^|\.)..--")  # reserved for encoded names, of which not all are names
FORMATS: dict[str, Language] = {
    name: Between(regex, _OUTER[name]) if name in _OUTER else Pattern(regex, whole=True)
    for name, regex in {
        "date": _DATE,
        "time": _TIME,
        "date-time": f"{_DATE}[Tt]{_TIME}",
        "duration": f"P(?:{_DATES}(?:{_TIMES})?|{_TIMES}|[0-9]+W)",
        "email": rf"{_ATOM}(?:\.{_ATOM})*@(?:{_HOST})",
        "hostname": _HOST,
        "ipv4": _IPV4,
        "ipv6": _IPV6,
        "uuid": "[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}",
        "uri": f"{_URI}{_TAIL}",
        "uri-reference": f"(?:{_URI}|{_AUTHORITY}|/(?:{_URI_CHAR}+{_PATH})?|{_FIRST_CHAR}+{_PATH})?{_TAIL}",
        "json-pointer": _POINTER,
        "relative-json-pointer": f"(?:0|[1-9][0-9]*)(?:#|{_POINTER})",
    }.items()
}
FORMATS["hostname"] = both(FORMATS["hostname"], negate(_HYPHENS))
