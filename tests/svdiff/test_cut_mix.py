"""The sampler of cut-mixed pairs and the unmix loss, against what Sec. 3.3 says."""

from collections import Counter

import pytest
import torch

from common.pipelines import load_pipeline
from common.training import step_generator
from svdiff import cut_mix, unmix
from svdiff.options import Concept
from svdiff.samples import Source, draw_batch
from tests.refusing import refuses
from tests.tiny import tiny_tokenizer


def lots(concepts, count=2000):
    generator = torch.Generator().manual_seed(0)
    return [cut_mix.draw_mix(concepts, generator) for _ in range(count)]


@pytest.mark.parametrize("concepts", [2, 3])
def test_pairs_are_drawn_without_replacement_and_evenly(concepts):
    drawn = lots(concepts)
    pairs = Counter(mix.pair for mix in drawn)
    possible = concepts * (concepts - 1)
    assert len(pairs) == possible and all(one != two for one, two in pairs)
    assert all(abs(count / len(drawn) - 1 / possible) < 0.05 for count in pairs.values())
    for field in ("stacked", "places", "swapped"):
        assert abs(sum(getattr(mix, field) for mix in drawn) / len(drawn) - 0.5) < 0.05


@pytest.mark.parametrize("pair, lot, said", [
    ((0, 1), (False, True, False), "photo of a sks dog on the left and a cup on the right"),
    ((0, 1), (True, True, True), "photo of a sks dog at the top and a cup at the bottom"),
    ((0, 1), (False, False, True), "photo of a cup and a sks dog"),
    ((0, 1), (True, False, False), "photo of a sks dog and a cup"),
    ((1, 0), (False, True, False), "A picture of a cup on the left and a sks dog on the right"),
])  # fmt: skip
def test_prompts_of_both_wordings(pair, lot, said):
    assert cut_mix.mixed_prompt(cut_mix.Mix(pair, *lot), ["photo of a sks dog", "A picture of a cup"]) == said


def test_prompts_are_split_into_how_and_what():
    assert cut_mix.split_prompt("photo of a sks dog\nin a box") == ("photo of ", "a sks dog\nin a box")
    assert cut_mix.identifier("photo of a sks dog", "photo of a dog") == "sks"
    assert cut_mix.identifier("a sks dog", None) == "sks dog" and cut_mix.identifier("a dog", "a dog") == "a dog"


def test_halves_lie_where_the_prompt_says():
    one, two = torch.zeros(3, 8, 8), torch.ones(3, 8, 8)
    for fit in ("crop", "resize"):
        side, stacked = cut_mix.paste(one, two, False, fit), cut_mix.paste(one, two, True, fit)
        assert torch.equal(side[:, :, :4], torch.zeros(3, 8, 4)) and torch.equal(side[:, :, 4:], torch.ones(3, 8, 4))
        assert torch.equal(stacked, side.transpose(1, 2))
    columns = torch.arange(8.0).expand(3, 8, 8)
    assert cut_mix.paste(columns, columns, False)[0, 0].tolist() == [2, 3, 4, 5, 2, 3, 4, 5]
    odd = cut_mix.paste(torch.zeros(3, 5, 5), torch.ones(3, 5, 5), True)
    assert odd.shape == (3, 5, 5) and odd[0, :, 0].tolist() == [0, 0, 1, 1, 1]
    masks = cut_mix.half_masks(False, 4)
    assert masks[0].tolist() == [[1, 1, 0, 0]] * 4 and torch.equal(masks.sum(0), torch.ones(4, 4))
    assert torch.equal(cut_mix.half_masks(True, 4)[0], masks[0].T)


def source(count=3, prior=True, prob=0.6):
    concepts = [Concept("", f"a {token} {kind}", None, f"a {kind}")
                for token, kind in (("sks", "cat"), ("qwe", "dog"), ("zxy", "cup"))][:count]  # fmt: skip
    shade = [[torch.full((3, 8, 8), 40 * number + 10 * kind, dtype=torch.uint8) for _ in range(2)]
             for kind in (0, 1) for number in range(count)]  # fmt: skip
    return Source(concepts, shade[:count], shade[count:] if prior else [], 8, prob)


