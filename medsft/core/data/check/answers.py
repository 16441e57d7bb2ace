"""What an answer looks like that nobody should learn from: empty, refusing, or cut off."""

from __future__ import annotations

import re
from collections.abc import Sequence

from medsft.core.data.check.words import words_in

_REFUSING_WORDS = words_in(
    "ai artificial model chatbot assistant sorry afraid apologize apologise unfortunately cannot t unable leid leider ki "
    "entschuldigung künstliche sprachmodell kann darf désolé désolée regrette malheureusement peux suis puis ia "
    "modèle intelligence siento lamento perdón puedo condiciones modelo inteligencia inteligência asistente dispiace "
    "spiacente purtroppo posso sono modello intelligenza desculpe sinto spijt helaas kan taalmodel able"
)
"""One of them is in every refusal in Latin letters."""
_PLACEHOLDERS = frozenset({"n/a", "nan", "null", "tbd", "tba", "todo", "undefined", "#n/a", "n.a."})
_LOOKED_AT = 240
"""Characters at the beginning of an answer in which a refusal stands; later ones are told or quoted."""
_SORRY = (
    r"(?:i(?:'| a)m (?:very |so |really )?(?:sorry|afraid)|sorry|i apologi[sz]e|unfortunately|es tut mir (?:sehr "
    r")?leid|tut mir leid|"
    r"entschuldigung|leider|(?:je suis )?(?:vraiment )?désolée?|je regrette|malheureusement|lo siento|lo lamento"
    r"|perdón|mi dispiace|"
    r"spiacente|purtroppo|desculpe|sinto muito|het spijt me|helaas)"
)
_REFUSALS = re.compile(
    r"\b(?:as|being) an? (?:ai|a\.i\.|artificial intelligence|(?:large )?language model|ai language model|chatbot"
    r"|virtual assistant)\b"
    r"|\bi(?:'| a)m (?:just |only )?an? (?:ai|artificial intelligence|(?:large )?language model|chatbot|virtual "
    r"assistant)\b"
    rf"|^(?:{_SORRY}[,.!]?\s*(?:but\s+)?)?(?:i|we) (?:cannot|can't|am (?:not able|unable) to|'m (?:not able"
    rf"|unable) to|won't) "
    r"(?:\w+ly )?(?:provide|give|offer|answer|assist|help|comply|fulfil+|diagnose|recommend|advise|discuss|respond"
    r"|share|do that|make|"
    r"engage|generate|create|write|tell you|access|browse)\b"
    rf"|^{_SORRY}[,.!]?\s*(?:but|aber|mais|pero|ma|maar|mas)?\s*(?:i|ich|je|no|non|não|ik)\s*(?:cannot|can't|can "
    rf"not|kann|darf|ne (?:peux|suis)|"
    r"puedo|posso|kan|am unable|am not able)\b"
    r"|\bals (?:ki|künstliche intelligenz|ki-sprachmodell|sprachmodell|ki-modell|ki-assistent|ai-taalmodel|taalmodel)\b"
    r"|^ich (?:kann|darf) (?:ihnen |dir )?(?:leider |hierzu |dazu |diese |dabei |darauf )*(?:keine|nicht)\b"
    r"|\ben tant qu(?:e (?:modèle|intelligence|grand modèle)|['’]?(?:ia|intelligence|assistant))\b"
    r"|^je ne (?:peux|suis|puis) (?:malheureusement )?pas (?:en mesure |vous |t'|fournir|donner|répondre|aider)"
    r"|\bcomo (?:un )?(?:modelo de (?:lenguaje|linguagem)|(?:una? )?(?:ia|inteligencia artificial|inteligência "
    r"artificial)|asistente virtual)\b"
    r"|^no puedo (?:proporcionar|dar|ofrecer|responder|ayudar)|^no estoy en condiciones de\b"
    r"|\b(?:in quanto|come|essendo) (?:un |una )?(?:modello linguistico|modello di linguaggio|intelligenza "
    r"artificiale|ia|ai)\b"
    r"|^non (?:posso|sono in grado di) (?:fornire|dare|rispondere|aiutar|offrire)|^não posso (?:fornecer|dar"
    r"|responder|ajudar)"
    r"|^ik kan (?:u |je )?(?:hier )?(?:geen|niet)\b"
    r"|как (?:языковая модель|искусственный интеллект|ии)|^(?:к сожалению, )?я не могу"
    r"|作为(?:一个|一名)?(?:大型)?(?:人工智能|ai|语言模型)|^(?:很?抱歉|对不起)[，,]?(?:但)?(?:我|本)?(?:无法|不能)|^我(?:无法|不能)(?:提供|回答|给出)"
    r"|(?:ai|人工知能|言語モデル)(?:言語モデル|アシスタント)?として|^申し訳(?:ありません|ございません)"
    r"|(?:بصفتي|كنموذج|كوني)\s+(?:نموذج|لغ|ذكاء)|^(?:عذرا|آسف)ً?[،,]?\s*(?:لا|لكن)|^لا (?:أستطيع|يمكنني) (?:تقديم|الإجابة)"
    r"|(?:एक )?(?:एआई|ai)(?: भाषा मॉडल)? के रूप में"
)
_DANGLING = words_in(
    "the a an of and or with to in for by on at from that which is are was were as than such between into because "
    "if but when their its "
    "der die das den dem des ein eine einer eines und oder mit zu im für von dass weil wenn sowie als bei "
    "le la les un une des du de et ou avec pour dans par que qui aux est sont "
    "el los las una y o con para en por que del es son "
    "il lo gli uno e o con per nel nella della dei che di da è sono"
)
"""Words that no sentence ends with"""
_CUT_SIGNS = tuple(",;([{«“-–—/=+&")
_END_SIGNS = frozenset(".!?。！？…।؟")
_CLOSING = "\"'”’»)]}*_` \n"


def is_empty(answer: str, words: Sequence[str]) -> bool:
    """Tell whether an answer holds no word at all, or only what programs write for none."""
    return not words or (len(answer) < 12 and answer.strip().lower() in _PLACEHOLDERS)


def is_refusal(answer: str, words: Sequence[str]) -> bool:
    """Tell whether an answer begins as chat models do that refuse."""
    if answer[:_LOOKED_AT].isascii() and _REFUSING_WORDS.isdisjoint(words[: _LOOKED_AT // 2]):
        return False
    return _REFUSALS.search(answer[:_LOOKED_AT].strip().lower().replace("’", "'")) is not None


def is_cut(answer: str, words: Sequence[str]) -> bool:
    """Tell whether an answer ends amid a sentence: with a comma, an open bracket or fence, or a word that needs another."""
    stripped = answer.rstrip()
    if not stripped or len(words) < 4:
        return False
    if stripped.endswith(_CUT_SIGNS) or stripped.count("```") % 2:
        return True
    return stripped[-1].isalpha() and words[-1] in _DANGLING and stripped[-len(words[-1]) :].islower()


def ends_sentence(answer: str) -> bool:
    """Tell whether an answer ends with the end of a sentence."""
    stripped = answer.rstrip(_CLOSING)
    return bool(stripped) and stripped[-1] in _END_SIGNS
