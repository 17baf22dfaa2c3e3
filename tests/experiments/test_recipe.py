import dataclasses
import hashlib
import json
import re

import pytest
import yaml

from sparsekern.experiments.errors import RecipeError
from sparsekern.experiments.recipe import (
    Recipe,
    differences,
    load_recipe,
    recipe_from,
    recipe_groups,
    recipe_keys,
    recipe_names,
)

PAPER = {"optimizer": "sgd", "momentum": 0.9, "schedule": "cosine", "steps": 11_719, "batch_size": 128}
PAPER |= {"update": "after_step", "drop_fraction": 0.3, "drop_schedule": "lr", "regrow_dropped": True}
PAPER |= {"grow_gradient": "holdout", "grow_batch_size": 1000, "grow_batch_start": 1000}
PAPER |= {"new_values": "zero", "stop_at": None}
LENET5 = {"learning_rate": 0.05, "weight_decay": 1e-3, "update_every": 100}
MLP = {"learning_rate": 0.2, "weight_decay": 2e-4, "update_every": 500}
LENET5_PRINTED = {"weight_decay": 5e-4, "update_every": 500, "steps": 14_063}
MLP_PRINTED = {"weight_decay": 1e-4, "steps": 14_063}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lenet5-mnist", {"model": "lenet5", "sparsity": 0.95, **LENET5}),
        ("mlp-mnist", {"model": "mlp", "sparsity": 0.98, **MLP}),
        ("lenet5-mnist-as-printed", {"model": "lenet5", "sparsity": 0.95, **LENET5, **LENET5_PRINTED}),
        ("mlp-mnist-as-printed", {"model": "mlp", "sparsity": 0.98, **MLP, **MLP_PRINTED}),
    ],
)
def test_mnist_recipes_have_the_hyperparameters_of_the_paper(name, settings):
    expected = {"dataset": "mnist", **PAPER, **settings}
    assert {key: load_recipe(name).settings()[key] for key in expected} == expected


@pytest.mark.parametrize("model", ["vgg16", "resnet50"])
def test_imagenet_recipes_have_the_hyperparameters_of_rigl(model):
    recipe = load_recipe(f"{model}-imagenet")
    expected = {"model": model, "dataset": "image_folder", "image_size": 224, "num_classes": 1000}
    expected |= {"sparsity": 0.8, "distribution": "erk", "init": "per_neuron"}
    expected |= {"update_every": 100, "stop_at": 25_000, "drop_fraction": 0.3, "drop_schedule": "cosine"}
    expected |= {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
    expected |= {"steps": 32_000, "batch_size": 4096, "label_smoothing": 0.1}
    assert {key: recipe.settings()[key] for key in expected} == expected
    assert "not run by this project" in recipe.description
    for method in ("static", "set", "rigl"):
        recipe.override({"method": method})

    def rate_at(epoch):
        return recipe.learning_rate_at(round(epoch * 1_281_167 / 4096))

    rates = [rate_at(epoch) for epoch in (0, 2.5, 5, 29.9, 30.1, 69.9, 70.1, 89.9, 90.1)]
    assert rates == pytest.approx([0, 0.8, 1.6, 1.6, 0.16, 0.16, 0.016, 0.016, 0.0016], rel=1e-3)


def test_the_cifar_recipe_has_the_schedule_of_resnets_paper_at_any_length():
    recipe = load_recipe("resnet20-cifar10")
    expected = {"model": "resnet20", "dataset": "cifar10", "method": "rigl", "sparsity": 0.8}
    expected |= {"distribution": "erk", "steps": 64_000, "batch_size": 128, "weight_decay": 1e-4}
    assert {key: recipe.settings()[key] for key in expected} == expected
    assert (recipe.last_update, recipe.classes, recipe.num_classes) == (48_000, 10, 1000)
    for changed in (recipe, recipe.override({"steps": 2_000})):
        half, last = changed.steps // 2, changed.steps * 3 // 4
        rates = [changed.learning_rate_at(step) for step in (0, half - 1, half, last - 1, last)]
        assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])
        assert changed.last_update == last
    assert recipe.override({"stop_at": "1000"}).last_update == 1000