def test_batches_show_what_their_prompts_say():
    known, mixed = source(), 0
    for step in range(200):
        batch = draw_batch(known, 2, step_generator(0, step), step)
        assert batch.pictures.shape == (4, 3, 8, 8) and len(batch.prompts) == 4
        for item, mix in enumerate(batch.mixes):
            shades = [(batch.pictures[item + 2 * kind] * 255).round() - 10 * kind for kind in (0, 1)]
            assert torch.equal(*shades)  # the prior picture is put together as the subject's
            instance, prior = batch.prompts[item], batch.prompts[item + 2]
            assert instance.replace("sks ", "").replace("qwe ", "").replace("zxy ", "") == prior
            seen = {int(value) // 40 for value in shades[0].unique()}
            assert seen == set(mix.pair) if mix else len(seen) == 1
            assert all(known.concepts[number].instance_prompt.split()[1] in instance for number in seen)
            mixed += mix is not None
    assert abs(mixed / 400 - 0.6) < 0.08


def test_any_picture_of_one_meets_any_of_the_other():
    concepts = [Concept("", f"a {token} thing", None, None) for token in ("sks", "qwe")]
    shades = [[torch.full((3, 8, 8), 20 * picture + 5 * which, dtype=torch.uint8) for picture in range(5)]
              for which in (0, 1)]  # fmt: skip
    known, met, alone = Source(concepts, shades, [], 8, 1.0), set(), Counter()
    for step in range(400):
        picture = (draw_batch(known, 1, step_generator(0, step), step).pictures[0] * 255).round()
        met.add(tuple(sorted(int(value) for value in picture.unique())))
        single = Source(concepts[:1], shades[:1], [], 8, 0.0)
        alone[int((draw_batch(single, 1, step_generator(0, step), step).pictures[0] * 255).round().max())] += 1
    assert len(met) == 25
    assert set(alone.values()) == {80}  # of one subject every picture comes once per epoch


def test_samples_alone_without_classes_and_of_several_processes():
    for known in (source(3, False, 0.0), source(1, False, 1.0)):
        batches = [draw_batch(known, 1, step_generator(0, step), step) for step in range(30)]
        assert all(batch.mixes == [None] and len(batch.pictures) == 1 for batch in batches)

    def prompts(process, processes):
        return [draw_batch(source(), 4, step_generator(0, step, 0, process), step * processes + process).prompts
                for step in range(5)]  # fmt: skip

    assert prompts(0, 1) == prompts(0, 1) != prompts(1, 2)


@pytest.mark.parametrize("prompt, words, among, pieces", [
    ("photo of a sks cat and a red dog", "sks", "a sks cat", "sks</w>"),
    ("photo of a sks cat and a red dog", "red", "a red dog", "red</w>"),
    ("a cathouse on a red cat so blue and a cat", "red blue", "a red cat so blue", "red</w>blue</w>"),  # apart
])  # fmt: skip
def test_tokens_are_found_inside_of_their_phrase(prompt, words, among, pieces):
    tokenizer = tiny_tokenizer()
    all_pieces = tokenizer.convert_ids_to_tokens(tokenizer(prompt)["input_ids"])
    assert "".join(all_pieces[place] for place in unmix.token_places(tokenizer, prompt, words, among)) == pieces


def test_tokens_that_are_not_there_are_refused_and_words_are_whole():
    tokenizer, text = tiny_tokenizer(), "a cathouse on a red cat so blue and a cat"
    (place,) = unmix.token_places(tokenizer, text, "cat", "a cat")  # not the beginning of the house
    assert place == len(tokenizer(text)["input_ids"]) - 2
    for prompt, said in ((text, "not in the prompt"), ("cat " * 100 + "a sks dog", "beyond the tokenizer's limit")):
        refuses(said, unmix.token_places, tokenizer, prompt, "sks", "a sks dog")


def test_the_loss_is_the_mean_square_outside_of_the_own_half():
    torch.manual_seed(0)
    maps = torch.rand(3, 2, 16, 7, requires_grad=True)
    samples = [None, (False, ([1, 2], [5])), (True, ([3], [4]))]
    expected = []
    for item, stacked, subjects in ((1, False, ([1, 2], [5])), (2, True, ([3], [4]))):
        for number, tokens in enumerate(subjects):
            total = 0.0
            for head in range(2):
                for place in range(16):
                    row, column = divmod(place, 4)
                    own = (row if stacked else column) // 2 == number
                    share = sum(float(maps.detach()[item, head, place, token]) for token in tokens)
                    total += 0.0 if own else share**2
            expected.append(total / 32)
    loss = unmix.unmix_loss([maps, maps], samples)
    assert float(loss) == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    loss.backward()
    assert maps.grad[0].abs().sum() == 0 and maps.grad[1, :, :, 0].abs().sum() == 0 and maps.grad[1].abs().sum() > 0
    inside = torch.zeros(1, 1, 4, 2)
    inside[0, 0, [0, 2], 0] = inside[0, 0, [1, 3], 1] = 1.0  # each in its own half of a 2x2 map
    assert float(unmix.unmix_loss([inside], [(False, ([0], [1]))])) == 0
    assert float(unmix.unmix_loss([inside], [None])) == 0


def test_the_loss_reaches_the_weights_through_the_maps(tiny_folder):
    """With gradient checkpointing, where layers run twice, in the same way."""
    grads = []
    for checkpointing in (False, True):
        unet = load_pipeline(tiny_folder, "cpu").unet.train(checkpointing)
        to_k = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight.requires_grad_()
        keepers = unmix.watch(unet, 4)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        torch.manual_seed(0)
        unet(torch.randn(1, 4, 16, 16, requires_grad=True), torch.tensor([5]), torch.randn(1, 77, 32))
        unmix.unmix_loss([keeper.maps for keeper in keepers], [(True, ([1], [2]))]).backward()
        grads.append(to_k.grad)
    assert grads[0].abs().sum() > 0
    torch.testing.assert_close(*grads)


def test_maps_are_kept_and_the_network_does_not_notice(tiny_folder):
    unet = load_pipeline(tiny_folder, "cpu").unet
    torch.manual_seed(0)
    arguments = torch.randn(2, 4, 16, 16), torch.tensor([5, 500]), torch.randn(2, 77, 32)
    plain = unet(*arguments).sample
    keepers = unmix.watch(unet, 8)
    watched = unet(*arguments).sample
    torch.testing.assert_close(plain, watched, rtol=1e-4, atol=1e-5)
    assert len(keepers) == 3  # one on the way down, two on the way up
    assert all(keeper.maps.shape == (2, 2, 64, 77) for keeper in keepers)
    torch.testing.assert_close(keepers[0].maps.sum(-1), torch.ones(2, 2, 64))
    before = keepers[0].maps
    unet(arguments[0] + 1, *arguments[1:])
    assert not torch.equal(keepers[0].maps, before)  # those of the last pass
    refuses("it has 4, 8, 16", unmix.watch, unet, 5)
