using Mustafar.Examples.Llama.Generation;
using Mustafar.Examples.Llama.Model;
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

    [TestCase(0, 0, 1, 0, 0)]
    [TestCase(1.3, 0, 1, 0, 0)]
    [TestCase(0.8, 7, 1, 0, 0)]
    [TestCase(2, 30, 0.8, 0, 0)]
    [TestCase(0, 0, 1, 0.3, 0.1)]
    [TestCase(1, 12, 0.9, -0.2, 1)]
    public void TokensAreThoseThatTheOptionsDraw(double temperature, int topK, double topP, double frequency, double presence)
    {
        SamplingOptions options = new()
        {
            Temperature = temperature, TopK = topK, TopP = topP, FrequencyPenalty = frequency, PresencePenalty = presence, Seed = -3,
        };
        SamplingParameters parameters = new()
        {
            Temperature = temperature, TopK = topK, TopP = topP, FrequencyPenalty = frequency, PresencePenalty = presence,
            Seed = unchecked((ulong)-3),
        };
        int[] prompt = RandomModel.Prompt(_model, 9);
        int[] tokens = Generate(new Sampler(options), prompt, 30);
        int[] counts = new int[40];
        for (int i = 0; i < tokens.Length; i++)
        {
            float[] logits = Logits([.. prompt, .. tokens[..i]]);
            Assert.That(tokens[i], Is.EqualTo(ReferenceSampling.Token(logits, parameters, i, counts)), $"token {i}");
            counts[tokens[i]]++;
        }
    }

    // The draws and the penalties of a text go on where the next call continues it.
    [Test]
    public void ATextMayBeGeneratedInParts()
    {
        SamplingOptions options = new() { Temperature = 1, PresencePenalty = 3, Seed = 8 };
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
        int[] Draw(int seed) => Generate(new Sampler(new SamplingOptions { Temperature = 5, Seed = seed }), [1], 30);
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
        Sampler sampler = new(new SamplingOptions { Temperature = temperature });
        Assert.That(() => generator.Generate([1, 2], sampler, 3, new HashSet<int>()).ToArray(), Throws.ArgumentException.With.Message.Contains("NaN"));
    }

    [Test]
    public void RefusesOptionsOutOfRange()
    {
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => new SamplingOptions { Temperature = -1 }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingOptions { Temperature = double.NaN }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingOptions { Temperature = 1e300 }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingOptions { TopK = -1 }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingOptions { TopP = 0 }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingOptions { TopP = 1.1 }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingOptions { FrequencyPenalty = double.NaN }, Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => new SamplingOptions { PresencePenalty = double.PositiveInfinity }, Throws.TypeOf<ArgumentOutOfRangeException>());
        }
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
