"""The simplified clinical rules behind the demonstration's questions. Not medical advice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Scale:
    """A measurement and its bands: each begins at its number and ends below the next one's."""

    name: str
    starts: tuple[tuple[str, str], ...]
    """(first value, label), ascending; the decimals of the first value are those of all."""
    last: str
    wordings: tuple[str, ...]

    def bands(self) -> list[tuple[str, list[str]]]:
        """Return (label, its values as text) for each band."""
        decimals = len(self.starts[0][0].partition(".")[2])
        unit = 10**decimals
        firsts = [int(Fraction(start) * unit) for start, _ in self.starts]
        ends = [*firsts[1:], int(Fraction(self.last) * unit) + 1]
        return [
            (label, [f"{value / unit:.{decimals}f}" for value in range(first, end)])
            for (_, label), first, end in zip(self.starts, firsts, ends, strict=True)
        ]


SCALES = (
    Scale(
        "heart rate",
        (("32", "bradycardia"), ("60", "normal heart rate"), ("101", "tachycardia")),
        "178",
        (
            "How do you call a resting heart rate of {value} per minute?",
            "{person} has a pulse of {value} at rest. Classify it.",
            "Heart rate {value}/min, adult at rest. Which class?",
        ),
    ),
    Scale(
        "respiratory rate",
        (("5", "bradypnoea"), ("12", "normal breathing rate"), ("21", "tachypnoea")),
        "44",
        (
            "{person} takes {value} breaths per minute. Classify it.",
            "Respiratory rate {value}/min. What is it called?",
            "An adult breathes {value} times a minute. Which class of respiratory rate?",
        ),
    ),
    Scale(
        "temperature",
        (("31.0", "hypothermia"), ("35.0", "normal temperature"), ("38.0", "fever"), ("39.5", "high fever")),
        "41.5",
        (
            "Body temperature {value} °C. Classify it.",
            "{person} has a temperature of {value} °C. Which class is it?",
            "The thermometer shows {value} °C. What is this called?",
        ),
    ),
    Scale(
        "BMI",
        (("14.0", "underweight"), ("18.5", "normal weight"), ("25.0", "overweight"), ("30.0", "obesity")),
        "44.0",
        (
            "{person} has a body mass index of {value}. Which weight class?",
            "BMI {value} kg/m2: which class?",
            "Classify a BMI of {value}.",
        ),
    ),
    Scale(
        "kidney function",
        (("4", "G5"), ("15", "G4"), ("30", "G3b"), ("45", "G3a"), ("60", "G2"), ("90", "G1")),
        "125",
        (
            "An eGFR of {value} mL/min. Which stage of kidney function?",
            "{person} has an eGFR of {value}. Name the kidney stage.",
            "Which G stage is an eGFR of {value}?",
        ),
    ),
    Scale(
        "oxygen saturation",
        (("70", "severe hypoxaemia"), ("86", "moderate hypoxaemia"), ("91", "mild hypoxaemia"), ("95", "normal saturation")),
        "100",
        (
            "Oxygen saturation {value}% on room air. Classify it.",
            "{person} has an SpO2 of {value}%. Which class?",
            "{person} is at {value}% on the pulse oximeter. Which class?",
        ),
    ),
    Scale(
        "potassium",
        (("2.0", "hypokalaemia"), ("3.5", "normal potassium"), ("5.1", "hyperkalaemia")),
        "7.5",
        (
            "Serum potassium {value} mmol/L. Classify it.",
            "{person} has a potassium of {value} mmol/L. What is this called?",
            "K+ {value} mmol/L: which class?",
        ),
    ),
    Scale(
        "Glasgow coma scale",
        (("3", "severe head injury"), ("9", "moderate head injury"), ("13", "mild head injury")),
        "15",
        (
            "{person} fell on the head and has a GCS of {value}. How severe is the injury?",
            "Head trauma in {person}, Glasgow coma scale {value}. Grade the injury.",
            "GCS {value} after a head injury in {person}: which severity?",
        ),
    ),
)

BLOOD_PRESSURES: tuple[tuple[str, Sequence[int], Sequence[int]], ...] = (
    ("normal blood pressure", range(92, 120), range(55, 80)),
    ("elevated blood pressure", range(120, 130), range(60, 80)),
    ("hypertension stage 1", range(130, 140), range(62, 90)),
    ("hypertension stage 2", range(140, 196), range(65, 118)),
)
"""(category, systolic values, diastolic values) in mmHg."""
BLOOD_PRESSURE_WORDINGS = (
    "Blood pressure {value} mmHg. Which category?",
    "{person} has a blood pressure of {value}. Classify it.",
    "Classify a blood pressure of {value} mmHg.",
)


