"""Words of a text as licenses are compared by: no punctuation, no comment signs, one spelling.

Source: SPDX specification, annex B (license matching guidelines), and spdx/license-list-XML:
equivalentwords.txt.
"""

import re

_REMARK = re.compile(r"^[ \t]*(?:rem|dnl)\b", re.IGNORECASE | re.MULTILINE)
_WORD = re.compile(r"[^\W_]+")
_JOINED = re.compile(r"\bnon[-\s]+(?=[a-z])")
_SAME = {
    "acknowledgment": "acknowledgement",
    "analogue": "analog",
    "analyse": "analyze",
    "artefact": "artifact",
    "authorisation": "authorization",
    "authorised": "authorized",
    "cancelled": "canceled",
    "centre": "center",
    "favour": "favor",
    "favourite": "favorite",
    "fulfil": "fulfill",
    "fulfilment": "fulfillment",
    "https": "http",
    "initialise": "initialize",
    "judgement": "judgment",
    "labelling": "labeling",
    "labour": "labor",
    "licence": "license",
    "licenced": "licensed",
    "licences": "licenses",
    "maximise": "maximize",
    "modelled": "modeled",
    "modelling": "modeling",
    "offence": "offense",
    "optimise": "optimize",
    "organisation": "organization",
    "organise": "organize",
    "practise": "practice",
    "programme": "program",
    "realise": "realize",
    "recognise": "recognize",
    "signalling": "signaling",
    "utilisation": "utilization",
    "whilst": "while",
    "wilful": "willful",
}


def words_of(text: str) -> list[str]:
    """The words in lower case, American spelling."""
    text = _REMARK.sub(" ", text).lower().replace("copyright owner", "copyright holder")
    return [_SAME.get(word, word) for word in _WORD.findall(_JOINED.sub("non", text))]