def test_a_warm_up_may_be_a_percentage():
    recipe = load_recipe("gpt-text").override({"steps": 1010, "warmup_steps": "10%", "stop_at": "070%"})
    assert recipe.learning_rate_at(50) == pytest.approx(0.5e-3 * 100 / 101)
    assert recipe.learning_rate_at(101) == 1e-3
    assert (recipe.stop_at, recipe.last_update) == ("70%", 707)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_a_name_and_one_line_about_it(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert "\n" not in recipe.description


def test_the_recipes_of_one_network_differ_where_text_and_code_do():
    pairs = [(f"{model}-mnist", f"{model}-mnist-as-printed") for model in ("lenet5", "mlp")]
    differing = [
        {
            key
            for key, value in load_recipe(code).settings().items()
            if load_recipe(text).settings()[key] != value
        }
        for code, text in pairs
    ]
    assert differing == [{"update_every", "weight_decay", "steps"}, {"weight_decay", "steps"}]


def test_the_demo_needs_no_download_and_is_sparse():
    recipe = load_recipe("lenet5-digits")
    assert (recipe.dataset, recipe.sparsity, recipe.init) == ("digits", 0.95, "per_neuron")


def test_recipes_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_recipe("lenet5-digits").seed = 1


def test_yaml_round_trip(tmp_path):
    recipe = load_recipe("lenet5-mnist").override({"seed": 3, "mask_seed": 4, "learning_rate": 1e-5})
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(str(path)) == recipe


def test_overrides_take_text_and_leave_the_original():
    recipe = load_recipe("lenet5-mnist")
    changed = recipe.override({"sparsity": "0.9", "learning_rate": "1e-3", "steps": "500", "init": "dense"})
    assert (changed.sparsity, changed.learning_rate, changed.steps, changed.init) == (0.9, 1e-3, 500, "dense")
    assert recipe == load_recipe("lenet5-mnist")


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), (True, True), (False, False)])
def test_switches_take_true_and_false(tmp_path, text, value):
    recipe = load_recipe("lenet5-mnist").override({"regrow_dropped": text})
    assert recipe.regrow_dropped is value
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


@pytest.mark.parametrize(
    ("changes", "network", "is_sparse", "updates_masks"),
    [
        ({}, "lenet5", True, False),
        ({"sparsity": 0}, "lenet5", False, False),
        ({"method": "dense"}, "lenet5", False, False),
        ({"method": "small_dense"}, "small-lenet5", False, False),
        ({"method": "small_dense", "model": "mlp"}, "small-mlp", False, False),
        ({"method": "set"}, "lenet5", True, True),
        ({"method": "snfs"}, "lenet5", True, True),
        ({"method": "gradual_pruning"}, "lenet5", True, False),
    ],
)
def test_the_method_decides_what_is_trained(changes, network, is_sparse, updates_masks):
    recipe = load_recipe("lenet5-mnist").override(changes)
    assert (recipe.network, recipe.is_sparse, recipe.updates_masks) == (network, is_sparse, updates_masks)


def test_the_dense_twin_keeps_all_else():
    recipe = load_recipe("lenet5-mnist").override({"method": "rigl"})
    assert differences(recipe.dense_twin(), recipe) == ["method: rigl there, dense here"]
    assert not recipe.dense_twin().is_sparse


def test_each_purpose_takes_the_seed_unless_it_has_its_own():
    recipe = load_recipe("lenet5-mnist").override({"seed": 7, "mask_seed": 1})
    assert [recipe.seed_of(purpose) for purpose in ("init", "mask", "data")] == [7, 1, 7]
    assert recipe.override({"mask_seed": "none"}).seed_of("mask") == 7


def test_digest_depends_on_settings_and_not_on_the_name():
    recipe = load_recipe("lenet5-mnist")
    assert recipe.digest == dataclasses.replace(recipe, name="other", description="").digest
    assert recipe.digest != recipe.override({"seed": 1}).digest
    assert re.fullmatch("[0-9a-f]{12}", recipe.digest)


