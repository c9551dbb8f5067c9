using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

/// <summary>Prompts of so many tokens together that they don't go through the model at once.</summary>
internal sealed class LongPromptTests
{
    private const int Length = 5600; // three of them are more than the model takes at once

    private static readonly MustafarOptions s_options = new() { LocalWindow = 32, GroupSize = 64 };

    private LlamaForCausalLM _model = null!;

    [OneTimeSetUp]
    public void MakeModel() => _model = RandomModel.New(vocabSize: 20, seed: 1, maxPositions: 8192);

    [OneTimeTearDown]
    public void DisposeModel() => _model.Dispose();

    [Test]
    public void Each_prompt_is_read_as_if_it_were_alone([Values] bool padded)
    {
        using IDisposable mode = inference_mode();
        using var scope = NewDisposeScope();
        int[] counts = padded ? [Length, 17, Length - 1] : [Length, Length, Length];
        int[][] prompts = [.. counts.Select((count, i) => RandomModel.Prompt(_model, count, seed: i))];
        using ModelCache together = ModelCache.Mustafar(_model, s_options, prompts.Length);
        Tensor ids = TokenIds.ToPaddedTensor(prompts, _model.Device);
        Tensor logits = _model.NextTokenLogits(ids, together, padded ? counts : default);
        Assert.That(together.Lengths, Is.EqualTo(counts));
        for (int i = 0; i < prompts.Length; i++)
        {
            using ModelCache alone = ModelCache.Mustafar(_model, s_options);
            Tensor expected = _model.NextTokenLogits(TokenIds.ToTensor(prompts[i], _model.Device), alone);
            Assert.That((logits[i] - expected[0]).abs().max().item<float>(), Is.LessThan(1e-4f));
        }
    }

    [Test]
    public void A_prompt_for_which_there_is_no_room_leaves_none_of_them()
    {
        using IDisposable mode = inference_mode();
        using var scope = NewDisposeScope();
        LlamaConfig config = _model.Config;
        MustafarModelCache cache = new(
            config.NumLayers, config.KeyValueShape, _model.DType, _model.Device, s_options,
            new CacheLimits { MaxSequences = 3, BudgetTokens = (2 * Length) + 1000 });
        using ModelCache batch = new(cache, 3);
        int[][] prompts = [.. Enumerable.Range(0, 3).Select(i => RandomModel.Prompt(_model, Length, seed: i))];
        Tensor ids = TokenIds.ToTensor(prompts, _model.Device);
        Assert.That(() => _model.NextTokenLogits(ids, batch), Throws.TypeOf<CacheBudgetException>());
        Assert.That(batch.Lengths, Is.All.Zero);
    }
}
