using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

/// <summary>One model for several threads, each with a cache of its own.</summary>
[TestFixture]
public sealed class SharedModelTests
{
    private const int Vocabulary = 60;
    private const int NewTokens = 60;

    private static readonly MustafarOptions s_options = new() { LocalWindow = 8, GroupSize = 32 };

    [Test]
    public void EightThreadsGiveTheTokensOfOne([Values] bool compressed)
    {
        using LlamaForCausalLM model = RandomModel.New(Vocabulary, seed: 3);
        int[][] expected = [.. Enumerable.Range(0, 8).Select(i => Generate(model, compressed, i))];
        Assert.That(expected.Select(tokens => string.Join(' ', tokens)).Distinct().Count(), Is.EqualTo(expected.Length));
        int[][] actual = new int[expected.Length][];
        // Positions are new to a model that no thread ran before, so that its tables grow under the threads.
        using LlamaForCausalLM shared = RandomModel.New(Vocabulary, seed: 3);
        Threads.AtOnce([.. Enumerable.Range(0, actual.Length).Select(i => (Action)(() => actual[i] = Generate(shared, compressed, i)))]);
        Assert.That(actual, Is.EqualTo(expected));
    }

    // Greedy tokens after a prompt of its own length.
    private static int[] Generate(LlamaForCausalLM model, bool compressed, int seed)
    {
        using IDisposable mode = inference_mode();
        using ModelCache cache = compressed ? ModelCache.Mustafar(model, s_options) : ModelCache.Dense(model);
        int[] next = RandomModel.Prompt(model, 20 + (7 * seed), seed);
        int[] tokens = new int[NewTokens];
        for (int i = 0; i < tokens.Length; i++)
        {
            using DisposeScope scope = NewDisposeScope();
            tokens[i] = (int)model.NextTokenLogits(TokenIds.ToTensor(next, model.Device), cache).argmax(-1).item<long>();
            next = [tokens[i]];
        }

        return tokens;
    }
}