def test_a_key_at_its_default_leaves_the_digest_as_it_was():
    recipe = load_recipe("lenet5-mnist")
    fields = {field.name: field.default for field in dataclasses.fields(Recipe)}
    defaults = [name for name, value in recipe.settings().items() if value == fields[name]]
    given = [name for name in recipe.settings() if name not in defaults]
    assert {"gradient_flow_every", "prune_begin", "masks"} <= set(defaults)
    # What a version before those keys computed over the others.
    settings = {name: recipe.settings()[name] for name in given}
    content = json.dumps(settings, sort_keys=True).encode()
    assert recipe.digest == hashlib.sha256(content).hexdigest()[:12]
    assert {"model", "dataset", "sparsity", "learning_rate", "steps"} <= set(given)


OTHER = {"model": "mlp", "dataset": "digits", "masks": "a.pt", "weights": "b.pt", "at_init": "snip"}


@pytest.mark.parametrize("name", list(recipe_keys()))
def test_every_key_is_part_of_the_digest(name):
    recipe = load_recipe("lenet5-mnist")
    key, value = recipe_keys()[name], getattr(recipe, name)
    if name in OTHER:
        other = OTHER[name]
    elif key.choices:
        other = next(choice for choice in ("static", "dense", *key.choices) if choice in key.choices[1:])
        other = other if other != value else key.choices[0]
    elif isinstance(value, bool):
        other = not value
    else:
        other = 0.5 if isinstance(value, float) else 17
    assert other != value
    assert recipe.override({name: other}).digest != recipe.digest


def test_differences_name_the_key_and_both_values():
    theirs = load_recipe("lenet5-mnist")
    ours = theirs.override({"sparsity": 0.9, "init": "dense"})
    assert differences(ours, theirs) == [
        "sparsity: 0.95 there, 0.9 here",
        "init: per_neuron there, dense here",
    ]
    assert differences(ours, ours) == []


BAD_VALUES = [
    ("sparsity", 1, "must be a number of at least 0 and below 1, got 1"),
    ("sparsity", -0.1, "must be a number of at least 0 and below 1, got -0.1"),
    ("sparsity", "nan", "must be a number of at least 0 and below 1, got nan"),
    ("sparsity", "much", "must be a number, got 'much'"),
    ("learning_rate", 0, "must be a number above 0, got 0"),
    ("learning_rate", "inf", "must be a number above 0, got inf"),
    ("weight_decay", -1, "must be a number of at least 0, got -1"),
    ("momentum", 1.0, "must be a number of at least 0 and below 1, got 1.0"),
    ("steps", 0, "must be at least 1, got 0"),
    ("steps", 2.5, "must be a whole number, got 2.5"),
    ("steps", "2.5", "must be a whole number, got '2.5'"),
    ("steps", True, "must be a whole number, got True"),
    ("batch_size", [128], r"must be a whole number, got \[128\]"),
    ("seed", None, "must be a whole number, got nothing"),
    ("drop_fraction", 0, "must be a number above 0 and at most 1, got 0"),
    ("drop_fraction", 1.1, "must be a number above 0 and at most 1, got 1.1"),
    ("update_every", 0, "must be at least 1, got 0"),
    ("prune_begin", 0, "must be at least 1, got 0"),
    ("prune_end", "late", "must be a whole number, got 'late'"),
    ("gradient_flow_every", -1, "must be at least 0, got -1"),
    ("gradient_flow_examples", 0, "must be at least 1, got 0"),
    ("stop_at", "late", "must be a whole number or a percentage of steps, such as 75%, got 'late'"),
    ("stop_at", 7.5, r"must be a whole number or a percentage of steps, such as 75%, got 7\.5"),
    ("stop_at", "0%", "must be at least 1, or a percentage of steps from 1% to 100%, got 0%"),
    ("stop_at", "101%", "must be at least 1, or a percentage of steps from 1% to 100%, got 101%"),
    ("stop_at", "7.5%", "must be a whole number or a percentage of steps, such as 75%, got '7.5%'"),
    ("warmup_steps", "-1", "must be at least 0, or a percentage of steps from 1% to 100%, got -1"),
    ("milestones", "50%,100", "must be rising whole numbers .*, or percentages of steps, .*, got 50%,100"),
    ("milestones", "75%,50%", "must be rising whole numbers .*, or percentages of steps, .*, got 75%,50%"),
    ("width_multiplier", 0, "must be a number above 0, got 0"),
    ("gpt_size", "125m", "must be one of tiny, 124m, .*, got '125m'; did you mean 124m"),
    ("regrow_dropped", 1, "must be true or false, got 1"),
    ("regrow_dropped", "yes", "must be true or false, got 'yes'"),
    ("regrow_dropped", [True], r"must be true or false, got \[True\]"),
    ("regrow_dropped", None, "must be true or false, got nothing"),
    ("masks", "", "must be the path of a file, got "),
    ("milestones", "3,2", "must be rising whole numbers with commas and no spaces, .*, got 3,2"),
    ("milestones", [1, 2], r"must be rising whole numbers with .*, such as 100,200, .*, got \[1, 2\]"),
    ("milestones", "2,2", "must be rising whole numbers .*, got 2,2"),
    ("milestones", "late", "must be rising whole numbers .*, got late"),
    ("label_smoothing", 1, "must be a number of at least 0 and below 1, got 1"),
    ("image_size", 15, "must be at least 16, got 15"),
    ("method", "rigl-inverted", "must be one of .*, got 'rigl-inverted'; did you mean rigl_inverted"),
    (
        "init",
        "per_nueron",
        "must be one of dense, per_layer, per_neuron, got 'per_nueron'; did you mean per_neuron",
    ),
    ("model", 5, "must be one of lenet5, .*, got 5"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD_VALUES, ids=[f"{k}={v}" for k, v, _ in BAD_VALUES])
def test_a_wrong_value_names_key_expected_and_found(key, value, message):
    with pytest.raises(RecipeError, match=f"^{key} {message}"):
        load_recipe("lenet5-digits").override({key: value})


@pytest.mark.parametrize(
    "name", [None, 7, "", ".", "..", "../../esc", "/esc", "a/b", "a\\b", "a\nb", "a\0b", ["a"]], ids=repr
)
def test_a_name_that_cannot_name_a_folder_is_refused(tmp_path, name):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": name, **load_recipe("lenet5-digits").settings()}))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    message = f"{path}: name must be text that can name a folder, without a slash, got {name!r}"
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["a", "two words", "v1.2", "..a", "größe"])
def test_other_names_are_taken(name):
    assert dataclasses.replace(load_recipe("lenet5-digits"), name=name).name == name


