"""The types that VQA's annotations give a question. They decide nothing: tables split their scores by them."""

from collections.abc import Mapping
from typing import Any

LONGEST_TYPE = 80
"""The maximum length of a type, in characters; a longer one is left out. VQA's have at most about twenty."""

# OK-VQA's annotations number the kinds of knowledge that a question needs. Their list is in the same file.
_KNOWLEDGE = {
    "one": "Vehicles and Transportation",
    "two": "Brands, Companies and Products",
    "three": "Objects, Material and Clothing",
    "four": "Sports and Recreation",
    "five": "Cooking and Food",
    "six": "Geography, History, Language and Culture",
    "seven": "People and Everyday life",
    "eight": "Plants and Animals",
    "nine": "Science and Technology",
    "ten": "Weather and Climate",
    "other": "Other",
}


def types_of(record: Mapping[str, Any]) -> dict[str, str]:
    """The fields `question_type` and `answer_type` of an `Example`; what is missing or no short text is left out."""
    found = {name: record.get(name) for name in ("question_type", "answer_type")}
    types = {
        name: " ".join(value.split())
        for name, value in found.items()
        if isinstance(value, str) and value.isprintable() and len(value) <= LONGEST_TYPE
    }
    if "question_type" in types:
        types["question_type"] = _KNOWLEDGE.get(types["question_type"], types["question_type"])
    return types
