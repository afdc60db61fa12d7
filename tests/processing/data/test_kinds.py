"""The words for COCO's kinds and for the classes of labelled images."""

import pytest

from minigpt4.processing.data.kinds import KINDS, label_kinds, named_kinds, names_label, same_name


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("Two dogs eat a hot dog near an orange cat.", ["dog", "hot dog", "cat"]),
        ("An orange and two oranges, an orange and white kitten", ["orange", "orange", "cat"]),
        ("A teddy bear sits on a couch; people with knives.", ["teddy bear", "couch", "person", "knife"]),
        ("a baseball player swings a baseball bat", ["person", "baseball bat"]),
        ("The bus stop is empty, and so is the toy box.", []),
        ("men on motor-bikes, a cupcake", ["person", "motorcycle", "cake"]),
        ("Baby elephants, an adult giraffe and a baby", ["elephant", "giraffe", "person"]),
        ("a passenger train, passengers, gentlemen's ties", ["train", "person", "person", "tie"]),
        ("two glasses of wine, pairs of scissors, plants in pots", ["wine glass", "scissors", "potted plant"]),
        ("a jet ski, a jet", ["airplane"]),
        ("computer mice beside monitors on desks, a toilet seat", ["mouse", "tv", "dining table", "toilet"]),
    ],
)
def test_coco_kinds_in_a_text(text, kinds):
    assert len(KINDS) == 80 and named_kinds(text) == kinds


@pytest.mark.parametrize(
    ("label", "named", "not_named"),
    [
        ("Egyptian cat", ["A cat lies there.", "two kittens", "an Egyptian cat"], ["An Egyptian vase.", "a dog"]),
        ("Weimaraner", ["a dog", "A Weimaraner runs."], ["a cat"]),
        ("Apple, Red Delicious", ["Apples in a shop.", "a Red Delicious"], ["a pear", "a red car"]),
        ("Juice, God Morgon Orange Juice", ["a carton of juice", "Orange juice."], ["an orange", "milk"]),
        ("wine bottle", ["Bottles of wine"], ["a glass of wine"]),
        ("airplanes", ["a plane", "An airplane in the sky."], ["a kite"]),
        ("cellphone", ["somebody's phone"], ["a camera"]),
        ("toilet seat", ["a toilet"], ["a chair", "a seat"]),
        ("sea horse", ["a sea-horse"], ["a horse"]),
        ("milk can", ["a milk can"], ["You can see a dog."]),
        ("orange", ["an orange"], ["an orange cat"]),
        ("hen-of-the-woods", ["a mushroom"], ["the woods"]),
        ("groom", ["a groom"], ["a man"]),
        ("red wolf", ["wolves"], ["a red car"]),
    ],
)
def test_words_that_name_a_label(label, named, not_named):
    assert [text for text in named if not names_label(text, label)] == []
    assert [text for text in not_named if names_label(text, label)] == []


def test_the_kinds_of_a_label_and_labels_with_a_name_in_common():
    assert label_kinds("coffee mug") == {"cup"} and not label_kinds("red fox") and not label_kinds("groom")
    assert same_name("wine bottle", "beer bottle") and same_name("Weimaraner", "Border collie")
    assert not same_name("wine bottle", "red wine") and not same_name("Apple, Pink Lady", "Pear, Anjou")
