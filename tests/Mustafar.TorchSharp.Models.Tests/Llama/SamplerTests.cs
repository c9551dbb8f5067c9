using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using Mustafar.Tests.Oracle;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

[TestFixture]
public sealed class SamplerTests
{
    private LlamaForCausalLM _model = null!;

    [OneTimeSetUp]
    public void Make() => _model = RandomModel.New(vocabSize: 40, seed: 4);

    [OneTimeTearDown]
    public void Unload() => _model.Dispose();

    private static readonly SamplingParameters[] s_varied =
    [
        SamplingParameters.Greedy, new() { Temperature = 1.3 }, new() { Temperature = 0.8, TopK = 7 },
        new() { Temperature = 2, TopK = 30, TopP = 0.8 }, new() { MinP = 0.3, RepetitionPenalty = 0.8 },
        SamplingParameters.Greedy with { FrequencyPenalty = 0.3, PresencePenalty = 0.1 }, SamplingParameters.Greedy with { RepetitionPenalty = 1.5 },
        new() { TopK = 12, TopP = 0.9, FrequencyPenalty = -0.2, PresencePenalty = 1, RepetitionPenalty = 1.2 },
    ];

    [TestCaseSource(nameof(s_varied))]
    public void TokensAreThoseThatTheParametersDraw(SamplingParameters varied)
    {
        SamplingParameters parameters = varied with { Seed = unchecked((ulong)-3) };
        int[] prompt = RandomModel.Prompt(_model, 9);
        int[] tokens = Generate(new Sampler(parameters), prompt, 30);
        int[] counts = new int[40];
        bool[] inPrompt = [.. Enumerable.Range(0, 40).Select(prompt.Contains)];
        for (int i = 0; i < tokens.Length; i++)
        {
            float[] logits = Logits([.. prompt, .. tokens[..i]]);
            Assert.That(tokens[i], Is.EqualTo(ReferenceSampling.Token(logits, parameters, i, counts, inPrompt)), $"token {i}");
            counts[tokens[i]]++;
        }
    }

    // The draws and the penalties of a text go on where the next call continues it.
    [Test]
    public void ATextMayBeGeneratedInParts()
    {
        SamplingParameters options = new() { Temperature = 1, PresencePenalty = 3, RepetitionPenalty = 1.3, Seed = 8 };
        int[] prompt = RandomModel.Prompt(_model, 5);
        int[] whole = Generate(new Sampler(options), prompt, 20);
        Sampler sampler = new(options);
        int[] first = Generate(sampler, prompt, 12);
        int[] second = Generate(sampler, [.. prompt, .. first], 8);
        Assert.That(first.Concat(second), Is.EqualTo(whole));
    }

    [Test]
    public void SeedsDiffer()
    {
        int[] Draw(int seed) => Generate(new Sampler(new SamplingParameters { Temperature = 5, Seed = (ulong)seed }), [1], 30);
        int[] first = Draw(3);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(Draw(3), Is.EqualTo(first));
            Assert.That(Draw(4), Is.Not.EqualTo(first));
        }
    }

    [Test]
    public void RefusesScoresThatAreNotNumbers([Values(0, 0.7)] double temperature)
    {
        using LlamaForCausalLM model = RandomModel.New(vocabSize: 40, seed: 4);
        using (no_grad())
        {
            model.named_parameters().First(item => item.name == "model.norm.weight").parameter.fill_(double.NaN);
        }

        using ModelCache cache = ModelCache.Dense(model);
        TokenGenerator generator = new(model, cache);
        Sampler sampler = new(new SamplingParameters { Temperature = temperature });
        Assert.That(() => generator.Generate([1, 2], sampler, 3, new HashSet<int>()).ToArray(), Throws.ArgumentException.With.Message.Contains("NaN"));
    }

    private int[] Generate(Sampler sampler, int[] prompt, int maxTokens)
    {
        using ModelCache cache = ModelCache.Dense(_model);
        return [.. new TokenGenerator(_model, cache).Generate(prompt, sampler, maxTokens, new HashSet<int>())];
    }

    // Of the whole text at once. The last bits are not those of single steps; no draw here is that close.
    private float[] Logits(int[] text)
    {
        using IDisposable noGrad = no_grad();
        using DisposeScope scope = NewDisposeScope();
        using ModelCache cache = ModelCache.Dense(_model);
        return Values.Of(_model.NextTokenLogits(TokenIds.ToTensor(text, CPU), cache));
    }
}
