"""Training texts about a photograph, written from what is known about it: captions, the things in it, a label.

    row {"captions": [...], "objects": [...], "label", "detail", "made", "source"}  ->  texts(row, rng, statistics):
        captions      the row's own; those from a label, a list of things or a description have several wordings, so that
                      the form of a caption does not reveal where an image comes from
        details       the image's own description, if it has one; else one made from what is known
        questions     [(instruction, answer), ...]: what is there, is there a ...?, how many, what color
        conversation  messages of several turns about the image, each adding something new

Everything but the captions may be missing. `objects` are COCO's kinds, a complete list of what is there; `label` is a class
("Egyptian cat", or "Apple, Red Delicious"), `detail` a long description, and `made` says that the captions were written
from the list. For a row without a list, the kinds that its texts name are used.

Absent things must be chosen well: a model that is asked about zebras only when there are none learns the words instead of
looking. So each question about a thing that is there comes with one about a thing that is not, drawn by how often it occurs
together with those that are (POPE's adversarial sampling; Li et al. 2023).
"""

import re
from collections import Counter

from .kinds import KINDS, label_kinds, named_kinds, plural_of, same_name
from .scenes import with_article

WHAT = (  # the first is what the suite `objects` asks
    "What is in this image?",
    "What is this?",
    "What do you see in the picture?",
    "What does the image show?",
    "What can be seen in this photo?",
    "What is the main thing in this picture?",
)
ELSE = ("What else is there?", "What else do you see?", "Is there anything else?")
MAX_NAMED = 4  # things in one sentence
ONES = 0.2  # share of single things that are asked about by number
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray", "grey", "silver")

_CAPTION_FORMS = (
    "{}",
    "{}",
    "{}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "there {is} {}",
    "the image shows {}",
)
# No short answer begins as a description does ("The image shows", "In this image"): the LLM is frozen, and what it has begun
# tells it better than the question how long an answer should be.
_ANSWER_FORMS = ("{}.", "{}.", "There {is} {} in the image.", "I see {}.", "You can see {}.")
_YES = ("Yes.", "Yes, there {is} {}.", "Yes, there {is} {} in the image.", "Yes, I can see {}.")
_NO = ("No.", "No, there {is} no {}.", "No, there {is} no {} in the image.", "No, I cannot see any {}.")
_ASKED = ("{Is} there {} in the image?", "{Is} there {} in this picture?", "Do you see {}?", "Can you see {} in the photo?")
# Everyday words for some of COCO's kinds.
_SAID = {
    "dining table": "table",
    "sports ball": "ball",
    "tv": "television",
    "cell phone": "phone",
    "hair drier": "hair dryer",
}
_NO_ARTICLE = {
    *("asparagus", "broccoli", "corn", "garlic", "ginger", "juice", "milk", "oat milk", "oatghurt", "skis", "scissors"),
    *("sour cream", "sour milk", "soy milk", "soyghurt", "yoghurt"),
}
_SOUNDS = {"hourglass": "an hourglass", "unicycle": "a unicycle", "ewer": "a ewer", "euphonium": "a euphonium"}
_PHOTO_OF = re.compile(r"^an? (?:photo|picture|image) of (.+?)\.?$", re.IGNORECASE)
_LEAD_IN = re.compile(
    r"^(?:(?:in )?(?:this|the) (?:image|picture|photo|photograph) (?:shows|depicts|displays|features|is|appears to be)"
    r"(?: of)?|this is an? (?:image|picture|photo|photograph) of) (?=an? |the |two |three |several |many )",
    re.IGNORECASE,
)
# Descriptions of cc_sbu_align that begin twice: a model's first words were left before the edited text.
_BEGUN_TWICE = re.compile(r"^(?:(?:This|The|On)(?: \w+){0,4} )(?=(?:The|This) (?:image|picture|photo)\b)")
_NUMBERS = ("one", "two", "three", "four", "five", "six")
_COUNTS = {"a": 1, "an": 1} | {word: number for number, word in enumerate(_NUMBERS, 1)}
# A number and up to three words after it; "a group of dogs" has no count.
_COUNTED = re.compile(
    rf"(?=\b({'|'.join(_COUNTS)}) (?!(?:\w+ )?(?:group|couple|pair|herd|crowd|flock)\b)((?:[a-z]+ ?){{1,3}}))"
)
_CLOSER = ("on a closer look, {}", "more precisely, {}", "to say more, {}")
_ALSO = ("there {is} also {}", "{} can be seen, too", "the image also shows {}")
_MAIN = ("that is the main thing in the photo", "that is what the photo is about", "nothing else stands out")
_TAKEN = ("the photo was taken {}", "the scene is {}", "all of it is {}")
# How people say where something is: "on a beach", "in the snow".
_PLACE = re.compile(
    r"\b(?:in|at|on|near|by|through) (?:an? |the )(?:[a-z]+ )?(?:kitchen|bathroom|bedroom|room|office|restaurant|street|road"
    r"|sidewalk|park|field|grass|yard|beach|ocean|sea|water|lake|river|pool|snow|slope|mountain|forest|woods|court|track"
    r"|station|airport|runway|market|store|zoo|city|rain|sun|sunset|desert|garden|stage|playground|parking lot)\b"
)
_COLORED = re.compile(rf"(?=\b((?:{'|'.join(COLORS)})(?: and (?:{'|'.join(COLORS)}))?) ((?:[a-z]+ ?){{1,2}}))")


