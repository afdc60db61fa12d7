"""Small data in the benchmarks' own file formats, with their pictures, for the tests of the evaluation."""

import json

CAPTIONS = {
    "a.png": ["a dog runs on the grass", "a brown dog is running", "dog on grass"],
    "b.png": ["two men ride bikes", "men on bicycles", "two people cycle"],
    "c.png": ["a child eats cake", "a kid eating a cake", "a boy with a cake"],
}
KINDS = {"a.png": ["dog"], "b.png": ["person", "bicycle"], "c.png": ["person", "cake", "fork"]}


def write_pictures(folder, picture, names):
    """A small picture for each name."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(folder / name)


def write_coco(folder, picture):
    """captions.json, instances.json and images/ as COCO has them."""
    write_pictures(folder / "images", picture, CAPTIONS)
    images = [{"id": i, "file_name": name} for i, name in enumerate(CAPTIONS)]
    captions = [{"image_id": i, "caption": text} for i, name in enumerate(CAPTIONS) for text in CAPTIONS[name]]
    names = sorted({kind for kinds in KINDS.values() for kind in kinds})
    objects = [{"image_id": i, "category_id": names.index(kind)} for i, name in enumerate(CAPTIONS) for kind in KINDS[name]]
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    write(folder / "captions.json", {"images": images, "annotations": captions})
    write(folder / "instances.json", {"images": images, "annotations": objects, "categories": categories})
    return folder


def write_pope(folder, picture):
    """coco_pope_random.json and coco_pope_popular.json, lines as POPE has them."""
    write_pictures(folder / "images", picture, CAPTIONS)
    for way in ("random", "popular"):
        lines = [
            {"question_id": i, "image": name, "text": f"Is there a {kind} in the image?", "label": label}
            for i, (name, kind, label) in enumerate(
                [("a.png", "dog", "yes"), ("a.png", "cat", "no"), ("b.png", "person", "yes"), ("c.png", "bus", "no")], 1
            )
        ]
        (folder / f"coco_pope_{way}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_vqa(folder, picture):
    """aokvqa.json and gqa.json, with pictures named as each data set names them."""
    write_pictures(folder / "images", picture, ["000000000007.jpg", "n1.jpg", "n2.jpg"])
    write(
        folder / "aokvqa.json",
        [
            {
                "question_id": "q7",
                "image_id": 7,
                "question": "What is the dog doing?",
                "choices": ["sleeping", "running", "eating", "barking"],
                "correct_choice_idx": 1,
                "direct_answers": ["running"] * 6 + ["playing"] * 2 + ["walking", "hunting"],
            }
        ],
    )
    choose = [{"operation": "select", "argument": "car (5)"}, {"operation": "choose color", "argument": "red|blue"}]
    write(
        folder / "gqa.json",
        {
            "1": {"imageId": "n1", "question": "Is it day?", "answer": "yes", "semantic": []},
            "2": {"imageId": "n1", "question": "Is the car red or blue?", "answer": "blue", "semantic": choose},
            "3": {"imageId": "n2", "question": "What is on the table?", "answer": "vase", "semantic": []},
        },
    )
    return folder


def write(path, content):
    """A JSON file."""
    path.write_text(json.dumps(content))
