"""Words that reports are read by: how a search ended, and why a number is not there.

Each is a code, which programs compare and reports hold, with its sentence beside it, which people read. A sentence may
be reworded; a code may not.
"""

from __future__ import annotations

from enum import Enum


class Code(str, Enum):
    """A code and its sentence: `NAME = "code", "sentence"`. Equal to its code, and written as it in JSON."""

    sentence: str

    def __new__(cls, code: str, sentence: str = "") -> Code:
        # To find one, `Outcome("reached")`, its code is enough.
        made = str.__new__(cls, code)
        made._value_ = code
        made.sentence = sentence
        return made

    @classmethod
    def sentences(cls) -> dict[str, str]:
        """Each code's sentence."""
        return {code.value: code.sentence for code in cls}


class Outcome(Code):
    """How the search ended for one slice, one volume, or the whole scan, with the next step to try."""

    ALREADY = "already_at_goal", "The clean prediction already meets the goal; nothing was changed."
    REACHED = "reached", "The goal was reached."
    STEP_LIMIT = (
        "step_limit",
        "The goal was not reached; the closest result was kept. More steps or a lower goal may help.",
    )
    NO_GRADIENT = "no_gradient", "The model gives no gradient towards the target here; nothing was changed."


class Reason(Code):
    """Why a number is undefined."""

    BOTH_EMPTY = "both_empty", "neither mask has this class"
    ONE_EMPTY = "one_empty", "only one of the two masks has this class"
    IDENTICAL_PREDICTIONS = "identical_predictions", "both predictions are the same"
    NOT_DRAWN = "not_drawn", "the prediction does not have this class"
    TARGET_HAS_NO_FOREGROUND = "target_has_no_foreground", "the target has no foreground"
    CLEAN_HAS_NO_FOREGROUND = "clean_has_no_foreground", "the clean prediction has no foreground"
    TRUTH_HAS_NO_FOREGROUND = "ground_truth_has_no_foreground", "the ground truth has no foreground"
    NO_FOREGROUND = "no_foreground", "there is no foreground"
    NOTHING_TO_CHANGE = "nothing_to_change", "the target changes nothing"
    EVERYTHING_CHANGES = "everything_changes", "the target changes every voxel"
    IDENTICAL = "identical", "nothing was changed"
    CONSTANT_IMAGE = "constant_image", "the scan is constant"
    SMALL_SLICES = "slice_smaller_than_window", "slices are smaller than the window of SSIM"
    GOAL_NOT_REACHED = "goal_not_reached", "no change that was tried reaches the goal"
    NOT_KNOWN = "not_known", "it is not known how large a change the goal takes"
    SCORE_UNDEFINED = "score_undefined", "the score is undefined somewhere on the curve"
    NO_ESTIMATE = "no_estimate", "the search gives no estimate of it"
    NO_CHANGED_SAMPLE = "no_changed_sample", "no slice or volume was changed"
    FEW_SAMPLES = "few_samples", "of fewer than 20 slices or volumes one is more than 5 %"
    NO_DETECTORS = "no_detectors", "needs the detectors"
    NO_GROUND_TRUTH = "no_ground_truth", "needs a ground truth"
    NO_CURVE = "no_curve", "needs the curve"
    NO_OTHER_MODEL = "no_other_model", "needs a second model"
    NO_MODEL = "no_model", "needs a model, and only predictions were given"
    NO_TRANSFORM = "no_transform", "needs a transform"
    NO_NOISE = "no_noise", "the scan has no noise that could be measured"


NOT_ASKED = frozenset(
    {
        Reason.NO_GROUND_TRUTH,
        Reason.NO_CURVE,
        Reason.NO_OTHER_MODEL,
        Reason.NO_MODEL,
        Reason.NO_TRANSFORM,
        Reason.NO_DETECTORS,
    }
)
"""Undefined because nobody asked for it: not measured, rather than without a value."""


class Sight(Code):
    """Whether a change can be seen, by the compression that looks as different; see `measure.visibility`."""

    CANNOT = "cannot_be_seen", "cannot be seen"
    LIMIT = "at_the_limit", "is at the limit of what can be seen"
    VISIBLE = "visible", "is visible"


class Untested(Code):
    """Why a case that was judged proves nothing about the model. {}: what is the matter with it, in each case."""

    FILE_CHANGED = "file_changed", "{} is not the file the report describes"
    NO_GRADIENT = "no_gradient", "the attack found no gradient, so the model was not tested"
    UNCHANGED = "unchanged", "the adversarial scan is the original, so the model was not tested"
    ROUNDING = (
        "rounding",
        "the adversarial scan differs from the original by rounding alone, so the model was not tested",
    )
    OTHER_NUMBERS = "other_numbers", "{}, so the report is not about these files"
    OTHER_MODEL = "other_model", "{}, so it is not what was attacked"
    NOTHING_DRAWN = "nothing_drawn", "both given predictions are empty, so nothing shows that a model drew them"
    NO_MODEL = "no_model", "only the folder says what {} draws, for it is not at hand; give the model too"


class Alarm(Code):
    """Why an attack may have failed, rather than the model held. {}: what was measured."""

    SLOPE = "slope", "the gradient explains {} of how this model answers"
    ALONG = "along", "along its gradient the model moves {} times as far as promised"
    DEAD = "dead", "{} of the voxels to change answer to nothing"
    BORDER = "border", "where two classes meet, this model answers with {} of what it does beside"
    LOOP = "loop", "in the search the model moved {} times as far as the gradients promised"
    NO_LIMIT = "no_limit", "the goal was missed although nothing limits the change"
    DUST = "dust", "the change is {} of the scan's range, which is dust"
    MORE_BUDGET = "more_budget", "a larger change was allowed, and less was reached than with a smaller one ({})"
    LADDER = "ladder", "the attack reaches less with more ({})"
    LABEL_ONLY = "label_only", "the search saw labels alone, and had {} queries: with the model somebody gets further"
    NOT_CHECKED = "not_checked", "the report does not say whether the attack was checked; attack again"


class Belief(Code):
    """Whether an attack can be believed."""

    CLEAN = "clean", "no check raised an alarm"
    ANSWERED = "answered", "an alarm was raised, and another search answered it"
    ALARM = "alarm", "an alarm was raised that nothing answers"
    UNCHECKED = "unchecked", "nothing was attacked, so nothing was checked"
