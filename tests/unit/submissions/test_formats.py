"""The bytes of each format, written by hand."""

import ast
import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from icdsel.errors import SettingsError
from icdsel.records import Example, Prediction
from icdsel.submissions import FORMATS, Answered, formats_named

RED = Example(7, 70, Path("a.jpg"), "What colour?", "red", ("red", "dark red"))
ODD = Example(9, 90, Path("b.jpg"), '=1+1\t"two"\nlines?', "", ())
ANSWERS = [
    Answered(RED, 0, Prediction(7, 2, (3, 5), "rouge", 0.3, prompt_tokens=71, image=70)),
    Answered(ODD, 4, Prediction(9, 2, (5, 3), "-5", image=90)),
]
FAILED = Answered(RED, 0, Prediction(7, "auto", (), error="no memory", image=70))


def content(name: str, answers: list[Answered] = ANSWERS) -> str:
    return FORMATS[name].content(answers).decode()


def test_servers_take_a_list_of_ids_and_answers() -> None:
    assert content("submission") == '[{"question_id": 7, "answer": "rouge"}, {"question_id": 9, "answer": "-5"}]\n'


def test_the_csv_has_a_line_per_query_and_no_formula() -> None:
    assert content("csv") == (
        "question_id,image_id,question,answer,prediction,score,shots,icds,prompt_tokens,error\n"
        '7,70,What colour?,red,rouge,0.3,2,"[3, 5]",71,\n'
        '9,90,"\'=1+1\t""two""\nlines?",,-5,,2,"[5, 3]",,\n'
    )
    assert content("csv", [FAILED]).splitlines()[1] == "7,70,What colour?,red,,,auto,[],,no memory"


def test_the_table_of_vlmevalkit_is_as_pandas_reads_it() -> None:
    assert content("vlmevalkit") == (
        '"index"\t"question"\t"answer"\t"prediction"\n'
        '"7"\t"What colour?"\t"[\'red\', \'dark red\']"\t"rouge"\n'
        '"9"\t"=1+1\t""two""\nlines?"\t""\t"-5"\n'
    )
    [failed] = csv.DictReader(io.StringIO(content("vlmevalkit", [FAILED])), delimiter="\t")
    assert failed["prediction"] == "Failed to obtain answer"


def test_an_answer_is_no_program_for_vlmevalkit() -> None:
    # It evaluates the column `answer` as Python, so this must be a list of texts, whatever these are.
    hostile = replace(RED, answers=("__import__('os').abort()", "']\n["), raw_answers=())
    [line] = csv.DictReader(
        io.StringIO(content("vlmevalkit", [replace(ANSWERS[0], query=hostile)]), newline=""), delimiter="\t"
    )
    assert ast.literal_eval(line["answer"]) == list(hostile.answers)


def test_lmms_eval_gets_the_lines_that_it_logs() -> None:
    scored, unscored = (json.loads(line) for line in content("lmms-eval").splitlines())
    digest = scored.pop("doc_hash")
    assert scored == {
        "doc_id": 0,
        "target": "red",
        "filtered_resps": "rouge",
        "token_counts": [{"input_tokens": 71}],
        "submission": {"question_id": 7, "answer": "rouge"},
        "input": "What colour?",
        "exact_match": 0.3,
        "score": 0.3,
    }
    assert len(digest) == 64 and digest != unscored["doc_hash"]
    assert unscored.keys() == (scored.keys() | {"doc_hash"}) - {"exact_match", "score"}
    assert (unscored["doc_id"], unscored["target"], unscored["token_counts"]) == (4, "", [None])
    other = replace(ANSWERS[0], prediction=replace(ANSWERS[0].prediction, task="exact"))
    assert "exact_match" not in content("lmms-eval", [other])


@pytest.mark.parametrize("name", FORMATS)
def test_text_that_is_not_utf_8_can_be_written(name: str) -> None:
    query = replace(RED, question="a\udc80 — ß")
    answered = Answered(query, 0, replace(ANSWERS[0].prediction, prediction="b\udc80 — ß"))
    assert "b\\udc80 — ß" in content(name, [answered])


@pytest.mark.parametrize("name", FORMATS)
def test_a_failed_call_is_marked_or_leaves_no_file(name: str) -> None:
    if not FORMATS[name].needs_all:
        assert content(name, [FAILED]) != content(name, [replace(FAILED, prediction=Prediction(7, "auto", ()))])


def test_formats_are_named_once_each_and_must_exist() -> None:
    assert [one.name for one in formats_named("csv, submission,csv", [RED])] == ["csv", "submission"]
    with pytest.raises(SettingsError, match=r"did you mean 'csv'\? choose one of submission, csv, lmms-eval, vlmeval"):
        formats_named("submission,cvs", [RED])
    with pytest.raises(SettingsError, match="unknown format ''"):
        formats_named("csv,", [RED])


def test_servers_want_integers_as_ids() -> None:
    queries = [RED, replace(RED, question_id="q9")]
    with pytest.raises(SettingsError, match=r"1 of 2 are texts, such as 'q9'\. Others are: csv, lmms-eval, vlmevalkit"):
        formats_named("csv,submission", queries)
    assert [one.name for one in formats_named("csv,lmms-eval,vlmevalkit", queries)] == [
        "csv",
        "lmms-eval",
        "vlmevalkit",
    ]
