"""Settings and model cards: what is accepted, what is refused, and with which words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mafl_cli.config import PRESETS, AttackConfig, budget, config_hash, preset
from mafl_cli.errors import ModelError, UsageError
from mafl_cli.network.card import ModelCard, check_orientation
from mafl_cli.network.card_file import find_card, read_card
from mafl_cli.network.intensity import Intensity


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("goal_iou", 0),
        ("goal_iou", 1.01),
        ("goal_hit", -0.1),
        ("goal_hit", float("nan")),
        ("momentum", 1.01),
        ("eps", 0),
        ("eps", float("nan")),
        ("low_frequency_levels", 0),
        ("step_size", -1),
        ("kappa", -1),
        ("peak_weight", -1),
        ("aim", 1.1),
        ("feature_weight", float("inf")),
        ("low_frequency_weight", -0.1),
        ("patience", 0),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"`{name}` must be from .* got {value}") as caught:
        replace(AttackConfig(), **{name: value})  # type: ignore[arg-type]
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "name",
    ["after_goal", "mask_loss", "low_frequency", "gradient_norm", "direction", "step", "eps_unit", "norm"],
)
def test_settings_that_are_no_choice_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"`{name}` must be one of .*, got 'magic'"):
        replace(AttackConfig(), **{name: "magic"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"l2_weight": 0.0}, "`after_goal` shrink needs an `l2_weight` above 0"),
        ({"direction": "sign"}, "`step` dynamic finds the length of each step by itself: it needs `direction` raw"),
        ({"gradient_norm": "l2"}, "it needs `direction` raw, `gradient_norm` none and no `step_size`"),
        ({"step_size": 0.1}, "it needs `direction` raw, `gradient_norm` none and no `step_size`"),
        ({"mask_loss": "logit", "adaptive_weights": False}, "needs a loss that falls to 0: logit does not"),
        ({"mask_loss": "dag", "adaptive_weights": False}, "needs a loss that falls to 0: dag does not"),
        ({"mask_loss": "ce"}, "`adaptive_weights` are for the margin loss, not for ce"),
        ({"step": "asma", "tau": 1.0, "step_size": 0.1}, "`step_size` is not for `step` asma"),
        ({"step": "asma", "step_size": None}, "`step` asma needs `tau` or `beta`"),
        ({"tau": 0.1}, "`tau` and `beta` are for `step` asma, not for dynamic"),
        ({"step": "cosine", "step_size": 0.1, "beta": 0.1}, "not for cosine"),
        ({"step": "cosine", "step_size": None, "direction": "l2"}, "`step` cosine along l2 needs a `step_size`"),
        ({"step": "constant", "step_size": None, "eps": 0.1, "direction": "raw"}, "along raw needs a `step_size`"),
        ({"step": "constant", "step_size": None, "eps": 0.1, "direction": "l2"}, "an `eps` of the same norm"),
        ({"step": "constant", "step_size": None, "eps": 0.1, "norm": "l2", "direction": "sign"}, "the same norm"),
        ({"random_start": True}, "`random_start` needs an `eps`"),
        ({"low_frequency": "hard"}, "`low_frequency_weight` must be 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        AttackConfig(**settings)


@pytest.mark.parametrize("name", PRESETS)
def test_every_method_has_settings_that_go_together_and_its_name(name: str) -> None:
    assert preset(name).method == name
    assert preset(name, steps=7).steps == 7
    assert preset(name, **budget(0.1)).eps == 0.1


def test_the_aim_is_every_voxel_unless_the_goals_leave_out_more_than_a_hundredth() -> None:
    assert AttackConfig().aimed == AttackConfig(goal_iou=1, goal_hit=0.99).aimed == 1
    assert AttackConfig(goal_iou=0.9).aimed == 0.9
    assert AttackConfig(goal_iou=0.9, goal_hit=0.8).aimed == 0.8
    assert AttackConfig(aim=0.95).aimed == 0.95


def test_the_default_method_is_mafl() -> None:
    assert preset("mafl") == AttackConfig()


def test_a_method_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(UsageError, match="`method` must be one of mafl, mafl-paper, asma, pgd,"):
        preset("fgsm")


def test_what_belongs_to_a_replaced_setting_goes_with_it() -> None:
    changed = preset("asma", step="cosine", step_size=0.1)
    assert (changed.tau, changed.beta, changed.step_size) == (0, 0, 0.1)
    assert preset("dag", step="asma", tau=0.1).step_size is None
    assert not preset("mafl", mask_loss="dice").adaptive_weights
    assert preset("asma", step="asma").tau == preset("asma").tau
    assert preset("mafl", low_frequency="hard").low_frequency_weight == 0
    made = preset("mafl", survive="jpeg:90")
    assert (made.kappa, made.adaptive_weights, made.low_frequency_weight) == (0.2, False, 0)
    assert preset("mafl", survive="jpeg:90", kappa=0.05).kappa == 0.05
    assert preset("ssah", survive="jpeg:90").low_frequency_weight == preset("ssah").low_frequency_weight > 0
    with pytest.raises(UsageError, match="`low_frequency_weight` must be 0"):
        preset("mafl", low_frequency="hard", low_frequency_weight=0.2)


def test_a_budget_is_a_ball_a_goal_of_one_and_no_more_steps_than_needed() -> None:
    found = preset("mafl", **budget(0.03, "l2"))
    assert (found.eps, found.eps_unit, found.norm) == (0.03, "model", "l2")
    assert (found.goal_iou, found.goal_hit, found.after_goal) == (1, 1, "stop")


@pytest.mark.parametrize(
    ("text", "intensity"),
    [
        ("none", Intensity()),
        ("minmax", Intensity(kind="minmax")),
        ("zscore", Intensity(kind="zscore")),
        ("zscore-nonzero", Intensity(kind="zscore", region="nonzero")),
        ("window:-57,164", Intensity(kind="window", min=-57, max=164, clip=(0, 1))),
        ("window:0.5,1e3", Intensity(kind="window", min=0.5, max=1000, clip=(0, 1))),
    ],
)
def test_intensity_short_forms(text: str, intensity: Intensity) -> None:
    assert Intensity.parse(text) == intensity


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Window",
        "window",
        "window:",
        "window:1",
        "window:1,2,3",
        "window:2,1",
        "window:1,1",
        "window:a,b",
        "window:nan,1",
        "window:0,inf",
        "window:-inf,inf",
        "minmax:0,1",
    ],
)
def test_intensities_that_are_not_understood(text: str) -> None:
    with pytest.raises(UsageError, match="`intensity` must be none, minmax, zscore"):
        Intensity.parse(text)


def test_the_hash_follows_the_settings_and_nothing_else() -> None:
    assert config_hash(AttackConfig()) == config_hash(AttackConfig())
    assert config_hash(AttackConfig()) != config_hash(AttackConfig(steps=3))
    assert config_hash({"b": 1, "a": 2}) == config_hash({"a": 2, "b": 1})
    assert config_hash(Intensity(), None) != config_hash(None, Intensity())
    # SHA-256 of the text [{"a": 1}].
    assert config_hash({"a": 1}) == "sha256:2696610e78752a9e7bd0c4b0404b2fb01a41a19bf23c9b8efa066811c8555d6b"


# --- cards ---------------------------------------------------------------------------------------------------------


def card_of(tmp_path: Path, text: str) -> ModelCard:
    path = tmp_path / "net.toml"
    path.write_text(text, encoding="utf-8")
    return read_card(path)


def test_a_full_card(tmp_path: Path) -> None:
    card = card_of(
        tmp_path,
        """
        name = "Lesions"
        [input]
        dims = 3
        channels = ["T1", "FLAIR"]
        orientation = "lps"
        slice_axis = "axial"
        intensity = { kind = "zscore", region = "nonzero" }
        divisor = 16
        [output]
        activation = "softmax"
        classes = ["background", "läsion"]
        """,
    )
    assert card == ModelCard(
        name="Lesions",
        dims=3,
        channels=("T1", "FLAIR"),
        orientation="LPS",
        slice_axis="axial",
        intensity=Intensity(kind="zscore", region="nonzero"),
        divisor=16,
        activation="softmax",
        classes=("background", "läsion"),
    )
    assert card.source == "net.toml"
    assert card.with_assumptions() == (card, ())


def test_an_empty_card_states_nothing_and_says_what_is_assumed(tmp_path: Path) -> None:
    card = card_of(tmp_path, "")
    assert card == ModelCard()
    full, said = card.with_assumptions()
    assert (full.orientation, full.intensity) == ("native", Intensity())
    assert [sentence.partition(":")[0] for sentence in said] == ["orientation", "intensity"]


@pytest.mark.parametrize(
    ("toml", "intensity"),
    [
        ('"minmax"', Intensity(kind="minmax")),
        ('"window:-57,164"', Intensity(kind="window", min=-57, max=164, clip=(0, 1))),
        ('{ kind = "none" }', Intensity()),
        ('{ kind = "window", min = -57, max = 164 }', Intensity(kind="window", min=-57, max=164, clip=(0, 1))),
        (
            '{ kind = "window", min = 0, max = 9, to = [-1, 1] }',
            Intensity(kind="window", min=0, max=9, to=(-1, 1), clip=(-1, 1)),
        ),
        (
            '{ kind = "window", min = 0, max = 9, to = [-1, 1], clip = true }',
            Intensity(kind="window", min=0, max=9, to=(-1, 1), clip=(-1, 1)),
        ),
        (
            '{ kind = "window", min = 0, max = 9, clip = false }',
            Intensity(kind="window", min=0, max=9),
        ),
        (
            '{ kind = "window", min = 0, max = 9, clip = [-0.5, 1.5] }',
            Intensity(kind="window", min=0, max=9, clip=(-0.5, 1.5)),
        ),
        ('{ kind = "zscore", clip = [-5, 5] }', Intensity(kind="zscore", clip=(-5, 5))),
    ],
)
def test_intensities_of_a_card(tmp_path: Path, toml: str, intensity: Intensity) -> None:
    assert card_of(tmp_path, f"[input]\nintensity = {toml}").intensity == intensity


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[input", "Expected"),
        ("modalities = 3", "unknown key 'modalities' in the top level"),
        ("input = 3", r"\[input\] must be a table"),
        ("[input]\nchanels = ['T1']", "unknown key 'chanels' in .input.; known: dims, channels"),
        ("[output]\nclass = ['a']", "unknown key 'class' in .output."),
        ("name = 3", "name must be a text, got 3"),
        ("[input]\ndims = 4", "dims must be one of 2, 3, got 4"),
        ("[input]\ndims = 2.0", "dims must be one of 2, 3, got 2.0"),
        ("[input]\ndims = '2'", "dims must be one of 2, 3, got '2'"),
        ("[input]\nchannels = 2", "channels must be a list of names"),
        ("[input]\nchannels = []", "channels must be a list of names"),
        ("[input]\nchannels = [1, 2]", "channels must be a list of names"),
        ("[input]\norientation = 'RAR'", "orientation must be three axis codes.* got 'RAR'"),
        ("[input]\norientation = ['R', 'A', 'S']", "orientation must be a text, got"),
        ("[input]\nslice_axis = 'z'", "slice_axis must be one of auto.* got 'z'"),
        ("[input]\ndivisor = 0", "divisor must be from 1 to 512 voxels, got 0"),
        ("[input]\ndivisor = 1000000000", "divisor must be from 1 to 512 voxels, got 1000000000"),
        ("[input]\ndivisor = 0x1" + "0" * 9000, r"divisor must be from 1 to 512 voxels, got \.\.\."),
        ("[input]\ndivisor = true", "divisor must be a whole number, got True"),
        ("[input]\nroi = [100000, 100000]", "roi must have at most .* voxels in all, got 100000,100000"),
        ("[input]\nroi = [0x1" + "0" * 9000 + ", 8]", r"roi must be a number .*, got \.\.\."),
        ("[input]\nroi = [inf, 8]", "roi must be a number .*, got inf"),
        ("[input]\nroi = [nan, 8]", "roi must be a number .*, got nan"),
        ("[input]\nspacing = [1e-200, 1, 1]", "spacing must be from 0.001 to 1000 mm, got 1e-200,1,1"),
        ("[input]\noverlap = 1", "overlap must be at least 0 and below 1, got 1"),
        ("[input]\noverlap = -0.1", "overlap must be at least 0 and below 1, got -0.1"),
        ("[input]\noverlap = '0.5'", "overlap must be a number .*, got '0.5'"),
        ("name = " + "[" * 5000, "nested too deeply"),
        ("[input]\ndivisor = " + "9" * 5000, "too many digits"),
        ("name = " + repr("a" * 10000) + "\nx = 1", "unknown key 'x'"),
        (
            "[input]\norientation = " + repr("R" * 10000),
            r"orientation must be three axis codes.* got 'RRR.{50,60}\.\.\.",
        ),
        ("[output]\nclasses = " + str(["a"] * 2000), "classes must be at most 1000 names, got 2000"),
        ("[input.intensity]\nkind = 'window'\nmin = 0\nmax = 1e300", r"max must be a number .*, got 1e\+300"),
        ("[output]\nactivation = 'relu'", "activation must be one of softmax, sigmoid, got 'relu'"),
        ("[output]\nclasses = 'a'", "classes must be a list of names"),
        ("[input]\nintensity = 3", "intensity must be a table with a kind"),
        ("[input]\nintensity = { min = 3 }", "intensity must be a table with a kind"),
        ("[input]\nintensity = 'zscored'", "intensity must be none, .* got 'zscored'"),
        ("[input.intensity]\nkind = 'median'", "kind must be one of none, minmax.* got 'median'"),
        ("[input.intensity]\nkind = 3", "kind must be one of .*, got 3"),
        (
            "[input.intensity]\nkind = 'zscore'\nregion = 'brain'",
            "region must be one of all, nonzero, got 'brain'",
        ),
        ("[input.intensity]\nkind = 'window'\nmin = 3\nmax = 2", "window min and max must rise: 3 is not below 2"),
        ("[input.intensity]\nkind = 'window'\nmin = 'a'\nmax = 2", "min must be a number .*, got 'a'"),
        ("[input.intensity]\nkind = 'window'\nmin = nan\nmax = 2", "min must be a number .*, got nan"),
        ("[input.intensity]\nkind = 'window'\nmin = 0\nmax = inf", "max must be a number .*, got inf"),
        ("[input.intensity]\nkind = 'window'\nmin = 0\nmax = 2\nto = [1]", "to must be two numbers"),
        ("[input.intensity]\nkind = 'window'\nmin = 0\nmax = 2\nto = [1, 0]", "to must rise: 1 is not below 0"),
        ("[input.intensity]\nkind = 'window'\nmin = 0\nmax = 2\nto = 5", "to must be two numbers"),
        ("[input.intensity]\nkind = 'window'\nmin = 0\nmax = 2\nclip = 5", "clip must be"),
        ("[input.intensity]\nkind = 'window'\nmin = 0\nmax = 2\nclip = 'yes'", "clip must be"),
        ("[input.intensity]\nkind = 'window'\nmin = 0\nmax = 2\nregion = 'all'", "unknown key 'region'"),
        ("[input.intensity]\nkind = 'window'", "min and max"),
        ("[input.intensity]\nkind = 'window'\nmin = 0", "min and max"),
        ("[input.intensity]\nkind = 'minmax'\nto = [-1, 1]", "unknown key 'to'"),
        ("[input.intensity]\nkind = 'zscore'\nmin = 0", "unknown key 'min'"),
        ("[input.intensity]\nkind = 'minmax'\nregion = 'nonzero'", "unknown key 'region'"),
        ("[input.intensity]\nkind = 'zscore'\nclip = true", "clip must be"),
        ("[input.intensity]\nkind = 'zscore'\nmean = 0", "unknown key 'mean'"),
    ],
)
def test_cards_that_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        card_of(tmp_path, text)
    assert caught.value.exit_code == 4
    assert str(caught.value).startswith("net.toml: ")
    assert str(tmp_path) not in str(caught.value)


def test_cards_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes("name = 'Läsion'".encode("latin-1"))
    with pytest.raises(ModelError, match=r"^latin\.toml: is not TOML \(it is not UTF-8 text"):
        read_card(tmp_path / "latin.toml")
    (tmp_path / "marked.toml").write_bytes(b"\xef\xbb\xbfname = 'mine'")
    assert read_card(tmp_path / "marked.toml").name == "mine"
    with pytest.raises(ModelError, match=r"^gone\.toml: cannot be read"):
        read_card(tmp_path / "gone.toml")


def test_the_card_of_the_model_comes_before_that_of_the_folder(tmp_path: Path) -> None:
    assert find_card(tmp_path / "a.ts") == ModelCard()
    (tmp_path / "model.toml").write_text("name = 'any'")
    (tmp_path / "a.toml").write_text("name = 'mine'")
    assert find_card(tmp_path / "a.ts").name == "mine"
    assert find_card(tmp_path / "b.ts").name == "any"


def test_flags_replace_what_the_card_says() -> None:
    card = ModelCard(orientation="RAS", dims=2)
    flags: dict[str, Any] = {"orientation": "LPS", "intensity": None}
    assert card.merged(**flags) == ModelCard(orientation="LPS", dims=2)


@pytest.mark.parametrize(("codes", "said"), [("ras", "RAS"), ("LIP", "LIP"), ("Native", "native"), ("SPL", "SPL")])
def test_orientations(codes: str, said: str) -> None:
    assert check_orientation(codes) == said


@pytest.mark.parametrize("codes", ["", "RA", "RASS", "RLA", "XYZ", "R A", "RAR", "ẞAS"])
def test_orientations_that_are_refused(codes: str) -> None:
    with pytest.raises(UsageError, match="must be three axis codes"):
        check_orientation(codes)


def test_native_spacing_and_no_windows_take_away_what_a_card_says() -> None:
    card = ModelCard(spacing=(1.5, 1.5, 2.0), roi=(96, 96, 96))
    assert card.merged(spacing="native", roi="none") == ModelCard()
    assert card.merged(spacing=(1.0, 1.0), roi=[8, 8]) == ModelCard(spacing=(1.0, 1.0), roi=(8, 8))
    assert card.merged(overlap=None) == card