@dataclass(frozen=True, slots=True)
class Findings:
    """Classes that are told from what is found."""

    name: str
    classes: Mapping[str, tuple[str, ...]]
    """Class -> its findings."""
    wordings: tuple[str, ...]


FINDINGS = (
    Findings(
        "triage",
        {
            "red": ("no breathing after opening the airway", "an ongoing seizure", "bleeding that spurts from the thigh"),
            "orange": ("chest pain with sweating", "sudden weakness of one arm", "confusion with a stiff neck"),
            "yellow": ("repeated vomiting for a day", "a broken forearm without a wound", "an asthma attack that is easing"),
            "green": ("a sprained ankle", "a sore throat without fever", "a small cut that has stopped bleeding"),
        },
        (
            "{person} arrives with {finding}. Which triage colour?",
            "Triage colour for {person} with {finding}?",
            "Emergency room: {person}, {finding}. Choose the triage colour.",
            "{person} shows {finding}. Name the triage colour.",
        ),
    ),
    Findings(
        "heart failure",
        {
            "NYHA I": ("no symptoms with any activity", "climbing stairs without any complaint"),
            "NYHA II": ("slight breathlessness on ordinary activity", "mild fatigue when climbing two floors"),
            "NYHA III": (
                "breathlessness on the slightest activity but none at rest",
                "fatigue when getting dressed, none at rest",
            ),
            "NYHA IV": ("breathlessness at rest", "symptoms even when lying still in bed"),
        },
        (
            "Heart failure in {person}, {finding}. Which NYHA class?",
            "{person} with heart failure reports {finding}. Name the NYHA class.",
            "NYHA class of {person} with {finding}?",
        ),
    ),
    Findings(
        "pressure injury",
        {
            "stage 1": ("intact skin with redness that does not blanch",),
            "stage 2": ("a shallow open wound with a pink bed", "an intact blister filled with clear fluid"),
            "stage 3": ("full loss of skin with fat visible in the wound",),
            "stage 4": ("a deep wound with bone visible", "a deep wound with muscle visible"),
        },
        (
            "Pressure injury in {person}: {finding}. Which stage?",
            "{person} has {finding} over the sacrum. Stage the pressure injury.",
            "The heel of {person} shows {finding}. Which stage of pressure injury?",
            "Name the stage of the pressure injury of {person}: {finding}.",
        ),
    ),
)

ABBREVIATIONS = {
    "BP": "blood pressure",
    "HR": "heart rate",
    "RR": "respiratory rate",
    "ECG": "electrocardiogram",
    "MI": "myocardial infarction",
    "CHF": "congestive heart failure",
    "COPD": "chronic obstructive pulmonary disease",
    "DVT": "deep vein thrombosis",
    "PE": "pulmonary embolism",
    "UTI": "urinary tract infection",
    "CBC": "complete blood count",
    "CSF": "cerebrospinal fluid",
    "NPO": "nothing by mouth",
    "PRN": "as needed",
    "BID": "twice a day",
    "TID": "three times a day",
    "QID": "four times a day",
    "STAT": "immediately",
    "IV": "intravenous",
    "IM": "intramuscular",
    "TIA": "transient ischaemic attack",
    "AF": "atrial fibrillation",
    "GERD": "gastro-oesophageal reflux disease",
    "ARDS": "acute respiratory distress syndrome",
}
ABBREVIATION_WORDINGS = (
    "What does {short} mean in a medical note?",
    "Write out the medical abbreviation {short}.",
    "The chart says {short}. What is meant?",
    "Expand the abbreviation {short}.",
    "{short} stands for what in a clinic?",
)


@dataclass(frozen=True, slots=True)
class Dose:
    """A dose by body weight."""

    per_kg: str
    drugs: tuple[str, ...]
    lightest: int
    """Whole kilograms."""
    heaviest: int
    answer: Callable[[int], str]


DOSES = (
    Dose("10 mg/kg", ("ibuprofen", "paracetamol"), 4, 40, lambda weight: f"{10 * weight} mg"),
    Dose("0.1 mL/kg", ("adrenaline 1:10,000",), 4, 40, lambda weight: f"{weight / 10:.1f} mL"),
)
DOSE_WORDINGS = (
    "A child of {weight} kg gets {drug} at {per_kg}. What is the dose?",
    "{drug} {per_kg} for a child who weighs {weight} kg: how much?",
    "Weight {weight} kg, {drug} at {per_kg}. Give the dose.",
)
