"""Look into a tokenized set: `python look.py tokenized/first models/Qwen3-0.6B`.

Prints how long its documents are, and the first two part by part: whose words they are, how many tokens, and which text.
"""

import sys
from itertools import groupby
from pathlib import Path

import medsft
from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.core.data.tokenizers.template import Role

data = medsft.open_tokenized(Path(sys.argv[1]))
tokenizer = open_tokenizer(Path(sys.argv[2]), template="chatml").tokenizer

print(f"{data.num_documents} documents of {data.lengths.min()} to {data.lengths.max()} tokens, {data.num_tokens} in all")
for document in range(min(2, data.num_documents)):
    print(f"document {document}")
    tokens_with_roles = zip(data.tokens(document).tolist(), data.roles(document).tolist(), strict=True)
    for role, part in groupby(tokens_with_roles, key=lambda pair: pair[1]):
        tokens = [token for token, _ in part]
        print(f"  {Role(role).name.lower()}, {len(tokens)} tokens: {tokenizer.decode(tokens)!r}")
