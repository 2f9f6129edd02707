"""What scores allow one to say: the verdict.

The verdict exists because this field's main data set shows all pictures of a class in one block: whatever changes
slowly in the EEG (alpha, electrode gain, muscle) then names the class (Li et al. 2020; Siskind et al. 2025). So a
class score from a block design, or from a design that cannot be read, is never called "supported" here. And what was
trained on is remembered, not read: where more of the scored trials than near_trials.LEAKING hold EEG of others, the
design is "leaking" and nothing is claimed; where nobody knows, it is "unknown" and nothing is called supported.
"""

from data.near_trials import LEAKING, about_same_eeg
from evaluation.statistics import ALPHA, EEG_CONTROLS

UNTOLD = "nothing says what was trained on, or what training and test share"


def _class_reasons(score: str, scores: dict, controls: dict) -> tuple[bool, list[str]]:
    """Does the real run beat every EEG control and the class prior, and the sentences that say so."""
    above, reasons = True, []
    for name in (*EEG_CONTROLS, "class_prior"):
        entry = controls.get(name, {}).get(score)
        if entry is None:
            above = False
            reasons.append(f"The control {name} was not run, so nothing is claimed against it.")
            continue
        beaten = entry["p_real_above"] < ALPHA
        above &= beaten
        reasons.append(
            f"{score}: real EEG {scores[score]['first_sample']:.3f} {'is' if beaten else 'is not'} above {name} "
            f"{entry['value']:.3f} (p = {entry['p_real_above']:.2g}, needed < {ALPHA})."
        )
    return above, reasons


def verdict(
    score: str | None, scores: dict, controls: dict, design: tuple[str, str], instance_p: float | None = None,
    split: dict | None = None, note: str | None = None,
) -> dict:  # fmt: skip
    """The verdict of metrics.json from its other parts.

    Args:
        score: name of the class score that decides, for example "50_way_top1"; None without a classifier.
        scores, controls: as `statistics.score_table` returns them.
        design: what `block_design.design_from` returned.
        instance_p: p of retrieval within classes, or None where images are unknown or no class has two.
        split: what the splits share, as `splits.check_splits` records it, and `untold`: why none can tell whether the
            scored trials were trained on.
        note: a sentence that ends the reasons.

    Returns:
        {"class": supported|explained_by_time|nothing, "instance": supported|nothing, "design", "score", "reasons"}.
    """
    (kind, why), split = design, split or {}
    shared, same_eeg = split.get("shared", {}).get("train/test"), split.get("same_eeg", {}).get("test")
    untold = split.get("untold") or ("" if shared and same_eeg else UNTOLD)
    repeated, leaking = (shared or {}).get("pictures"), False
    ordered = repeated and kind != "random"
    class_above, reasons = False, ["No classifier scored the pictures, so nothing is claimed about their classes."]
    if score is not None:
        class_above, reasons = _class_reasons(score, scores, controls)
    if same_eeg and same_eeg["repeated"]:
        leaking = same_eeg["repeated"] > LEAKING * same_eeg["trials"]
        reasons.append(about_same_eeg(same_eeg, "test", "training or validation"))
    about_class = "supported" if kind == "random" and not untold else "explained_by_time"
    about_class = about_class if class_above and not leaking else "nothing"
    if about_class == "explained_by_time":
        reasons.append("In such a design slow change of the recording can name the class, so the score is no evidence.")
    instance_above = instance_p is not None and instance_p < ALPHA
    if instance_p is None:
        reasons.append("Single images were not tested: images unknown, no embeddings, or one image a class.")
    else:
        reasons.append(
            f"Among images of its class the seen one is {'' if instance_above else 'not '}found above chance "
            f"(p = {instance_p:.2g}, needed < {ALPHA})."
        )
    if ordered:
        reasons.append(f"Training and test share {repeated} pictures, whose order in time could name single images.")
    beyond = "leaking, so nothing is claimed" if leaking else untold and f"unknown, as {untold}"
    order = f"Design {beyond}; its order is {kind}" if beyond else f"Design {kind}"
    reasons += [f"{order}: {why}.", *([note] if note else [])]
    instance = "supported" if instance_above and not (leaking or untold or ordered) else "nothing"
    kind = "leaking" if leaking else "unknown" if untold else kind
    return {"class": about_class, "instance": instance, "design": kind, "score": score, "reasons": reasons}
