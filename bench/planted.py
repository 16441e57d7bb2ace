"""Rows with faults of every kind that `medsft check` looks for, and where they are: what is found, what is reported wrongly.

    made_rows(count) or rows of a file --plant--> Planted (lines, validation rows, benchmark rows, kind -> line numbers)

All names, numbers and addresses are made up.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

_DESIGNS = (
    "a randomized trial", "a retrospective cohort",
    "a prospective survey", "an observational series", "a case-control comparison",
    "a cross-sectional audit", "a pilot experiment", "a registry analysis",
)  # fmt: skip
_GROUPS = (
    "elderly inpatients", "school children", "pregnant women",
    "liver recipients", "stroke survivors", "young athletes", "dialysis outpatients",
    "premature infants", "shift workers", "migraine sufferers", "trauma victims", "veterans",
)  # fmt: skip
_TOPICS = (
    "chronic anemia", "knee osteoarthritis", "acute pancreatitis",
    "atrial fibrillation", "bacterial meningitis", "gestational diabetes",
    "macular degeneration", "pulmonary embolism", "renal colic",
    "septic shock", "spinal stenosis", "ulcerative colitis", "bladder cancer",
    "childhood asthma", "hepatic fibrosis", "psoriatic plaques",
)  # fmt: skip
_DRUGS = (
    "oral zinc", "nebulized saline", "early mobilization",
    "laparoscopic repair", "low-dose aspirin", "music therapy", "topical honey",
    "vitamin supplements", "telephone coaching", "intravenous iron",
    "cold compression", "cognitive training", "robotic surgery",
    "prone positioning", "statin withdrawal", "yoga",
)  # fmt: skip
_OUTCOMES = (
    "mortality", "readmission", "wound closure", "sleep quality",
    "pain intensity", "serum ferritin", "hospital costs", "walking distance",
    "relapse", "visual acuity", "infection rates", "blood loss", "adherence", "fatigue", "length of stay", "grip strength",
)  # fmt: skip
_SENTENCES = (
    "We planned {design} among {group} who had {topic}.",
    "Little is known about whether {drug} changes {outcome} once {topic} has begun.",
    "Of {n} {group}, {m} received {drug} while the others went without.",
    "{Outcome} fell from {p} % to {q} % under {drug}.",
    "Neither {outcome} nor {outcome2} differed between arms at {m} weeks.",
    "Regression showed that {drug} predicted {outcome} (odds ratio {r}).",
    "Compared with {drug2}, {drug} gave better {outcome} for {group}.",
    "Assessors measured {outcome} with a scale of {q} points.",
    "Adverse events, mostly {topic2}, occurred in {q} of {n} {group}.",
    "{Group} with {topic2} were excluded before {drug2} began.",
)


def made_rows(count: int, *, seed: int = 0) -> Iterator[dict[str, str]]:
    """Yield rows like those of PubMedQA: an abstract with a question, and a conclusion that ends with a verdict."""
    draw = random.Random(seed)
    for number in range(count):
        abstract = " ".join(_sentence(draw) for _ in range(draw.randint(6, 12)))
        topic, drug, outcome = draw.choice(_TOPICS), draw.choice(_DRUGS), draw.choice(_OUTCOMES)
        question = f"Does {drug} improve {outcome} in {draw.choice(_GROUPS)} with {topic}, study {number}?"
        conclusion = " ".join(_sentence(draw) for _ in range(draw.randint(2, 4)))
        verdict = draw.choice(("yes", "no", "maybe"))
        yield {"prompt": f"Context: {abstract}\nQuestion: {question}", "gold": f"{conclusion}\nThe answer is: {verdict}"}


def _sentence(draw: random.Random) -> str:
    group, outcome = draw.choice(_GROUPS), draw.choice(_OUTCOMES)
    values = {
        "design": draw.choice(_DESIGNS), "group": group, "Group": group.capitalize(), "topic": draw.choice(_TOPICS),
        "topic2": draw.choice(_TOPICS), "drug": draw.choice(_DRUGS), "drug2": draw.choice(_DRUGS), "outcome": outcome,
        "Outcome": outcome.capitalize(), "outcome2": draw.choice(_OUTCOMES), "n": draw.randint(100, 899),
        "m": draw.randint(2, 51),
        "p": draw.randint(40, 89), "q": draw.randint(3, 39), "r": f"{draw.uniform(0.2, 4):.2f}",
    }  # fmt: skip
    return draw.choice(_SENTENCES).format(**values)


REFUSALS = (
    "As an AI language model, I cannot give medical advice. Please see a doctor.",
    "I'm sorry, but I can't help with that request.",
    "I cannot provide a diagnosis based on this information.",
    "Unfortunately, I am unable to answer questions about individual patients.",
    "Als KI-Sprachmodell kann ich dazu keine Auskunft geben.",
    "Es tut mir leid, aber ich kann diese Frage nicht beantworten.",
    "En tant que modèle de langage, je ne peux pas donner d'avis médical.",
    "Je suis désolé, mais je ne peux pas répondre à cette question.",
    "Como modelo de lenguaje, no puedo ofrecer consejos médicos.",
    "Lo siento, pero no puedo ayudar con eso.",
    "In quanto intelligenza artificiale non posso fornire pareri medici.",
    "Mi dispiace, ma non posso rispondere a questa domanda.",
    "作为一个人工智能语言模型,我无法提供医疗建议。",
    "I am just an AI, so a physician should decide about this treatment.",
)
IDENTIFIERS: Mapping[str, tuple[str, ...]] = {
    "name": (
        "Mr. Quillfeather was seen in clinic.",
        "Dr. Anna Brandwein referred the case.", "The patient John Quillfeather was admitted.",
        "Herr Zwiebelhuber klagte über Schmerzen.",
        "Patientin Gerda Zwiebelhuber wurde aufgenommen.", "Mme Delacroissant a été opérée.",
        "La paciente María Zapatero ingresó ayer.",
        "La Sra. Zapatero fue operada.", "Il paziente Luca Bevilacqua è stato dimesso.",
        "La signora Bevilacqua riferisce dolore.", "Patient name: Abigail Quillfeather.",
    ),
    "birth_date": (
        "DOB: 03/14/1951.", "Date of birth 1951-03-14.", "She was born on March 14, 1951.", "geb. 14.03.1951 in Ulm.",
        "Geburtsdatum: 14. März 1951.", "née le 14 mars 1951.",
        "Date de naissance : 14/03/1951.", "Fecha de nacimiento: 14/03/1951.",
        "nacido el 14 de marzo de 1951.", "nato il 14 marzo 1951.", "DOB: ٠٣/١٤/١٩٥١.",
    ),
    "date": (
        "Seen on 03/14/2019.", "Admitted 2019-03-14.", "The visit of March 14, 2019 was short.", "Aufnahme am 14.03.2019.",
        "Am 14. März 2019 operiert.", "Vue le 14 mars 2019.", "Consulta el 14 de marzo de 2019.", "Visita del 14 marzo 2019.",
        "Seen on १४/०३/२०१९.", "Enrolled in May 2019.",
    ),
    "phone": (
        "Call (617) 555-0143.", "Phone: 617-555-0143.",
        "Tel. +49 30 5550143.", "Telefon: 030 5550143.", "Tél. : 01 55 55 01 43.",
        "Teléfono: 915 550 143.", "Tel: +39 06 5550143.",
        "Phone: ٦١٧-٥٥٥-٠١٤٣.", "Fax ６１７-５５５-０１４３.", "reached at 617.555.0143",
    ),
    "record_number": (
        "MRN: 00482913.", "MRN 482913-7 was opened.",
        "Medical record number 4829137.", "Case no. 4829137.", "Patient ID: A482913.",
        "Fallnummer 4829137.", "Patienten-Nr. 4829137.", "Dossier n° 4829137.", "Número de historia clínica 4829137.",
        "Cartella clinica n. 4829137.", "MRN: ４８２９１３７.",
    ),
    "social_security": (
        "SSN 219-09-9999.", "Social security number: 219-09-9998.",
        "AHV 756.9217.0769.85.", "Codice fiscale: BVLLCU51C14H501X.",
        "Sozialversicherungsnummer 65 140351 Z 002.", "SSN ٢١٩-٠٩-٩٩٩٩.", "DNI 48291375K.",
    ),
    "mail": ("Write to a.quillfeather@example.org.", "Mail: gerda@klinik.example.de", "contact: luca.b+test@example.it"),
    "address": (
        "Lives at 42 Maple Street.", "Home: 1207 North Orchard Avenue.",
        "Wohnhaft Lindenstraße 12.", "wohnt am Münsterplatz 3a.",
        "Domicilié 18 rue de la Paix.", "Vive en la Calle Mayor 25.", "Residente in Via Garibaldi 7.", "12, avenue des Ternes",
    ),
    "zip_code": ("Boston, MA 02118.", "ZIP code: 02118.", "PLZ 89073.", "Code postal 75011.",
                 "Código postal: 28013.", "D-89073 Ulm."),
    "url": ("See https://records.example.org/p/4829.", "www.example-clinic.org/notes has more."),
    "ip_address": ("Logged from 192.168.14.27.", "Client 10.0.3.254 sent it."),
    "age": (
        "A 94-year-old woman fell.", "The man, aged 92, fell.", "Eine 93-jährige Frau stürzte.", "Une femme âgée de 95 ans.",
        "Un hombre de 91 años.", "Una donna di 96 anni.", "He is 101 years old.",
    ),
}  # fmt: skip
_FOREIGN = (
    (
        "Bei Patienten mit chronischer Herzschwäche wurde untersucht, ob ein tägliches Training die Belastbarkeit verbessert.",
        "Die Beobachtung dauerte ein halbes Jahr, und beide Gruppen waren bei Beginn vergleichbar.",
        "Nach der Behandlung war die Gehstrecke in der Trainingsgruppe deutlich länger als in der Vergleichsgruppe.",
        "Schwere Nebenwirkungen wurden in keiner der beiden Gruppen festgestellt.",
    ),
    (
        "Cette étude évalue l'effet d'un programme d'exercice chez des malades souffrant d'insuffisance cardiaque.",
        "Les deux groupes étaient comparables au début et le suivi a duré six mois.",
        "À la fin du traitement, la distance de marche était nettement plus longue dans le groupe entraîné.",
        "Aucun effet indésirable grave n'a été observé pendant toute la période.",
    ),
    (
        "Este estudio evalúa el efecto de un programa de ejercicio en enfermos con insuficiencia cardíaca.",
        "Los dos grupos eran comparables al inicio y el seguimiento duró seis meses.",
        "Al final del tratamiento, la distancia recorrida fue claramente mayor en el grupo entrenado.",
        "No se observaron efectos adversos graves durante todo el periodo.",
    ),
    (
        "Questo studio valuta l'effetto di un programma di esercizio nei malati con insufficienza cardiaca.",
        "I due gruppi erano confrontabili all'inizio e l'osservazione è durata sei mesi.",
        "Alla fine del trattamento la distanza percorsa era nettamente maggiore nel gruppo allenato.",
        "Non sono stati osservati effetti indesiderati gravi durante tutto il periodo.",
    ),
)


@dataclass(slots=True)
class Planted:
    """Rows with faults."""

    lines: list[bytes]
    val: list[dict[str, str]] = field(default_factory=list)
    against: list[dict[str, str]] = field(default_factory=list)
    faults: dict[str, set[int]] = field(default_factory=dict)
    """Name of a kind -> numbers of its lines, from 1"""
    side_effects: dict[str, set[int]] = field(default_factory=dict)
    """The same for what follows from another fault: rightly reported, but not planted as such"""

    def write(self, folder: Path) -> tuple[Path, Path, Path]:
        """Write the rows, those to validate on and those of a benchmark, and return their files."""
        paths = folder / "rows.jsonl", folder / "val.jsonl", folder / "benchmark.jsonl"
        paths[0].write_bytes(b"".join(self.lines))
        for path, rows in zip(paths[1:], (self.val, self.against), strict=True):
            path.write_bytes(b"".join(map(_line, rows)))
        return paths


def plant(rows: Sequence[Mapping[str, str]], *, each: int = 20, seed: int = 0) -> Planted:
    """Plant `each` faults of every kind into a copy of some rows (`prompt`, `gold`), of which 25 times as many are needed."""
    draw = random.Random(seed)
    kept = [dict(row) for row in rows]
    free = list(range(len(kept)))
    draw.shuffle(free)
    planted = Planted([])
    faults = planted.faults
    raw: dict[int, bytes] = {}

    def change(kind: str, make: Callable[[dict[str, str], int], None]) -> None:
        for turn in range(each):
            number = free.pop()
            make(kept[number], turn)
            faults.setdefault(kind, set()).add(number + 1)

    def copies(kind: str, make: Callable[[dict[str, str], int], dict[str, str]], *, both: bool = False) -> None:
        for turn in range(each):
            number = free.pop()
            kept.append(make(kept[number], turn))
            faults.setdefault(kind, set()).update({len(kept), number + 1} if both else {len(kept)})

    change("refusing", lambda row, turn: row.update(gold=REFUSALS[turn % len(REFUSALS)]))
    change("cut_off", lambda row, _: row.update(gold=_cut(row["gold"], draw)))
    change("length", lambda row, turn: row.update(gold="Yes." if turn % 2 else (row["gold"] + "\n") * 40))
    change("empty", lambda row, turn: row.update(gold=("", "  \n", "N/A", "-", "...")[turn % 5]))
    change("language", lambda row, turn: row.update(_foreign(turn, draw)))
    for kind, texts in IDENTIFIERS.items():
        change(f"identifier_{kind}", partial(_insert, texts))
    change("in_val", lambda row, turn: planted.val.append(_shortened(row) if turn % 2 else dict(row)))
    change("in_against", lambda row, _: planted.against.append({"passage": _shortened(row)["prompt"], "label": "x"}))
    for _ in range(each):
        number = free.pop()
        raw[number] = draw.choice(
            (b'{"prompt": "torn\n', b'{"question": "other keys", "answer": "x"}\n', b'{"prompt": 5, "gold": "x"}\n')
        )
        faults.setdefault("unusable", set()).add(number + 1)
    copies("repeated", lambda row, _: dict(row))
    copies("near_repeated", lambda row, _: {**row, "prompt": _reworded(row["prompt"], 3, draw)})
    before = len(kept)
    copies(
        "contradicting",
        lambda row, _: {"prompt": row["prompt"].upper().replace(" ", "  "), "gold": _other(row["gold"])},
        both=True,
    )
    planted.side_effects["near_repeated"] = set(range(before + 1, len(kept) + 1)) | faults["language"]
    planted.side_effects["length"] = faults["refusing"] | faults["cut_off"] | faults["empty"] | faults["language"]
    planted.side_effects["cut_off"] = faults["refusing"] | faults["language"] | faults["length"] | faults["empty"]
    planted.side_effects["language"] = faults["refusing"]
    planted.side_effects["identifier_date"] = faults["identifier_birth_date"]
    planted.side_effects["identifier_phone"] = faults["identifier_social_security"]
    planted.side_effects["identifier_zip_code"] = faults["identifier_address"]
    planted.lines = [raw.get(number, _line(row)) for number, row in enumerate(kept)]
    return planted


def _line(row: Mapping[str, str]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _cut(answer: str, draw: random.Random) -> str:
    words = answer.split(" ")
    return " ".join(words[: draw.randint(max(5, len(words) // 3), max(6, 2 * len(words) // 3))]).rstrip(".")


def _insert(texts: Sequence[str], row: dict[str, str], turn: int) -> None:
    text = texts[turn % len(texts)]
    head, found, rest = row["prompt"].partition(". ")
    row["prompt"] = f"{head}. {text} {rest}" if found else f"{head} {text}"


def _shortened(row: Mapping[str, str]) -> dict[str, str]:
    words = row["prompt"].split(" ")
    return {
        "prompt": " ".join(words[len(words) // 4 :]),
        "gold": "Another conclusion was drawn from this. The answer is: maybe",
    }


def _reworded(text: str, count: int, draw: random.Random) -> str:
    words = text.split(" ")
    for place in draw.sample(range(len(words)), count):
        words[place] = "otherwise"
    return " ".join(words)


def _other(answer: str) -> str:
    head, found, verdict = answer.rpartition("The answer is: ")
    return f"{head}{found}{'no' if verdict.strip() == 'yes' else 'yes'}" if found else f"On the contrary. {answer}"


def _foreign(turn: int, draw: random.Random) -> dict[str, str]:
    sentences = list(_FOREIGN[turn % len(_FOREIGN)])
    draw.shuffle(sentences)
    return {"prompt": f"{sentences[0]} {sentences[1]} ({turn})", "gold": f"{sentences[2]} {sentences[3]}"}
