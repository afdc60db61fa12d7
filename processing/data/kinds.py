"""COCO's 80 kinds of things, the classes of labelled images, and the words for them in texts.

    named_kinds("a puppy on a sofa")                   ["dog", "couch"]
    names_label("A cat lies there.", "Egyptian cat")   True

The list of words is this project's own. It follows the choices of the CHAIR code (Rohrbach et al. 2018) for words that are
not kinds themselves ("desk" is a dining table, "monitor" a tv, "van" a car), but has more phrases.
"""

import re
from functools import cache, lru_cache

from .scenes import plural

# COCO's kinds, each with words that mean it; "!" marks a phrase that contains such a word but means something else.
_WORDS = """
person: man, woman, people, boy, girl, child, kid, baby, adult, guy, lady, gentleman, male, female, toddler, teenager,
  mother, father, sister, brother, bride, groom, player, skier, surfer, rider, skater, skateboarder, snowboarder, pedestrian,
  passenger, cyclist, bicyclist, biker, motorcyclist, chef, baker, driver, worker, farmer, doctor, student, soldier, officer,
  policeman, fireman, firefighter, cop, cowboy, hunter, shopper, traveler, tourist, pitcher, catcher, batter, umpire,
  baseball player, basketball player, football player, soccer player, tennis player, volleyball player, ball player
bicycle: bike, tandem, unicycle, !motor bike, !dirt bike
car: automobile, sedan, suv, hatchback, convertible, coupe, van, minivan, taxi, taxicab, cab, limo, limousine, jeep, !train
  car, !cable car, !car seat, !street car, !railway car
motorcycle: motorbike, motor bike, motor cycle, dirt bike, moped, scooter, motor scooter
airplane: plane, aeroplane, air plane, aircraft, jet, passenger jet, airliner, jetliner, jumbo jet, biplane, seaplane, !jet
  ski
bus: minibus, double decker, school bus, coach bus, trolley, !bus stop, !bus station
train: passenger train, locomotive, train car, railway car, tram, streetcar, street car, trolley car, subway car, caboose,
  !train track, !train station
truck: lorry, pickup, pick up truck, fire engine, firetruck, tow truck, semi trailer
boat: ship, sailboat, motorboat, speedboat, houseboat, tugboat, lifeboat, canoe, kayak, ferry, yacht, catamaran, rowboat,
  gondola, raft, barge, dinghy
traffic light: stoplight, stop light, traffic signal, street light, streetlight
fire hydrant: hydrant
stop sign:
parking meter:
bench: park bench, pew, !bench press
bird: seagull, gull, pigeon, duck, mallard, goose, swan, parrot, parakeet, macaw, owl, eagle, falcon, hawk, vulture, sparrow,
  finch, crow, raven, robin, heron, egret, hummingbird, woodpecker, ostrich, peacock, flamingo, penguin, chicken, rooster,
  turkey, pelican, !bird house, !fried chicken, !chicken breast, !chicken wing, !grilled chicken, !turkey sandwich
cat: kitten, kitty, tabby
dog: puppy, pup, doggy, doggie, mutt, hound, greyhound, terrier, retriever, labrador, beagle, spaniel, collie, sheepdog,
  poodle, bulldog, dachshund, chihuahua, corgi, pug, husky, !hot dog, !corn dog
horse: pony, foal, stallion, mare, colt, !rocking horse
sheep: lamb, ewe, ram, goat
cow: cattle, bull, calf, ox, heifer, steer, buffalo, bison
elephant:
bear: polar bear, grizzly, grizzly bear, panda, !teddy bear, !stuffed bear, !toy bear
zebra: !zebra crossing
giraffe:
backpack: rucksack, knapsack, back pack
umbrella: parasol
handbag: purse, hand bag, shoulder bag, pocketbook, wallet, briefcase
tie: necktie, neck tie, bow tie, !tie dye
suitcase: luggage, baggage, suit case
frisbee: flying disc, flying disk
skis: ski, !water ski, !jet ski, !ski lift, !ski slope, !ski resort, !ski jump, !ski pole
snowboard: snow board
sports ball: soccer ball, tennis ball, basketball, baseball, football, volleyball, ball, !baseball bat, !baseball glove,
  !baseball mitt, !baseball game, !baseball field, !baseball uniform, !baseball cap, !basketball court, !basketball game,
  !football field, !football game, !volleyball court, !ball game, !ball gown
kite:
baseball bat: bat
baseball glove: catcher's mitt, baseball mitt, mitt
skateboard: skate board
surfboard: surf board
tennis racket: racket, racquet, tennis racquet
bottle: water bottle, wine bottle, beer bottle
wine glass: wineglass, glass of wine, champagne glass, goblet
cup: mug, teacup, coffee cup, coffee mug
fork:
knife: pocketknife, butter knife, steak knife
spoon: teaspoon, tablespoon
bowl: container
banana: !banana bread
apple:
sandwich: burger, hamburger, cheeseburger, sub sandwich, panini, turkey sandwich
orange: tangerine, clementine
broccoli:
carrot: !carrot cake
hot dog: hotdog, corn dog
pizza: !pizza box, !pizza parlor
donut: doughnut, bagel
cake: cupcake, cheesecake, pancake, birthday cake, wedding cake, carrot cake
chair: armchair, seat, stool, rocking chair, office chair, !chair lift
couch: sofa, loveseat, settee, recliner, futon
potted plant: houseplant, house plant, pot plant, plant in a pot, plant in pots, flower pot
bed: bunk bed, !flower bed, !bed of flowers, !river bed, !truck bed, !bed of a truck
dining table: table, kitchen table, dinner table, coffee table, desk, computer desk, !table tennis, !table cloth, !table lamp
toilet: toilet seat, commode, urinal, !toilet paper, !toilet brush
tv: television, television set, tv set, monitor, computer monitor, !tv stand, !tv show, !tv remote
laptop: computer, netbook, macbook, notebook computer, laptop computer
mouse: computer mouse, !mickey mouse, !mouse pad
remote: remote control, tv remote, wii remote
keyboard: computer keyboard, !piano keyboard
cell phone: cellphone, mobile phone, smartphone, smart phone, phone, iphone, telephone, !phone booth
microwave: microwave oven
oven: stove, stovetop, range oven, !microwave oven, !toaster oven
toaster: toaster oven
sink: washbasin, wash basin
refrigerator: fridge, freezer
book: textbook, novel, cookbook, !book shelf, !book case
clock: clock tower, alarm clock, wall clock
vase:
scissors: pair of scissors, shears
teddy bear: teddy, teddybear, stuffed bear, toy bear, stuffed animal, plush bear
hair drier: hair dryer, blow dryer, hairdryer
toothbrush: tooth brush
"""
# Classes of ImageNet and Caltech101 whose last word is not in common use; a plainer word for them also counts.
_PLAINER = """
dog: affenpinscher, airedale, appenzeller, basenji, basset, bloodhound, bluetick, borzoi, boston bull, bouvier des flandres,
  boxer, brabancon griffon, briard, bullterrier, cairn, clumber, coonhound, dalmatian, dandie dinmont, deerhound, dhole,
  dingo, elkhound, english springer, entlebucher, foxhound, great dane, great pyrenees, groenendael, keeshond, kelpie,
  komondor, kuvasz, leonberg, lhasa, malamute, malinois, mexican hairless, miniature pinscher, newfoundland, otterhound,
  papillon, pekinese, pembroke, pinscher, pointer, pomeranian, redbone, rhodesian ridgeback, rottweiler, saint bernard,
  saluki, samoyed, schipperke, schnauzer, setter, shih tzu, vizsla, weimaraner, whippet, wolfhound
bird: albatross, american coot, bee eater, bittern, brambling, bulbul, bustard, chickadee, cock, cockatoo, coucal, crane,
  dowitcher, drake, emu, gallinule, goldfinch, grey owl, grouse, hen, hornbill, ibis, indigo bunting, jacamar, jay, junco,
  kite, limpkin, lorikeet, magpie, merganser, oystercatcher, partridge, prairie chicken, quail, redshank, ruddy turnstone,
  sandpiper, spoonbill, stork, toucan, water ouzel, african grey
snake: boa constrictor, cobra, diamondback, horned viper, mamba, python, sidewinder
lizard: agama, alligator lizard, banded gecko, chameleon, gecko, gila monster, iguana, komodo dragon, whiptail
salamander: axolotl, eft, newt
frog: bullfrog, toad
turtle: hawksbill, leatherback, loggerhead, mud turtle, terrapin, tortoise
monkey: baboon, capuchin, colobus, guenon, langur, macaque, marmoset, patas, titi
ape: chimpanzee, gibbon, gorilla, orangutan, siamang
fish: anemone fish, barracouta, bass, coho, eel, gar, lionfish, puffer, rock beauty, sturgeon, tench
shark: hammerhead, tiger shark, great white
beetle: ladybug, weevil
butterfly: admiral, lycaenid, monarch, ringlet, sulphur
spider: black widow, tarantula, harvestman
rabbit: angora, hare
wolf: coyote
antelope: gazelle, gerenuk, hartebeest, impala
elephant: tusker
panda: giant panda
pig: hog, wild boar, warthog
horse: sorrel
mushroom: agaric, bolete, coral fungus, earthstar, gyromitra, hen of the woods, stinkhorn
flower: daisy, lotus, sunflower, water lilly, water lily, yellow lady's slipper
apple: granny smith
corn: ear
bread: french loaf
boat: fireboat, ketch, liner, schooner, trimaran
car: beach wagon, racer
airplane: warplane
bicycle: bicycle built for two, bicycle-built-for-two
motorcycle: motorbikes
piano: upright
gun: revolver, assault rifle, rifle
hat: bonnet, cowboy hat, mortarboard, sombrero
shoe: loafer, clog
glasses: sunglass, sunglasses
cougar: cougar face
person: ballplayer, faces, groom, scuba diver
"""
# Labels whose last word means something else: only the whole label names these.
_WHOLE = {
    *("african grey", "black widow", "cassette player", "cd player", "electric ray", "fire engine", "fire screen"),
    *("granny smith", "guinea pig", "hand blower", "home theater", "ice cream", "madagascar cat", "milk can"),
    *("potter's wheel", "record player", "sea anemone", "sea cucumber", "sea horse", "sea lion", "sea slug", "sea urchin"),
    *("tape player", "traffic light", "web site", "window screen", "window shade", "yellow lady's slipper"),
}
_WORD = re.compile(r"[a-z]+|[^a-z\s]")  # punctuation counts as a word: no phrase continues after a comma
# A young or a full-grown animal, whose first word would be a person: "baby elephant", "adult giraffe".
_YOUNG_ANIMAL = re.compile(
    r"\b(?:baby|adult) (?=(?:bird|duck|cat|dog|horse|sheep|goat|cow|elephant|bear|zebra|giraffe|animal|cub)s?\b)"
)
# "orange" is the fruit at the end of a phrase, but a colour before a thing or another colour.
_ORANGE_COLOUR = re.compile(
    r"\borange (?=(?:and|or) (?:white|black|yellow|red|blue|green|brown|gray|grey|pink|purple)\b"
    r"|(?!(?:and|or|on|in|is|with|next|beside|to|at|from|that|which)\b)[a-z])"
)
_PLURALS = {
    "person": "persons",
    "people": "people",
    "child": "children",
    "skis": "skis",
    "scissors": "scissors",
    "shears": "shears",
    "knife": "knives",
    "goose": "geese",
    "calf": "calves",
    "ox": "oxen",
    "cattle": "cattle",
    "wolf": "wolves",
}