class Statistics:
    """How often things occur, alone and together, in the training rows.

    Args:
        rows: as `texts` takes them.
    """

    def __init__(self, rows):
        self.together = {kind: Counter() for kind in KINDS}  # from rows with a list
        self.often = Counter()
        self.labels = {}  # {source: Counter of (label, its name)}
        self._others = {}
        for row in rows:
            kinds = _listed(row)
            self.often.update(kinds)
            for kind in kinds:
                self.together[kind].update(kinds)
            if row.get("label"):
                self.labels.setdefault(row.get("source"), Counter())[row["label"], _thing(row)] += 1

    def absent(self, row, rng, together=None):
        """The name of a thing that is not there ("dog", "red fox"), or None if there is none to ask about.

        For a row with a list: one of COCO's kinds, by how often it occurs with those that are there (`together`; POPE's
        adversarial) or at all (its popular); None: each half of the time. For a label: another of its source, by frequency.
        For texts only: any of the kinds that they do not name, since things that occur together may be there unmentioned.
        """
        listed, there = _listed(row), present(row)
        if row.get("label") and not listed:
            return _drawn(self._other_labels(row), rng)
        if not listed:
            return _drawn({said(kind): 1 for kind in KINDS if kind not in there}, rng)
        together, by = rng.random() < 0.5 if together is None else together, Counter()
        for counted in [self.together[kind] for kind in listed] if together else [self.often]:
            by.update(counted)
        absent = {said(kind): by[kind] for kind in KINDS if kind not in there}
        return _drawn(absent if any(absent.values()) else dict.fromkeys(absent, 1), rng)

    def _other_labels(self, row):
        """{thing: how often it is the label of an image} for the labels that cannot also apply to this row."""
        key = row.get("source"), row["label"]
        if key not in self._others:
            labels = self.labels.get(row.get("source"), {}).items()
            self._others[key] = {thing: n for (label, thing), n in labels if not same_name(label, row["label"])}
        return self._others[key]


def texts(row, rng, statistics, wordings=None):
    """{"captions": [text], "details": [text], "questions": [(instruction, answer)], "conversation": messages}.

    Args:
        row: see the module. rng: a `random.Random`. statistics: `Statistics`, of this row's data set.
        wordings: the most captions made from a label, a list or a description; None: every wording.

    Captions that people wrote are returned unchanged. "conversation" is [] if too little is known for two turns.
    """
    return {
        "captions": written(row) or captions(row, rng)[:wordings],
        "details": details(row) or described(row, rng),
        "questions": questions(row, rng, statistics),
        "conversation": conversation(row, rng, statistics),
    }


def written(row):
    """Captions that people wrote, not made from a label or a list ("A photo of a ...") or from a description's start."""
    of_label = row.get("label") and all(map(_PHOTO_OF.match, row["captions"]))
    return [] if of_label or row.get("made") or row.get("detail") else row["captions"]


def captions(row, rng):
    """Generated captions: what is known about an image in each wording, in random order."""
    if row.get("detail"):
        found = {_sentence(_without_lead_in(text)) for text in row["captions"] if text != row["detail"]}
    else:
        found = {_worded(form, told) for form in _CAPTION_FORMS if (told := _told(row, rng))}
    return rng.sample(sorted(found), len(found)) or row["captions"]


def details(row):
    """[the long description of an image], or [] if there is none or it begins or ends mid-sentence."""
    detail = _begun_once(row.get("detail") or "").strip()
    whole = detail[:1].isupper() and detail.endswith((".", "!", "?", '"'))
    return [detail] if whole else []


