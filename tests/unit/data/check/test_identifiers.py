"""The screen for identifiers: forms of five languages, digits of any script, and what is no identifier."""

from __future__ import annotations

import pytest

from bench.planted import IDENTIFIERS
from medsft.core.data.check.identifiers import identifiers
from medsft.core.data.check.words import words_of


def kinds_in(text: str) -> set[str]:
    return set(identifiers(text, words_of(text)))


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in IDENTIFIERS.items() for text in texts])
def test_planted_forms_are_found(kind: str, text: str) -> None:
    assert kind in kinds_in(f"The visit was short. {text} Nothing else was noted.")


@pytest.mark.parametrize("zero", ["0", "٠", "۰", "०", "০", "０", "๐", "߀"])
def test_digits_of_any_script(zero: str) -> None:
    digits = {str(n): chr(ord(zero) + n) for n in range(10)}
    for kind, text in {
        "phone": "Phone 617-555-0143.",
        "record_number": "MRN: 4829137",
        "social_security": "219-09-9999",
        "date": "on 14.03.2019",
        "birth_date": "born 1951-03-14",
        "age": "aged 92 years old",
    }.items():
        assert kind in kinds_in("".join(digits.get(sign, sign) for sign in text)), kind


@pytest.mark.parametrize(
    "text",
    [
        "Blood pressure was 120/80 mmHg and the heart rate 72.",
        "The odds ratio was 1.24 (95% CI 1.02-1.51; P=0.031).",
        "In 2014, 1,099 women aged 50 and older were recruited.",
        "Doses of 5-10 mg/kg were given 3 times a day for 14 days.",
        "Patients aged 18 to 65 years were included between 1998 and 2003.",
        "The Patient Health Questionnaire (PHQ-9) was used in outpatient care.",
        "ICD-10 code E11.9 and ATC code A10BA02 were recorded.",
        "A dose of 90 mg was given; 90 days later 95 patients were alive.",
        "It may 10 times exceed the limit; march 5 steps.",
        "See Figure 3.2.1 and section 4.1.2 of the protocol.",
        "The ratio of 12345 cells to 67890 platelets per ml.",
        "Der Patient wurde nach 14 Tagen entlassen; die Dosis betrug 2,5 mg.",
        "Le patient a été opéré en 2014 via une incision de 5 cm.",
        "M. tuberculosis and E. coli grew in 24 h.",
        "Version 2.10.3 of the software, n = 1 234 567.",
        "The cut-off was 10.5 ng/ml at 3/4 of the visits.",
    ],
)
def test_medical_text_is_not_taken_for_identifiers(text: str) -> None:
    assert kinds_in(text) == set()