def _table(text):
    """[(name, [words]), ...] of "name: word, word, ..." lines, which indented lines continue."""
    lines = re.sub(r"\n\s+", " ", text.strip()).splitlines()
    return [
        (name, [w.strip() for w in words.split(",") if w.strip()]) for name, _, words in (n.partition(":") for n in lines)
    ]


@cache
def _phrases():
    """{phrase: its kind, or None if it only hides a word}."""
    phrases = {}
    for kind, words in _table(_WORDS):
        for word in (kind, *words):
            means = None if word.startswith("!") else kind
            for form in (word.lstrip("!"), plural_of(word.lstrip("!"))):
                if means is not None or form not in phrases:  # a kind's own phrase counts, even if another kind hides it
                    phrases[form] = means
    return phrases


@cache
def _by_first_word():
    """{first word: [(all words of a phrase, its kind), ...], the longest phrase first}."""
    found = {}
    for phrase in sorted(_phrases(), key=len, reverse=True):
        words = _WORD.findall(phrase)
        found.setdefault(words[0], []).append((words, _phrases()[phrase]))
    return found


def plural_of(phrase):
    """The plural of a phrase, formed on its head: "glasses of wine", "plants in a pot", "computer mice", "policemen"."""
    head, join, rest = re.fullmatch(r"(.+?)( of a | of | in a | in |$)(.*)", phrase).groups()
    *before, noun = head.split()
    many = _PLURALS.get(noun) or (f"{noun[:-3]}men" if noun.endswith("man") else plural(noun))
    return " ".join([*before, many]) + join + rest


