"""COCO and LVIS mask files: read and checked whole before any work starts, written all or nothing.

Two kinds of file hold masks: an **annotation file** is a dict with "images", "annotations" and
"categories"; a **results file** is a list of predictions. Records stay the plain dicts that they are
in the file, so that fields which this package does not know travel along untouched.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pycocotools.mask as mask_util
from numpy.typing import NDArray

from phoenix_d2.data.visual_cues import check_cues
from phoenix_d2.files import atomic_path, listed

Record: TypeAlias = dict[str, Any]
Segmentation: TypeAlias = Sequence[Any] | Mapping[str, Any]
PathLike: TypeAlias = str | os.PathLike[str]

_ID_KEYS = ("id", "image_id", "category_id", "gt_id")
# beyond any image that Pillow opens; pycocotools walks polygons in steps of a fifth of a pixel, and dies far out
_MAX_COORDINATE = 1e5


def read_json(path: PathLike) -> Any:
    """The parsed content of a JSON file.

    Raises:
        ValueError: the file is not JSON, for instance because its writer was interrupted.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path}: not valid JSON ({error}). If the file is cut short, write or copy it again."
        ) from error


def is_results(data: Any) -> bool:
    """Whether parsed JSON is a results list (True) or an annotation file (False)."""
    return isinstance(data, list)


def load_annotations(path: PathLike, *, check_categories: bool = False) -> Record:
    """Read a COCO or LVIS annotation file and check every record; see `check_annotations`."""
    data: Record = read_json(path)
    check_annotations(data, source=path, check_categories=check_categories)
    return data


def load_results(path: PathLike, *, annotations: Record | None = None, check_categories: bool = False) -> list[Record]:
    """Read a COCO results file and check every record; see `check_results`."""
    data: list[Record] = read_json(path)
    check_results(data, source=path, annotations=annotations, check_categories=check_categories)
    return data


def as_results(data: Any, *, source: PathLike) -> list[Record]:
    """The masks of a parsed file as results: those of an annotation file, which is checked, are certain.

    Args:
        data: what `read_json` returned of a results or an annotation file.
        source: the file's name, for messages.

    Returns:
        The results as they are, not checked yet; of annotations copies with score 1, without crowds.

    Raises:
        ValueError: it is an annotation file with a mistake, see `check_annotations`.
    """
    if is_results(data):
        return list(data)
    check_annotations(data, source=source)
    return [{"score": 1.0, **record} for record in data["annotations"] if not record.get("iscrowd", 0)]


def check_annotations(data: Any, *, source: PathLike, check_categories: bool = False) -> None:
    """Check parsed annotations: the fields, that ids are unique and images known, that every mask decodes.

    Args:
        data: what `read_json` returned.
        source: the file's name, for messages.
        check_categories: whether categories must be known too, as training and evaluation by class need it.

    Raises:
        ValueError: something is wrong; the message names the file, the first records (counted from 0 where they have
            no id) and the remedy.
    """
    refuse(annotation_mistakes(data, source=source, check_categories=check_categories))


def annotation_mistakes(data: Any, *, source: PathLike, check_categories: bool = False) -> dict[int, str]:
    """What is wrong with records of parsed annotations, by the places of those that are wrong; see `check_annotations`.

    Raises:
        ValueError: something else is wrong with the file, or the ids of its records are.
    """
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(_get(data, key), list)]
    if missing:
        raise ValueError(
            f"{source}: expected an annotation file, a dict with the lists 'images', 'annotations' and 'categories'; "
            f"{', '.join(missing)} not found{' (this is a list: a results file?)' if is_results(data) else ''}."
        )
    _check_ids(data["images"], f"{source}: image", ("height", "width"))
    for image in data["images"]:
        _check_size(image, f"{source}: image id {image['id']!r}")
    _check_ids(data["categories"], f"{source}: category")
    _check_ids(data["annotations"], f"{source}: annotation")
    sizes, categories = image_sizes(data), category_ids(data) if check_categories else None

    def check(place: int, annotation: Record) -> None:
        _check_mask_record(annotation, f"{source}: annotation id {annotation['id']!r}", sizes, categories)

    return _mistakes(data["annotations"], check)


def check_results(
    data: Any, *, source: PathLike, annotations: Record | None = None, check_categories: bool = False
) -> None:
    """Check parsed results: the fields, finite scores, that every mask decodes.

    Args:
        data: what `read_json` returned.
        source: the file's name, for messages.
        annotations: the annotation file that the results belong to. With it, image ids, mask sizes
            and `gt_id` (the annotation that a result is a prediction of) are checked against it.
        check_categories: whether the category ids must be those of `annotations` too, as evaluation by
            class needs it: COCO's evaluation leaves out unknown ones without a word.

    Raises:
        ValueError: something is wrong; the message names the file, the first records (counted from 0) and the remedy.
    """
    refuse(result_mistakes(data, source=source, annotations=annotations, check_categories=check_categories))


