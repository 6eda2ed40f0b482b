"""LVIS annotations with COCO's categories, which judge a COCO detector by finer outlines than COCO's own.

The protocol of PointRend's and SegRefiner's tables: images that both data sets annotate, LVIS objects of categories
that COCO has too, and LVIS' federated evaluation.
"""

from __future__ import annotations

from typing import Any

from phoenix_d2.data.mask_json import Record

# WordNet synsets by COCO category id, after LVIS' own coco_to_synset.json. LVIS calls its cow "beef.n.01"; it has no
# "frank.n.02" (hot dog), so that nothing is said about COCO's hot dogs
COCO_SYNSETS = {
    1: "person.n.01", 2: "bicycle.n.01", 3: "car.n.01", 4: "motorcycle.n.01", 5: "airplane.n.01", 6: "bus.n.01",
    7: "train.n.01", 8: "truck.n.01", 9: "boat.n.01", 10: "traffic_light.n.01", 11: "fireplug.n.01",
    13: "stop_sign.n.01", 14: "parking_meter.n.01", 15: "bench.n.01", 16: "bird.n.01", 17: "cat.n.01",
    18: "dog.n.01", 19: "horse.n.01", 20: "sheep.n.01", 21: "beef.n.01", 22: "elephant.n.01", 23: "bear.n.01",
    24: "zebra.n.01", 25: "giraffe.n.01", 27: "backpack.n.01", 28: "umbrella.n.01", 31: "bag.n.04",
    32: "necktie.n.01", 33: "bag.n.06", 34: "frisbee.n.01", 35: "ski.n.01", 36: "snowboard.n.01", 37: "ball.n.06",
    38: "kite.n.03", 39: "baseball_bat.n.01", 40: "baseball_glove.n.01", 41: "skateboard.n.01",
    42: "surfboard.n.01", 43: "tennis_racket.n.01", 44: "bottle.n.01", 46: "wineglass.n.01", 47: "cup.n.01",
    48: "fork.n.01", 49: "knife.n.01", 50: "spoon.n.01", 51: "bowl.n.03", 52: "banana.n.02", 53: "apple.n.01",
    54: "sandwich.n.01", 55: "orange.n.01", 56: "broccoli.n.01", 57: "carrot.n.01", 58: "frank.n.02",
    59: "pizza.n.01", 60: "doughnut.n.02", 61: "cake.n.03", 62: "chair.n.01", 63: "sofa.n.01", 64: "pot.n.04",
    65: "bed.n.01", 67: "dining_table.n.01", 70: "toilet.n.02", 72: "television_receiver.n.01", 73: "laptop.n.01",
    74: "mouse.n.04", 75: "remote_control.n.01", 76: "computer_keyboard.n.01", 77: "cellular_telephone.n.01",
    78: "microwave.n.02", 79: "oven.n.01", 80: "toaster.n.02", 81: "sink.n.01", 82: "electric_refrigerator.n.01",
    84: "book.n.01", 85: "clock.n.01", 86: "vase.n.01", 87: "scissors.n.01", 88: "teddy.n.01",
    89: "hand_blower.n.01", 90: "toothbrush.n.01",
}  # fmt: skip


def cocofy(lvis: Record, coco: Record) -> Record:
    """Restrict LVIS annotations to what COCO has too, and give them COCO's category ids.

    Args:
        lvis: content of an LVIS annotation file.
        coco: content of a COCO annotation file; only its images count.

    Returns:
        An annotation file's content of the images that both have: LVIS' annotations of `COCO_SYNSETS` under COCO's
        category ids, all else as in LVIS. Categories of which no image says whether it has them are left out.

    Raises:
        ValueError: the two files have no image in common, or `lvis` is none of LVIS.
    """
    coco_ids = _coco_ids(lvis)
    in_coco = {image["id"] for image in coco["images"]}
    images = [
        {**image, **{key: _mapped(image[key], coco_ids) for key in ("neg_category_ids", "not_exhaustive_category_ids")}}
        for image in lvis["images"]
        if image["id"] in in_coco
    ]
    if not images:
        raise ValueError(
            f"None of the {len(lvis['images'])} LVIS images is among the {len(in_coco)} of the COCO file: name the "
            "COCO file of the same split; images have the same ids in both."
        )
    kept = {image["id"] for image in images}
    annotations = [
        {**annotation, "category_id": coco_ids[annotation["category_id"]]}
        for annotation in lvis["annotations"]
        if annotation["image_id"] in kept and annotation["category_id"] in coco_ids
    ]
    judged = {annotation["category_id"] for annotation in annotations}
    judged.update(*(image["neg_category_ids"] for image in images))
    categories = [
        {**category, "id": coco_ids[category["id"]]}
        for category in lvis["categories"]
        if coco_ids.get(category["id"]) in judged
    ]
    return {**lvis, "images": images, "annotations": annotations, "categories": categories}


def _coco_ids(lvis: Record) -> dict[Any, int]:
    """COCO category ids by LVIS category id."""
    if not all("synset" in category for category in lvis["categories"]) or not all(
        "neg_category_ids" in image and "not_exhaustive_category_ids" in image for image in lvis["images"]
    ):
        raise ValueError(
            "LVIS categories have a 'synset', and LVIS images 'neg_category_ids' and 'not_exhaustive_category_ids': "
            "some lack them. Pass a file as LVIS publishes it, such as lvis_v1_val.json."
        )
    by_synset = {synset: coco_id for coco_id, synset in COCO_SYNSETS.items()}
    return {c["id"]: by_synset[c["synset"]] for c in lvis["categories"] if c["synset"] in by_synset}


def _mapped(category_ids: list[Any], coco_ids: dict[Any, int]) -> list[int]:
    return [coco_ids[category_id] for category_id in category_ids if category_id in coco_ids]
