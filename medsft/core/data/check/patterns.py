"""The patterns of the screen for identifiers: each with what a text must have for it to be tried."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from medsft.core.data.check.words import words_in

IdentifierKind = Literal[
    "name",
    "birth_date",
    "date",
    "phone",
    "record_number",
    "social_security",
    "mail",
    "address",
    "zip_code",
    "url",
    "ip_address",
    "age",
]


def _always(_: re.Match[str]) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Screen:
    """One pattern, and what a text must have for the pattern to be tried at all."""

    kind: IdentifierKind
    pattern: re.Pattern[str]
    words: frozenset[str] = frozenset()
    """One of these words, in lower case, ..."""
    parts: tuple[bytes, ...] = ()
    """... or one of these strings (UTF-8) in lower case and with 0 for every digit, ..."""
    also: tuple[bytes, ...] = ()
    """... and one of these, where there are any"""
    confirm: Callable[[re.Match[str]], bool] = _always
    """What the pattern cannot say"""

    def concerns(self, shape: bytes, words: frozenset[str]) -> bool:
        """Tell whether the pattern can match a text of this shape that has these of the trigger words."""
        if self.words.isdisjoint(words):
            for part in self.parts:
                if part in shape:
                    break
            else:
                return False
        return not self.also or any(part in shape for part in self.also)


_UPPER, _LOWER = "A-ZÀ-ÖØ-ÞĀĂĄĆČĎĐĒĖĘĚĞĢĪĮİĶŁĻĽŃŅŇŐŒŔŘŚŞŠŢŤŪŮŰŲŹŻŽ", "a-zß-öø-ÿāăąćčďđēėęěğģīįıķłļľńņňőœŕřśşšţťūůűųźżž"
_WORD = f"[{_UPPER}][{_LOWER}]+(?:['-][{_UPPER}][{_LOWER}]+)*"
_NAME = f"(?:[{_UPPER}]\\.\\s?)?(?:(?:van|von|de|del|della|di|da|la|le|du|zu|den|der|Mc|Mac|O'|D')\\s?)*{_WORD}"

_TITLES = (
    r"(?:(?:Mrs?|Ms|Dra?|[Pp]rof|Hr|Mme|Mlle|Sra?|Srta|[Ss]ig|[Ss]ig\.ra|[Dd]ott|[Dd]ott\.ssa)\b\.?|M\.(?=\s+[^\W\d_]{2})|"
    r"(?:Miss|[Pp]rofessor|[Dd]octor|Herrn?|Frau|Fräulein|[Mm]onsieur|[Mm]adame|Mademoiselle|[Dd]octeur|[Ss]eñora?|[Dd]oña|[Dd]on|"
    r"[Ss]ignora?|[Dd]ottore|[Dd]ottoressa)\b)"
)
_AFTER_PATIENT = r"(?:in|e)?(?:'s\s+name)?(?:\s*:|\s+(?:is|named|called|name|Name|ist)\b:?|,)?\s+"
_FULL_NAME = rf"{_WORD}(?:\s+[{_UPPER}]\.)?\s+{_NAME}"
_TITLE_WORDS = words_in(
    "health safety care outcomes outcome questionnaire reported satisfaction global activation education centered "
    "centred self "
    "management assessment rights experience survey index scale score quality life protection affordable advocacy "
    "act data group "
    "groups population populations selection characteristics information demographics presentation history and with "
    "who was were is "
    "the in of for on at to by had has have underwent received material materials methods setting settings results "
    "conclusion "
    "conclusions discussion background objective objectives design patients patient records record registry "
    "database access "
    "participants clinical medical hospital test tests study trial system systems controlled analgesia impression "
    "determine "
    "assess analysis determinants perception perspectives preferences preference reports report flow numbers number "
    "age sex "
    "dr mr mrs ms und mit der die das des den dem wurde wird ist hat et avec le la les des du un une est con y los "
    "las el il lo "
    "e una fue tiene che è non not no yes can does do as an a how what when which should why if"
)
"""Words with a capital after "patient" that are no names, as in headings and in the names of instruments."""


def _is_name(match: re.Match[str]) -> bool:
    words = re.split(r"[\s-]+", match["name"])
    return not any(word[:1].isupper() and word.lower().strip(".") in _TITLE_WORDS for word in words)


def _is_patients_name(match: re.Match[str]) -> bool:
    """Inpatients and outpatients are not called so."""
    return _is_name(match) and not match.string[: match.start()][-2:-1].isalpha()


_MONTHS = (
    r"(?:Jan(?:uary|uar|\.)?|Feb(?:ruary|ruar|\.)?|March|Mar\.?|März|Apr(?:il|\.)?|May|Mai|June?|Juni|July?|Juli"
    r"|Aug(?:ust|\.)?|"
    r"Sept?(?:ember|\.)?|O[ck]t(?:ober|\.)?|Nov(?:ember|\.)?|De[cz](?:ember|\.)?)"
)
_MONTHS_LOWER = (
    r"(?:janvier|février|mars|avril|mai|juin|juillet|août|septembre|octobre|novembre|décembre|enero|febrero|marzo"
    r"|abril|mayo|junio|"
    r"julio|agosto|septiembre|setiembre|octubre|noviembre|diciembre|gennaio|febbraio|aprile|maggio|giugno|luglio"
    r"|settembre|ottobre|"
    r"novembre|dicembre)"
)
_MONTH_WORDS = words_in(
    "jan january januar feb february februar mar march märz apr april mai jun june juni jul july juli aug august "
    "sep sept september "
    "oct october okt oktober nov november dec december dez dezember janvier février mars avril juin juillet août "
    "septembre octobre "
    "novembre décembre enero febrero marzo abril mayo junio julio agosto septiembre setiembre octubre noviembre "
    "diciembre gennaio "
    "febbraio aprile maggio giugno luglio settembre ottobre dicembre"
)
_YEAR = r"(?:19|20)\d\d"
_DAY = r"(?:3[01]|[12]\d|0?[1-9])"
_WRITTEN_DATE = (
    rf"(?:(?<!\d){_DAY}(?:st|nd|rd|th|\.|er|º|°)?(?:\s+of)?(?:\s+de)?\s+{_MONTHS}(?![{_LOWER}])(?:,?\s+{_YEAR}\b)?"
    rf"|\b{_MONTHS}\s+{_DAY}(?:st|nd|rd|th)?(?![\d.%:/-]|\s?(?:mg|ml|%|patients))(?:,?\s+{_YEAR}\b)?"
    rf"|\b{_MONTHS},?\s+{_YEAR}\b"
    rf"|(?<!\d){_DAY}(?:er|º|°)?\s+(?:de\s+|d')?{_MONTHS_LOWER}\b(?:\s+(?:de\s+|del\s+)?{_YEAR}\b)?"
    rf"|\b{_MONTHS_LOWER}\s+(?:de\s+|del\s+)?{_YEAR}\b)"
)
_NUMERIC_DATE = (
    rf"(?<![\d./-])(?:{_YEAR}[-/.](?:0[1-9]|1[0-2])[-/.](?:0[1-9]|[12]\d|3[01])"
    rf"|(?P<a>\d{{1,2}})(?P<s>[-/.])(?P<b>\d{{1,2}})(?P=s)(?:{_YEAR}|(?<=[-/.]\d\d.)\d\d|(?<=[-/]\d.)\d\d))(?![\d/-]|\.\d)"
)


def _is_date(match: re.Match[str]) -> bool:
    first, second = match["a"], match["b"]
    if first is None:
        return True
    day, month = sorted((int(first), int(second)), reverse=True)
    return 1 <= month <= 12 and 1 <= day <= 31


_BORN = (
    r"(?i:\b(?:d\.?o\.?b\.?|date\s+of\s+birth|birth\s?date|born(?:\s+on)?|geb(?:\.|oren)(?:\s+am)?|geburtsdatum"
    r"|née?(?:\s+le)?|"
    r"date\s+de\s+naissance|fecha\s+(?:de\s+)?nac(?:imiento)?\.?|f\.?\s?nac\.?|nacid[oa](?:\s+el)?|data\s+di\s+nascita"
    r"|nat[oa](?:\s+il)?|"
    r"nascid[oa]\s+em|data\s+de\s+nascimento))\W{0,4}"
)
_NUMBER_WORD = r"(?:(?:no|nr|num(?:ber|mer|éro|ero)?|número|numero|n|id)\b|#)"


def _long_enough(least: int) -> Callable[[re.Match[str]], bool]:
    return lambda match: sum(map(str.isdigit, match[0])) >= least


def _is_social(match: re.Match[str]) -> bool:
    return not match[0].startswith(("000", "666", "9"))


_RECORD_VALUE = r"[\s:#.°º-]*(?:(?:is|ist|est|es|è|number|no|nr)\b[\s:#.]*)*(?=[a-z0-9/-]*\d{3})[a-z0-9][a-z0-9/-]{3,}"
_STATES = (
    "AL|AK|AZ|AR|CA|CO|CT|DE|FL|GA|HI|ID|IL|IN|IA|KS|KY|LA|ME|MD|MA|MI|MN|MS|MO|MT|NE|NV|NH|NJ|NM|NY|NC|ND|OH|OK|OR"
    "|PA|RI|SC|SD|TN|"
    "TX|UT|VT|VA|WA|WV|WI|WY|DC"
)
_STREET = "Street|Avenue|Road|Boulevard|Lane|Drive|Court|Square|Terrace|Parkway|Highway|Way|St|Ave|Rd|Blvd|Ln|Dr"


def _parts(*texts: str) -> tuple[bytes, ...]:
    return tuple(text.encode() for text in texts)


_STREETS = words_in("street avenue road boulevard lane drive court square terrace parkway highway way st ave rd blvd ln dr")
_LONG_NUMBERS = _parts("000", "00 00", "00-00", "00.00", "00/00")

SCREENS = (
    Screen("mail", re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), parts=_parts("@")),
    Screen("url", re.compile(r"(?i)\b(?:https?://|www\.)[^\s<>()]{3,}"), parts=_parts("://", "www.")),
    Screen(
        "name",
        re.compile(rf"\b{_TITLES}(?:\s+(?:med|Dr|Prof)\b\.?)*\s+(?P<name>{_NAME})"),
        words=words_in(
            "mr mrs ms miss dr prof professor doctor herr herrn frau hr fräulein monsieur madame mademoiselle mme mlle docteur "
            "señor señora sr sra srta doña don m dra signor signora sig dott dottore dottoressa"
        ),
        confirm=_is_name,
    ),
    *(
        Screen(
            "name",
            re.compile(rf"{stem}{_AFTER_PATIENT}(?P<name>{_FULL_NAME})"),
            parts=_parts(stem.lower()),
            confirm=_is_patients_name,
        )
        for stem in ("atient", "aciente", "aziente", "Pt")
    ),
    Screen(
        "name",
        re.compile(
            rf"\b(?i:name\s+(?:is|ist)|name\s*:|named|namens|nommée?|s'appelle|llamad[oa]|se\s+llama|di\s+nome"
            rf"|si\s+chiama)\s+"
            rf"(?P<name>{_FULL_NAME})"
        ),
        words=words_in("name named namens nommé nommée appelle llamado llamada llama nome chiama"),
        confirm=_is_name,
    ),
    Screen(
        "birth_date",
        re.compile(rf"{_BORN}(?:{_WRITTEN_DATE}|{_NUMERIC_DATE})"),
        words=words_in(
            "birth birthdate dob born geb geboren geburtsdatum né née naissance nacimiento nac nacido nacida "
            "nascita nato nata "
            "nascido nascida nascimento"
        ),
        parts=_parts("d.o.b"),
    ),
    Screen(
        "date",
        re.compile(_WRITTEN_DATE),
        words=_MONTH_WORDS,
        parts=_parts("may 0", "0 may", "may, 0", "0th may", "0st may", "0. may", "of may"),
    ),
    Screen(
        "date",
        re.compile(_NUMERIC_DATE),
        parts=_parts("/0/", "/00/", "-0-", "-00-", ".0.", ".00.", "0000."),
        confirm=_is_date,
    ),
    Screen(
        "phone",
        re.compile(
            r"(?<![\w.+-])(?:\+\d{1,3}[\s.-]?(?:\(0?\d{0,4}\)[\s.-]?)?\d{1,4}(?:[\s./-]?\d{2,4}){2,5}"
            r"|\(\d{3}\)\s?\d{3}[-.\s]\d{4}"
            r"|(?:1[-.])?\d{3}([-.])\d{3}\1\d{4}|0\d{2,4}\s?/\s?\d{5,8})(?![\w-]|\.\d)"
        ),
        parts=_parts(
            "+00 0", "+00(", "+00-", "+00.", "+0", "+0-",
            "+0.", "+0(", "+000", "(000)", "000-000-0000", "000.000.0000", "00/0000", "00 / 0000",
        ),
        confirm=_long_enough(9),
    ),
    Screen(
        "phone",
        re.compile(
            r"(?i)\b(?:t[eé]l(?:efon|ephone|éphone|éfono|efono)?|phone|fax|cell|mobile|mobil|handy|portable|móvil"
            r"|cellulare|call|"
            r"reached\s+at|rufnummer|whatsapp|téléphone)\b\.?(?:\s+(?:me|us|number|no|nr|nummer|is|at|num[eé]ro"
            r"|número)\b\.?)*\s*:?\s*"
            r"\+?\(?\d[\d\s()./-]{4,18}\d(?!\w)"
        ),
        words=words_in(
            "tel tél telefon telephone téléphone teléfono telefono phone fax cell mobile mobil handy portable móvil "
            "cellulare call reached "
            "rufnummer whatsapp"
        ),
        also=_LONG_NUMBERS,
        confirm=_long_enough(6),
    ),
    Screen(
        "record_number",
        re.compile(
            r"(?i)\b(?:mrn|(?:(?:medical|health|hospital|patient|clinic)\s+)?record\s+" + _NUMBER_WORD +
            r"|(?:patient|case|chart|file|account|member|admission|encounter|specimen|policy|insurance"
            r"|beneficiary|acct|hospital)\s*" + _NUMBER_WORD
            + r"|(?:num[eé]ro|n[°º]|no|id)\.?\s+(?:de\s+)?(?:dossier|patient|assuré)"
            r"|dossier\s+(?:médical\s+)?(?:n[°ºo]|num[eé]ro)"
            r"|ipp|nhc|nip|(?:número|n[°º]|num)\.?\s+(?:de\s+)?(?:historia(?:\s+cl[ií]nica)?|expediente|paciente|afiliado)"
            r"|historia\s+cl[ií]nica(?:\s+n[°ºo]\.?)?|(?:numero|n[°º]|n)\.?\s*(?:di\s+"
            r"|della\s+)?(?:cartella(?:\s+clinica)?|pratica|paziente)"
            r"|cartella\s+clinica(?:\s+n[°ºo]?\.?)?)" + _RECORD_VALUE
        ),
        words=words_in("mrn ipp nhc nip historia cartella dossier number num numéro número numero id nr"),
        parts=_parts("no. 0", "no 0", "no: 0", "no.: 0", "n. 0", "n° ", "nº ", "n°0", "nº0", "record 0", "record: 0", "#"),
        also=_parts("000"),
    ),
    Screen(
        "record_number",
        re.compile(
            r"(?i)\b(?:fall|patienten|akten|aufnahme|versicherten|kranken(?:akten|kassen"
            r"|versicherten)?)-?\s?(?:nummer|nr|zeichen|id)\b"
            + _RECORD_VALUE
        ),
        parts=_parts("nummer", "-nr", "zeichen", "fall-id", "patienten-id", " nr"),
        also=_parts("000"),
    ),
    Screen(
        "social_security",
        re.compile(r"(?<![\d-])\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])"),
        parts=_parts("000-00-0000"),
        confirm=_is_social,
    ),
    Screen("social_security", re.compile(r"(?<![\d.])756\.\d{4}\.\d{4}\.\d{2}(?!\d)"), parts=_parts("000.0000.0000.00")),
    Screen("social_security", re.compile(r"\b[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]\b"), words=words_in("fiscale cf")),
    Screen(
        "social_security",
        re.compile(r"(?<![\d.])[12]\s\d{2}\s(?:0[1-9]|1[0-2])\s\d{2}\s\d{3}\s\d{3}(?:\s\d{2})?(?!\d)"),
        parts=_parts("0 00 00 00 000 000"),
    ),
    Screen(
        "social_security",
        re.compile(
            r"(?i)\b(?:ssn|social\s+security(?:\s+number)?|sozialversicherungs-?(?:nummer|nr)|sécurité\s+sociale"
            r"|seguridad\s+social|"
            r"nhs\s+(?:number|no)|dni|nie|ahv|codice\s+fiscale|national\s+(?:id|insurance))\b[\s:#.-]*(?:is\s+"
            r"|ist\s+|n[°º]\s*)?"
            r"(?=[\w .-]*\d{3})[a-z]?\d[\w .-]{5,20}"
        ),
        words=words_in("ssn social sozialversicherungsnummer sozialversicherungs sociale nhs dni nie ahv fiscale national"),
        also=_parts("000"),
        confirm=_long_enough(6),
    ),
    Screen(
        "address",
        re.compile(rf"(?<![\d.,])\d{{1,5}}[A-Z]?\s+(?:[NSEW]\.?\s+)?(?:{_WORD}\s+){{1,3}}(?:{_STREET})\b"),
        words=_STREETS,
    ),
    Screen(
        "address",
        re.compile(
            rf"\b(?:[{_UPPER}][{_LOWER}-]*(?:straße|strasse|str\.|gasse|allee|platz|weg|damm|ufer)|{_WORD}[ "
            rf"-](?:Straße|Strasse|"
            rf"Str\.|Gasse|Allee|Platz|Weg|Damm|Ufer))\s*\d{{1,4}}\s?[a-z]?\b"
        ),
        parts=_parts("straße 0", "strasse 0", "str. 0", "gasse 0", "allee 0", "platz 0", "weg 0", "damm 0", "ufer 0", "str.0"),
    ),
    Screen(
        "address",
        re.compile(
            rf"\b\d{{1,4}}(?:\s?(?:bis|ter))?,?\s+(?:[Rr]ue|[Aa]venue|av\.|boulevard|bd|place|chemin|impasse|allée|quai"
            rf"|cours|route)\s+"
            rf"(?:(?:de|du|des|de\s+la|d'|de\s+l'|la|le|les)\s*)*[{_UPPER}]"
        ),
        words=words_in("rue avenue av boulevard bd place chemin impasse allée quai cours route"),
    ),
    Screen(
        "address",
        re.compile(
            rf"\b(?:[Cc]alle|C/|Avenida|Avda\.?|Plaza|Paseo|Camino|Via|Viale|Piazza|Piazzale|Corso|Vicolo|Largo)\s*"
            rf"(?:(?:de|del|de\s+la|della|dei|di"
            rf"|la)\s+)*{_WORD}(?:\s+{_WORD}){{0,3}},?\s*(?:n[.°ºo]*\s*)?\d{{1,4}}\b(?![.,]\d)"
        ),
        words=words_in("calle avenida avda plaza paseo camino via viale piazza piazzale corso vicolo largo"),
        parts=_parts("c/"),
    ),
    Screen("zip_code", re.compile(rf"\b(?:{_STATES})\s+\d{{5}}(?:-\d{{4}})?(?!\d)"), parts=_parts(" 00000")),
    Screen(
        "zip_code",
        re.compile(
            r"(?i)\b(?:zip(?:\s*code)?|post(?:al)?\s*code|plz|postleitzahl|code\s+postal|c[oó]digo\s+postal"
            r"|cap)\b\s*[:.]?\s*"
            r"(?:is\s+|ist\s+)?(?:\d{4,5}(?:-\d{3,4})?|[a-z]{1,2}\d[a-z\d]?\s?\d[a-z]{2})\b"
        ),
        words=words_in("zip zipcode post postal postcode plz postleitzahl cap"),
    ),
    Screen(
        "zip_code",
        re.compile(
            rf"\b(?:D|CH|F|A|I|E)-\d{{4,5}}\s+{_WORD}|(?<![\d.,-])\d{{5}}\s+(?:Berlin|Hamburg|München|Köln|Paris"
            rf"|Lyon|Marseille|Madrid|"
            r"Barcelona|Roma|Milano)\b"
        ),
        parts=_parts("d-0000", "ch-0000", "f-0000", "a-0000", "i-0000", "e-0000", "00000 "),
    ),
    Screen(
        "ip_address",
        re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.]*\d)"),
        parts=_parts(".0.", ".00.", ".000."),
    ),
    Screen("ip_address", re.compile(r"\b(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}\b"), parts=_parts(":0"), also=_parts(":")),
    Screen(
        "age",
        re.compile(
            r"(?<![\d.,-])(?:9\d|1[01]\d)(?:[\s-]*(?:years?|yrs?)[\s-]*(?:old|of\s+age)|[\s-]*(?:y/?o|yo)\b|[\s-]*jähr|"
            r"\s+Jahre\s+alt|enne\b)"
        ),
        parts=_parts("0 y", "0-y", "0y", "0 jä", "0-jä", "0 jahre alt", "0enne"),
    ),
    Screen(
        "age",
        re.compile(
            r"(?i)\b(?:aged?|im\s+alter\s+von|âgée?s?\s+de|de|di)\s*:?\s*(?:9\d|1[01]\d)(?=\s+(?:ans|años|anni|jahren?)\b)"
            r"|\b(?:aged?|alter|âge|edad|età)\s*:?\s+(?:9\d|1[01]\d)\b(?!\s*(?:%|days|months|weeks|mo\b|to\b|-|\.\d))"
        ),
        parts=_parts(
            "age 0", "aged 0", "age: 0", "alter 0", "alter: 0", "âge 0", "âge: 0",
            "edad 0", "edad: 0", "età 0", "età: 0", "de 0", "di 0", "von 0",
        ),
    ),
)  # fmt: skip
