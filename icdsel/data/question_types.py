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


def types_of(record: Mapping[str, Any]) -> tuple[str, str]:
    """The fields `question_type` and `answer_type` of a record; "" for what is missing or no short text."""
    question, answer = (
        " ".join(value.split()) if isinstance(value, str) and value.isprintable() and len(value) <= LONGEST_TYPE else ""
        for value in (record.get("question_type"), record.get("answer_type"))
    )
    return _KNOWLEDGE.get(question, question), answer