def described(row, rng):
    """[a description in several sentences] of an image, unless too little is known; else [].

    It consists of the caption that says most (or the label, or two of the things listed), the one that adds most to it,
    things not named yet, a color and the place. Captions that are merely joined all begin alike, and a model that learns
    from them says one sentence twice.
    """
    by_people, told = sorted(written(row), key=lambda text: len(text.split())), _told(row, rng, 2)
    if not (by_people or told):
        return []
    first = by_people.pop() if by_people else _worded("there {is} {}", told)
    sentences = [f"in this image, {_begun_small(first)}"]
    if by_people:
        second = max(by_people, key=lambda text: len(set(_plain(text).split()) - set(_plain(first).split())))
        sentences.append(rng.choice(_CLOSER).format(_begun_small(second)))
    unnamed = [said(kind) for kind in sorted(present(row) - set(named_kinds(" . ".join(sentences))))]
    if row.get("label"):
        sentences.append(rng.choice(_MAIN))
    elif unnamed:
        sentences.append(_worded(rng.choice(_ALSO), _listing(rng.sample(unnamed, min(MAX_NAMED, len(unnamed))))))
    if by_people:  # of a single caption these would be said twice
        sentences += [
            f"the {said(kind)} {'are' if _is_many(said(kind)) else 'is'} {color}" for kind, color in _colors(row)[:1]
        ]
        places = {place for text in row["captions"] for place in _PLACE.findall(_plain(text))}
        sentences += [rng.choice(_TAKEN).format(rng.choice(sorted(places)))] if places else []
    return [" ".join(map(_sentence, sentences))] if len(sentences) > 1 else []


def questions(row, rng, statistics):
    """[(instruction, answer), ...]: what is there (two), a yes and a no, and how many and what color if known."""
    asked = [(rng.choice((WHAT[0], *WHAT)), _what(row, rng)) for _ in range(2)]
    return [*asked, *_yes_and_no(row, rng, statistics), *_how_many(row, rng), *_what_color(row, rng)]


def conversation(row, rng, statistics):
    """Messages about one image: a description or what is there, what else, two or three questions; [] if there are none."""
    told = details(row)
    if told and rng.random() < 0.5:
        turns = [("Describe this image in detail.", told[0])]
    else:
        turns = [(rng.choice(WHAT), _what(row, rng))]
    left = [said(kind) for kind in _listed(row) if kind not in named_kinds(turns[0][1])]
    if left:
        turns.append((rng.choice(ELSE), _sentence(_listing(left[:MAX_NAMED]))))
    others = [*_yes_and_no(row, rng, statistics), *_how_many(row, rng), *_what_color(row, rng)]
    turns += rng.sample(others, min(len(others), rng.randint(2, 3)))
    return _messages(turns) if len(turns) > 1 else []


def present(row):
    """The COCO kinds in an image: those of its list or label, and those that its captions and description name."""
    kinds = set(_listed(row))
    for text in [*row["captions"], row.get("detail") or ""]:
        kinds.update(named_kinds(text))
    return kinds | (label_kinds(row["label"]) if row.get("label") else set())


def things(row):
    """Names of what is certainly there, sorted: a labelled image's label, a row's list, or what its texts name."""
    return [_thing(row)] if row.get("label") else sorted(map(said, _listed(row) or present(row)))


def is_there(thing):
    """POPE's question: "Is there a dog in the image?"."""
    return _worded(_ASKED[0], a(thing))


def said(kind):
    """The everyday name of a COCO kind."""
    return _SAID.get(kind, kind)


def a(thing):
    """A thing with its article, if it takes one: "a dog", "an hourglass", "skis", "milk"."""
    if thing in _SOUNDS or thing in _NO_ARTICLE or _is_many(thing):
        return _SOUNDS.get(thing, thing)
    return with_article(thing)


def _what(row, rng):
    """The answer to "What is in this image?": what a person wrote, or the things known to be there."""
    by_people, told = written(row), _told(row, rng)
    if by_people and (not told or rng.random() < 0.5):
        return _sentence(rng.choice(by_people))
    if told:
        return _sentence(_worded(rng.choice(_ANSWER_FORMS), told))
    first = re.split(r"(?<=[.!?])\s", _begun_once(row.get("detail") or row["captions"][0]))[0]
    return _sentence(_without_lead_in(first))


def _yes_and_no(row, rng, statistics):
    """A question about a thing that is there and one about a thing that is not; none if either is unknown."""
    there = things(row)
    absent = statistics.absent(row, rng) if there else None
    if absent is None:
        return []
    pair = [(rng.choice(there), _YES), (absent, _NO)]
    return [(_worded(rng.choice(_ASKED), a(thing)), _answered(rng.choice(forms), thing)) for thing, forms in pair]


def _answered(form, thing):
    """ "No, there is no dog." needs the bare word, "Yes, there is a dog." the article."""
    bare = form.startswith("No")
    return _worded(form, thing if bare else a(thing), many=_is_many(thing))