def result_mistakes(
    data: Any, *, source: PathLike, annotations: Record | None = None, check_categories: bool = False
) -> dict[int, str]:
    """What is wrong with parsed results, by the places of those that are wrong; see `check_results`.

    Raises:
        ValueError: they are no list.
    """
    if not is_results(data):
        raise ValueError(
            f"{source}: expected a results file, a list of predictions, found a {type(data).__name__}. "
            "Pass an annotation file as annotations; a results file is the list that COCO evaluation takes."
        )
    known = annotations or {}
    sizes = None if annotations is None else image_sizes(annotations)
    categories = category_ids(annotations) if annotations is not None and check_categories else None
    image_of = {annotation["id"]: annotation["image_id"] for annotation in known.get("annotations", ())}

    def check(place: int, result: Any) -> None:
        where = f"{source}: result {place} (counted from 0)"
        _check_mask_record(result, where, sizes, categories)
        _check_score(result, where)
        if annotations is not None and "gt_id" in result and image_of.get(result["gt_id"]) != result["image_id"]:
            raise ValueError(
                f"{where}: gt_id {result['gt_id']!r} is no annotation of image {result['image_id']!r}. Use the "
                "annotation file that the results were made for, or remove gt_id."
            )

    return _mistakes(data, check)


def refuse(mistakes: Mapping[int, str], remedy: str = "") -> None:
    """Raise a ValueError that names the first few mistakes, if there are any, and a further remedy."""
    if mistakes:
        count = f"{len(mistakes)} records have mistakes:{listed(mistakes.values())}"
        text = count if len(mistakes) > 1 else next(iter(mistakes.values()))
        raise ValueError("\n".join([text, remedy] if remedy else [text]))


def image_sizes(annotations: Record) -> dict[Any, tuple[int, int]]:
    """(height, width) in pixels of every image of an annotation file, by image id."""
    return {image["id"]: (int(image["height"]), int(image["width"])) for image in annotations["images"]}


def category_ids(annotations: Record) -> set[Any]:
    """The ids of the categories of an annotation file."""
    return {category["id"] for category in annotations["categories"]}


def draw_images(annotations: Record, max_images: int | None, *, seed: int = 0) -> Record:
    """The part of an annotation file that is of some images, drawn without regard to what is in them.

    Args:
        annotations: content of the file, whose order stays.
        max_images: images to draw; all when None.
        seed: of the draw.
    """
    images = annotations["images"]
    order = np.random.default_rng(seed).permutation(len(images))
    return only_images(annotations, {images[index]["id"] for index in order[:max_images]})


def only_images(annotations: Record, image_ids: Collection[Any]) -> Record:
    """The part of an annotation file that is of some images, its order as it was.

    Args:
        annotations: content of the file.
        image_ids: of those images; ids that it lacks do not matter.
    """
    images = [image for image in annotations["images"] if image["id"] in image_ids]
    records = [annotation for annotation in annotations["annotations"] if annotation["image_id"] in image_ids]
    return {**annotations, "images": images, "annotations": records}


def image_file_name(image: Record) -> str:
    """Where an image of an annotation file lies in its folder: "file_name", or in LVIS the end of "coco_url".

    Raises:
        ValueError: the image has neither.
    """
    if "file_name" in image:
        return str(image["file_name"])
    if "coco_url" in image:
        return "/".join(image["coco_url"].split("/")[-2:])
    raise ValueError(f"Image id {image['id']} has neither 'file_name' nor 'coco_url': add the name of its file.")


def segmentation_to_rle(segmentation: Segmentation, height: int, width: int) -> Record:
    """One compressed RLE for a segmentation of any COCO form.

    Args:
        segmentation: polygons [[x0, y0, x1, y1, ...], ...] in pixels; or RLE {"size": [height, width],
            "counts": ...} with a list of counts or COCO's compressed string (str or bytes).
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        {"size": [height, width], "counts": bytes}.

    Raises:
        ValueError: the segmentation is malformed or made for another image size.
    """
    if isinstance(segmentation, Mapping):
        counts = _rle_counts(segmentation, (height, width))
        if isinstance(counts, bytes):
            return {"size": [height, width], "counts": counts}
        return dict(mask_util.frPyObjects({"size": [height, width], "counts": counts}, height, width))
    _check_polygons(segmentation)
    return dict(mask_util.merge(mask_util.frPyObjects(segmentation, height, width)))