KINDS = tuple(kind for kind, _ in _table(_WORDS))


def named_kinds(text):
    """COCO kinds that a text names, in order, with repetitions: "two dogs and a hot dog" -> dog, hot dog."""
    return list(_kinds_in(text))


@lru_cache(4096)  # an image's captions are read several times while texts about it are written
def _kinds_in(text):
    words = _WORD.findall(_YOUNG_ANIMAL.sub("", _ORANGE_COLOUR.sub(" ", text.lower().replace("-", " "))))
    phrases, named, end = _by_first_word(), [], 0
    for i, word in enumerate(words):
        if i < end or word not in phrases:
            continue
        phrase, kind = next((found for found in phrases[word] if words[i : i + len(found[0])] == found[0]), ([], None))
        end = i + len(phrase)
        named += [kind] if kind else []
    return named


def names_label(text, label):
    """Whether a text names an image's label: the whole label, its head noun, or a plainer word for it.

    "Egyptian cat": "an Egyptian cat", "cats", and COCO's other words for a cat; "Apple, Red Delicious" (a thing and its
    variety): also "an apple"; "Weimaraner": "a dog". Other words for a person ("man" for "groom") do not count.
    """
    phrases, kinds = _names(label)
    return bool(_pattern(phrases).search(_plain(text)) or kinds & set(named_kinds(text)))