def _how_many(row, rng):
    """[("How many dogs are there?", "Two."), ...] for kinds whose counts agree in all captions and that the list has."""
    counted = {}
    for text in row["captions"]:
        for number, words in _COUNTED.findall(_plain(text)):
            for kind in named_kinds(words)[:1]:
                counted.setdefault(kind, []).append(_COUNTS[number])
    listed, found = _listed(row), []
    for kind, numbers in sorted(counted.items()):
        # "A man": there may be others. And if every single dog were counted, nearly every answer would be "one".
        sure = numbers[0] > 1 or (len(numbers) > 2 and kind != "person" and rng.random() < ONES)
        if len(set(numbers)) == 1 and sure and (not listed or kind in listed):
            word = _NUMBERS[numbers[0] - 1]
            answers = (f"{word.capitalize()}.", f"There {'is' if numbers[0] == 1 else 'are'} {word}.")
            found.append((f"How many {_many(said(kind))} are there?", rng.choice(answers)))
    return rng.sample(found, min(1, len(found)))


def _what_color(row, rng):
    """[("What color is the cat?", "Black and white.")] if a color is known."""
    found = [
        (f"What color {'are' if _is_many(said(kind)) else 'is'} the {said(kind)}?", f"{color.capitalize()}.")
        for kind, color in _colors(row)
    ]
    return rng.sample(found, min(1, len(found)))


def _colors(row):
    """[(kind, color), ...] for kinds that the texts give one color and that the list has."""
    colors = {}
    for text in [*row["captions"], row.get("detail") or ""]:
        for color, words in _COLORED.findall(_plain(text)):
            first = words.split()[0]
            for kind in named_kinds(words)[:1]:
                if kind in named_kinds(first) or len(words.split()) == 2:
                    colors.setdefault(kind, set()).add(color.replace("grey", "gray"))
    listed = _listed(row)
    return [
        (kind, next(iter(of_kind)))
        for kind, of_kind in sorted(colors.items())
        if len(of_kind) == 1 and kind != "person" and (not listed or kind in listed)
    ]


def _listed(row):
    """The kinds in a row's list; [] without one."""
    return [kind for kind in dict.fromkeys(row.get("objects") or []) if kind in KINDS]


def _told(row, rng, most=MAX_NAMED):
    """A phrase for what is known to be there: "a red fox", "a cat, a bench and skis"; "" if nothing is."""
    if row.get("label"):
        return _called(row)
    listed = [said(kind) for kind in _listed(row)]
    return _listing(rng.sample(listed, min(most, len(listed)))) if listed else ""


def _called(row):
    """The name of a labelled image's content in its caption ("A photo of a wrist watch." -> "a wrist watch") or label."""
    match = _PHOTO_OF.match(row["captions"][0]) if row["captions"] else None
    return match[1] if match else a(row["label"].split(",")[0])


def _thing(row):
    """What a labelled image shows, without an article, in few words: "wrist watch", "apple" of "Apple, Red Delicious"."""
    if "," in row["label"]:
        return row["label"].split(",")[0].lower()
    called = re.sub(r"^(?:an?|the) ", "", _called(row))
    if re.search(r" (?:in|of|on) ", called):
        return row["label"].lower() if row["label"].lower() in called else row["label"]
    return called


def _drawn(weights, rng):
    return rng.choices(list(weights), list(weights.values()))[0] if weights else None


def _listing(things):
    """ "a cat, a bench and skis"."""
    *first, last = map(a, things)
    return f"{', '.join(first)} and {last}" if first else last


def _worded(form, things, many=None):
    """A form filled with things; its verb agrees with the first of them, or with `many`."""
    if many is None:
        first = re.split(r",| and | in | on ", things)[0]
        many = _is_many(first) and not re.match(r"an? ", first)
    verb = "are" if many else "is"
    return form.format(things, **{"is": verb, "Is": verb.capitalize()})


def _is_many(thing):
    """Whether a word is a plural: "skis", not "bus" or "glass"."""
    return thing == "skis" or (thing.endswith("s") and not thing.endswith(("ss", "us", "is")))


def _many(thing):
    return "people" if thing == "person" else thing if _is_many(thing) else plural_of(thing)


def _begun_small(text):
    text = text.lower() if text.isupper() else text
    return text[:1].lower() + text[1:]


def _sentence(text):
    text = text.strip().rstrip(" .")
    return text[:1].upper() + text[1:] + ("" if text.endswith(("!", "?")) else ".")


def _begun_once(text):
    return _BEGUN_TWICE.sub("", text)


def _without_lead_in(text):
    """ "The image shows a bowl of oatmeal." -> "a bowl of oatmeal."."""
    return _LEAD_IN.sub("", _begun_once(text))


def _plain(text):
    return re.sub(r"[^a-z ]+", " . ", text.lower().replace("-", " "))


def _messages(turns):
    messages = []
    for question, answer in turns:
        messages.append({"role": "user", "content": [{"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    messages[0]["content"].insert(0, {"type": "image"})
    return messages