def test_a_description_is_text():
    with pytest.raises(RecipeError, match="description must be text, got 7"):
        dataclasses.replace(load_recipe("lenet5-digits"), description=7)


def test_an_unknown_key_suggests_the_near_ones():
    with pytest.raises(RecipeError, match=r"unknown recipe key 'sparcity'; did you mean sparsity\?"):
        load_recipe("lenet5-digits").override({"sparcity": 0.9})


def test_an_unknown_recipe_suggests_the_near_ones_and_lists_all():
    with pytest.raises(
        RecipeError, match=r"unknown recipe 'lenet-mnist'; did you mean lenet5-mnist.*mlp-mnist"
    ):
        load_recipe("lenet-mnist")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2\n", "expected a mapping of recipe keys, found list"),
        ("", "expected a mapping of recipe keys, found NoneType"),
        ("model: [", "expected YAML, found "),
        ("model: lenet5\ndataset: digits\n", "missing keys learning_rate, steps"),
        ("model: lenet5\nlr: 1\n", "unknown recipe key 'lr'; the keys are model, dataset, method, "),
        ("model: lenet5\n3: 1\n", "unknown recipe key '3'"),
        ("!!python/object/apply:os.getcwd []", "expected YAML, found "),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=re.escape(f"{path}: {message}")) as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=re.escape(f"{tmp_path / 'mine.yaml'}: cannot be read")):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_scientific_notation_without_a_point_is_a_number():
    # YAML 1.1 reads 1e-3 as text.
    content = {**load_recipe("lenet5-digits").settings(), "weight_decay": yaml.safe_load("1e-3")}
    assert content["weight_decay"] == "1e-3"
    assert recipe_from(content, "here").weight_decay == 1e-3


def test_every_key_is_explained_and_in_one_group():
    assert all(key.about for key in recipe_keys().values())
    groups = recipe_groups()
    assert all(groups.values())
    assert sum(map(len, groups.values())) == len(recipe_keys())
    assert set(recipe_keys()) == {f.name for f in dataclasses.fields(Recipe)} - {"name", "description"}