def label_kinds(label):
    """The COCO kinds that a label may be, except people: "coffee mug" -> {"cup"}, "red fox" -> none."""
    return _names(label)[1]


def same_name(label, other):
    """Whether one word names both labels, as an image of one may show the other: "wine bottle" and "beer bottle"."""
    (phrases, kinds), (others, other_kinds) = _names(label), _names(other)
    return not (phrases.isdisjoint(others) and kinds.isdisjoint(other_kinds))


@cache
def _names(label):
    """(the phrases that name a label, without COCO's words; the kinds of those words)."""
    plainer = {word: name for name, words in _table(_PLAINER) for word in words}
    phrases = {phrase for part in map(_plain, label.split(",")) if part for phrase in _named_by(part)}
    phrases |= {plainer[phrase] for phrase in phrases if phrase in plainer}
    kinds = {phrase: _phrases().get(phrase) for phrase in phrases - {"person"}}
    of_coco = {phrase for phrase, kind in kinds.items() if kind not in (None, "person")}
    return frozenset(kinds) - of_coco, frozenset(kinds[phrase] for phrase in of_coco)


@cache
def _pattern(phrases):
    forms = sorted({form for phrase in phrases for form in (phrase, plural_of(phrase))}, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, forms))})\b" if forms else "(?!)")


def _named_by(phrase):
    """A phrase, its ending ("red fox" -> "fox"), and both in the singular."""
    words = phrase.split()
    starts = range(1) if phrase in _WHOLE or " of " in phrase else range(len(words))
    endings = {" ".join(words[i:]) for i in starts}
    known = [ending for ending in endings if ending in _phrases()]
    if known and phrase not in _WHOLE:  # COCO's longest phrase decides: a toilet seat is not a seat
        endings = {ending for ending in endings if len(ending) >= len(max(known, key=len))}
    return endings | {ending[:-1] for ending in endings if ending.endswith("s") and not ending.endswith(("ss", "us", "is"))}


def _plain(text):
    return re.sub(r"[^a-z' ]+", " ", text.lower().replace("-", " ")).strip()
