"""The pictures that were shown: where they lie, how they are read and made into tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath

from runtime.errors import UserError
from runtime.pictures import fault, readable

# corrupt in the copy of ImageNet-EEG's pictures that is handed around (the published repository's issue 41)
KNOWN_CORRUPT = frozenset({"n03452741_17620"})
TOLERATED_SHARE = 0.005  # of the pictures, may be missing and their trials left out (DESIGN 6)


def image_path(root: str | Path, name: str) -> Path:
    """`root/<wnid>/<wnid>_<number>.JPEG` of the stem `name`.

    Raises:
        UserError: the name would lead out of the folder.
    """
    unsafe = not isinstance(name, str) or not name or any(part in name for part in ("/", "\\", "..", "\0"))
    if unsafe or PureWindowsPath(name).drive:
        raise UserError(f"image name {name!r} is not a plain file stem such as 'n02951358_31190'; it is not opened")
    return Path(root) / name.split("_")[0] / f"{name}.JPEG"


def leave_out_missing(trials: Mapping, root: str | Path, allow_missing: int = 0) -> tuple[dict, list[str]]:
    """Splits (name -> Trials) without trials whose picture is missing or corrupt, and one line per change.

    The known corrupt file and up to TOLERATED_SHARE of the pictures, or `allow_missing` of them, may go.

    Raises:
        UserError: no such folder, or more pictures are missing.
    """
    root = Path(root)
    names = sorted({name for part in trials.values() for name in part.names})
    if not root.is_dir():
        classes = _missing_classes(root, names) if names else "the trials will tell which"
        raise UserError(f"{root}: no such folder; it should hold pictures, <wnid>/<wnid>_<number>.JPEG; {classes}")
    faults = {name: fault(image_path(root, name)) for name in names}
    missing = [name for name, said in faults.items() if said]
    limit = max(allow_missing, int(TOLERATED_SHARE * len(names)))
    unknown = [name for name in missing if name not in KNOWN_CORRUPT]
    if len(unknown) > limit:
        first = image_path(root, unknown[0])
        raise UserError(
            f"{first}: missing or corrupt, {len(unknown)} of {len(names)} pictures; the first "
            f"{faults[unknown[0]].removeprefix(f'{first}: ')}; at most {limit} may be left out "
            f"(allow_missing={len(unknown)} allows these); {_missing_classes(root, names)}"
        )
    if not missing:
        return dict(trials), []
    lines = [f"pictures missing or corrupt, their trials left out: {', '.join(missing)}"]
    kept = {}
    for split, part in trials.items():
        rows = [i for i, name in enumerate(part.names) if name not in missing]
        if not rows:
            raise UserError(f"{root}: split '{split}' has no trial left whose picture can be read")
        kept[split] = part if len(rows) == len(part) else part.select(rows)
        lines.append(f"  {split}: {len(rows)} of {len(part)} trials remain")
    return kept, lines


def _missing_classes(root: Path, names: Sequence[str]) -> str:
    """Which class folders are missing, and where they lie instead, in words."""
    wnids = sorted({name.split("_")[0] for name in names})
    missing = [wnid for wnid in wnids if not (root / wnid).is_dir()]
    sentence = f"{len(missing)} of {len(wnids)} class folders are missing: {', '.join(missing) or 'none'}"
    for folder in (root.parent, *root.parent.glob("*/"), *root.glob("*/")):
        if missing and (folder / missing[0]).is_dir():
            sentence += f"; they lie in {folder}: set imagenet_path={folder}"
    return sentence


def about_pictures(trials: Mapping, root: Path) -> str:
    """How many classes the trials' pictures are of; whether the file known to be corrupt is so here."""
    wnids = {name.split("_")[0] for part in trials.values() for name in part.names}
    known = [path for path in (image_path(root, name) for name in sorted(KNOWN_CORRUPT)) if path.is_file()]
    lines = [
        f"{path.name}, corrupt in the copy handed around, is {'whole' if readable(path) else 'so'} here"
        for path in known
    ]
    return "; ".join([f"pictures of {len(wnids)} classes in {root}", *lines])