def decode_segmentation(segmentation: Segmentation, height: int, width: int) -> NDArray[np.bool_]:
    """(height, width) bool mask of a segmentation; arguments and errors as `segmentation_to_rle`."""
    return np.asarray(mask_util.decode(segmentation_to_rle(segmentation, height, width))).astype(bool)


def segmentation_area(segmentation: Segmentation) -> float:
    """Area in pixels of a segmentation of any COCO form; of polygons the sum of their geometric areas."""
    if isinstance(segmentation, Mapping):
        height, width = segmentation["size"]
        return float(mask_util.area(segmentation_to_rle(segmentation, height, width)))
    areas = []
    for polygon in segmentation:
        x, y = np.asarray(polygon, dtype=np.float64).reshape(-1, 2).T
        # the shoelace formula
        areas.append(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
    return float(sum(areas))


def annotation_area(annotation: Record) -> float:
    """Area in pixels that an annotation states, or else that its segmentation has."""
    return float(annotation["area"] if "area" in annotation else segmentation_area(annotation["segmentation"]))


def complete_annotation(annotation: Record, size: tuple[int, int]) -> None:
    """Give an annotation those of "bbox", "area" and "iscrowd" that it lacks, in place, as its mask has them.

    Args:
        annotation: of a mask that decodes; one without a mask stays as it is.
        size: (height, width) of its image in pixels.
    """
    if not annotation.get("segmentation"):
        return
    if "bbox" not in annotation:
        annotation["bbox"] = mask_util.toBbox(segmentation_to_rle(annotation["segmentation"], *size)).tolist()
    annotation.setdefault("area", annotation_area(annotation))
    annotation.setdefault("iscrowd", 0)


def encode_mask(mask: NDArray[np.bool_]) -> Record:
    """Compressed RLE of an (H, W) bool mask, ready for JSON: {"size": [H, W], "counts": str}."""
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def mask_fields(mask: NDArray[np.bool_]) -> Record:
    """What annotations say of an (H, W) bool mask: "segmentation" (compressed RLE), "bbox" and "area"."""
    rle = encode_mask(mask)
    return {"segmentation": rle, "bbox": mask_util.toBbox(rle).tolist(), "area": int(mask_util.area(rle))}


def run_lengths(counts: Any) -> NDArray[np.int64]:
    """Run lengths of RLE counts, plain (a list) or compressed (str or bytes).

    Compressed, a run is a little-endian string of five-bit groups, one a character from "0" on, with
    a sixth bit where the string goes on and the sign in the last group's fifth bit; from the fourth run
    on, it is the difference to the run before the last.

    Raises:
        ValueError: they are neither, or cut short.
    """
    if not isinstance(counts, str | bytes):
        runs = np.asarray(counts)
        if runs.ndim != 1 or runs.dtype.kind not in "iu":
            raise ValueError("expected a string or a list of integers")
        return runs.astype(np.int64)
    characters = counts.encode("ascii") if isinstance(counts, str) else counts
    codes = np.frombuffer(characters, np.uint8).astype(np.int64) - ord("0")
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("empty, cut short, or with characters that RLE does not use")
    ends = np.flatnonzero(codes < 32) + 1
    starts = np.concatenate([[0], ends[:-1]])
    bits = 5 * (ends - starts)
    if bits.max() > 35:
        raise ValueError("a run of more than 32 bits")
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, ends - starts))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= np.where(codes[ends - 1] & 16, 1 << bits, 0)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


