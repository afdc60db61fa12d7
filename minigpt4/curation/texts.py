"""Rules about a description's text, and the difference between two versions of it."""

import difflib
import re

# The paper's: "I'm sorry I made a mistake...", "I apologize for that ...".
APOLOGY = re.compile(
    r"\bI(?:'m| am) (?:very |so |really )?sorry\b|\bI apologi[sz]e\b|\bmy apologies\b|\bI made a mistake\b", re.IGNORECASE
)
AS_AN_AI = re.compile(r"\bas an? (?:AI|artificial intelligence|(?:large )?language model)\b", re.IGNORECASE)
REFUSAL = re.compile(
    r"\bI (?:can ?not|can't|am (?:not able|unable)|won't|will not|do not|don't) (?:\w+ ){0,3}?"
    r"(?:assist|help|fulfil|comply|provide|process|rewrite|fix|see|view|access)|\bunable to (?:assist|help|comply)\b",
    re.IGNORECASE,
)
EXPLANATION = re.compile(
    r"^(?:sure|certainly|of course|okay)\b|^(?:here(?:'s| is| are)|this is|the following is)\b.*"
    r"\b(?:corrected|revised|rewritten|fixed|updated|improved|version|paragraph)\b|"
    r"^(?:the )?(?:corrected|revised|rewritten|fixed|improved) (?:\w+ )?(?:paragraph|text|version|sentence)",
    re.IGNORECASE,
)
# Common English words: a text of two sentences has some of them, one in another language hardly any.
_COMMON = frozenset(
    """the be is are was were am been to of and a an in that have has had it its for not on with he she as you do at this but
    his her by from they we or one there their what so up out if about who which when can like no into some them other than
    then look looks only over also after two three four how first all each several any these those I my your our where here
    very near while behind front under above left right next between around through top bottom background""".lower().split()
)
LEAST_COMMON = 0.15
LEAST_LATIN = 0.9


def is_english(text):
    """Whether a text reads as English: nearly all letters are Latin, and enough words are among the commonest."""
    letters = [character for character in text if character.isalpha()]
    words = re.findall(r"[a-z']+", text.lower())
    if not letters or not words:
        return False
    latin = sum(character.isascii() for character in letters) / len(letters)
    return latin >= LEAST_LATIN and sum(word in _COMMON for word in words) / len(words) >= LEAST_COMMON


def kept_share(original, text):
    """Share of a text's words (with repetitions) that the original also has: 1 for a text that only omits."""
    words = re.findall(r"\w+", text.lower())
    known = set(re.findall(r"\w+", original.lower()))
    return sum(word in known for word in words) / len(words) if words else 0.0


def difference(before, after):
    """[[kind, words], ...] that lead from one text to the other; kind is "=", "-" (removed) or "+" (added)."""
    old, new = before.split(), after.split()
    parts = []
    for tag, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            parts.append(["=", " ".join(old[i:j])])
        else:
            parts += [[sign, " ".join(words)] for sign, words in (("-", old[i:j]), ("+", new[k:m])) if words]
    return parts