def write_json_atomically(path: PathLike, obj: Any) -> None:
    """Write JSON so that `path` holds either its old content or all of the new, never a part; see `atomic_path`."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(obj, file)
        file.flush()
        os.fsync(file.fileno())


def _get(record: Any, key: str) -> Any:
    return record.get(key) if isinstance(record, Mapping) else None


def _check_fields(record: Any, fields: Iterable[str], where: str) -> None:
    """Check that a record has `fields`, and that ids among its fields can be ids."""
    missing = [field for field in fields if _get(record, field) is None]
    if missing:
        raise ValueError(f"{where}: {', '.join(map(repr, missing))} missing. Add it, or remove the record.")
    for key in _ID_KEYS:
        if not isinstance(record.get(key, ""), str | int | float | None):
            raise ValueError(f"{where}: {key!r} must be a number or a string, found {_shortened(record[key])}.")


def _check_size(image: Record, where: str) -> None:
    for key in ("height", "width"):
        side = image[key]
        is_whole = isinstance(side, int) or (isinstance(side, float) and side.is_integer())
        if not is_whole or side < 1:
            raise ValueError(
                f"{where}: {key!r} must be a positive whole number, found {side!r}. Write the size of the image in "
                "pixels."
            )


def _check_ids(records: list[Any], where: str, fields: tuple[str, ...] = ()) -> None:
    """Check that every record has an id of its own, and `fields`."""
    seen = set()
    for index, record in enumerate(records):
        _check_fields(record, ("id", *fields), f"{where} {index} (counted from 0)")
        if record["id"] in seen:
            raise ValueError(f"{where} id {record['id']!r} occurs more than once. Give every record its own id.")
        seen.add(record["id"])


def _check_mask_record(
    record: Any, where: str, sizes: Mapping[Any, tuple[int, int]] | None, categories: Collection[Any] | None
) -> None:
    """Check what annotations and results share: fields, a known image and category, a mask of that image's size."""
    _check_fields(record, ("image_id", "category_id", "segmentation"), where)
    image_id, category_id = record["image_id"], record["category_id"]
    where = f"{where} (image {image_id!r})"
    if sizes is not None and image_id not in sizes:
        # an id that differs in its kind alone
        other = str(image_id) if not isinstance(image_id, str) else _number(image_id)
        remedy = (
            f"It has {other!r}: write both alike."
            if other in sizes
            else "Use the annotation file that the record was made for."
        )
        raise ValueError(f"{where}: no such image among the {len(sizes)} images of the annotation file. {remedy}")
    if categories is not None and category_id not in categories:
        raise ValueError(
            f"{where}: category id {category_id!r} is not among the {len(categories)} categories of the annotation "
            "file. Add the category, map the ids, or evaluate class-agnostically."
        )
    image_size = None if sizes is None else sizes[image_id]
    segmentation = record["segmentation"]
    try:
        if isinstance(segmentation, Mapping):
            _rle_counts(segmentation, image_size)
        else:
            _check_polygons(segmentation)
        check_cues(record, image_size)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _number(text: str) -> int | None:
    """The whole number that a text writes, if any."""
    return int(text) if text.isdecimal() else None


def _check_score(result: Record, where: str) -> None:
    score = result.get("score")
    # NaN fails any comparison
    if isinstance(score, bool) or not (isinstance(score, int | float) and abs(score) <= sys.float_info.max):
        raise ValueError(
            f"{where} (image {result['image_id']!r}): score must be a finite number, found {score!r}. "
            "Correct the model or script that wrote it; a mask without a score of its own may have 1.0."
        )


def _mistakes(records: Sequence[Any], check: Callable[[int, Any], None]) -> dict[int, str]:
    mistakes = {}
    for place, record in enumerate(records):
        try:
            check(place, record)
        except ValueError as error:
            mistakes[place] = str(error)
    return mistakes


def _check_polygons(segmentation: Any) -> None:
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str | bytes):
        raise ValueError(
            f"segmentation must be a list of polygons or an RLE dict, found a {type(segmentation).__name__}."
        )
    if not segmentation:
        raise ValueError("segmentation has no polygon. Remove the record, or write an empty mask as RLE.")
    for polygon in segmentation:
        if not isinstance(polygon, Sequence) or len(polygon) % 2 or len(polygon) < 6:
            raise ValueError(
                f"a polygon needs at least 3 points, [x0, y0, x1, y1, x2, y2, ...], found {_shortened(polygon)}. "
                "Remove the polygon, or the record if it has no other."
            )
        for value in polygon:
            # NaN fails any comparison
            if not (isinstance(value, int | float) and abs(value) <= _MAX_COORDINATE):
                raise ValueError(
                    f"polygon coordinates must be finite numbers, none beyond {_MAX_COORDINATE:.0f} pixels, found "
                    f"{_shortened(value)}. Correct or remove the polygon."
                )


def _rle_counts(rle: Mapping[str, Any], image_size: tuple[int, int] | None) -> Any:
    """The checked counts of an RLE, bytes or a list: pycocotools fills what is missing with whatever lies in memory."""
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, Sequence) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"RLE size must be [height, width], found {size!r}.")
    if image_size is not None and tuple(size) != tuple(image_size):
        raise ValueError(
            f"the mask is {size[0]} x {size[1]} (height x width), its image is {image_size[0]} x {image_size[1]}. "
            "Resize the mask to its image."
        )
    try:
        runs = run_lengths(counts)
    except (ValueError, TypeError) as error:
        raise ValueError(f"RLE counts do not decode ({error}). Write the mask again.") from error
    if (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise ValueError(
            f"RLE counts do not decode (they cover {runs.sum()} pixels, the mask has {size[0] * size[1]}). "
            "Write the mask again."
        )
    return counts.encode("ascii") if isinstance(counts, str) else counts


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
