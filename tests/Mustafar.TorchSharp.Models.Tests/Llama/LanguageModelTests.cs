using Mustafar.Models.Generation;
using Mustafar.Models.Llama;

namespace Mustafar.Tests.Llama;

/// <summary>From text to text, on the shipped checkpoint.</summary>
[TestFixture]
public sealed class LanguageModelTests
{
    private const string Prompt = "def add(a, b):";

    private LanguageModel _language = null!;

    [OneTimeSetUp]
    public void Load() => _language = LanguageModel.Load(Golden.Checkpoint);

    [OneTimeTearDown]
    public void Unload() => _language.Dispose();

    [Test]
    public void TheTextIsThatOfTheTokens([Values] bool compressed)
    {
        SamplingParameters drawn = new() { Temperature = 0.8, Seed = 3 };
        using ModelCache cache = NewCache(compressed), other = NewCache(compressed);
        TokenGenerator generator = new(_language.Model, other);
        List<int> prompt = _language.Tokenizer.Encode(Prompt);
        int[] tokens = [.. generator.Generate(prompt, new Sampler(drawn), 60, _language.StopTokens)];
        string[] parts = [.. _language.Generate(Prompt, cache, 60, drawn)];
        string whole = _language.Tokenizer.Decode([.. prompt, .. tokens]);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(Prompt + string.Concat(parts), Is.EqualTo(whole));
            Assert.That(parts, Has.Length.GreaterThan(10).And.No.Member(""));
            Assert.That(cache.Length, Is.EqualTo(prompt.Count + tokens.Length - 1), "the last token is not fed back");
        }

        cache.Clear();
        Assert.That(_language.Generate(Prompt, cache, 60, drawn), Is.EqualTo(parts));
    }

    [Test]
    public void TheCheckpointSaysHowTokensAreChosen()
    {
        using TemporaryDirectory directory = new TemporaryDirectory().WithTinyCheckpoint();
        File.WriteAllText(directory.File("generation_config.json"), """{ "do_sample": true, "temperature": 1.5, "top_k": 40 }""");
        using LanguageModel drawing = LanguageModel.Load(directory.Path);
        using ModelCache cache = ModelCache.Dense(drawing.Model);
        Assert.That(drawing.Sampling, Is.EqualTo(new SamplingParameters { Temperature = 1.5, TopK = 40 }));
        string text = string.Concat(drawing.Generate("a", cache, 30));
        cache.Clear();
        string given = string.Concat(drawing.Generate("a", cache, 30, drawing.Sampling));
        cache.Clear();
        string greedy = string.Concat(drawing.Generate("a", cache, 30, SamplingParameters.Greedy));
        using (Assert.EnterMultipleScope())
        {
            Assert.That(text, Is.EqualTo(given));
            Assert.That(greedy, Is.EqualTo(new string('k', 30)).And.Not.EqualTo(text));
        }
    }

    [Test]
    public void AStopSequenceEndsTheTextBeforeIt()
    {
        using ModelCache cache = NewCache(compressed: false);
        string text = string.Concat(_language.Generate(Prompt, cache, 30));
        string sequence = text[9..12];
        cache.Clear();
        string stopped = string.Concat(_language.Generate(Prompt, cache, 30, stopSequences: [sequence]));
        Assert.That(stopped, Is.EqualTo(text[..text.IndexOf(sequence, StringComparison.Ordinal)]));
    }

    [Test]
    public void WhatCantBeContinuedIsRefusedAtOnce()
    {
        using ModelCache cache = NewCache(compressed: false), two = ModelCache.Dense(_language.Model, 2), used = NewCache(compressed: false);
        _ = _language.Generate(Prompt, used, 2).Count();
        using LanguageModel withoutTokenizer = LanguageModel.Load(Golden.Checkpoint, withTokenizer: false);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => _language.Generate(Prompt, used, 2), Throws.ArgumentException.With.Message.Contains("empty").And.Property("ParamName").EqualTo("cache"));
            Assert.That(() => _language.Generate(Prompt, two, 2), Throws.ArgumentException.With.Message.Contains("but got 2"));
            Assert.That(() => _language.Generate(Prompt, cache, -1), Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(() => _language.Generate(Prompt, cache, 2, stopSequences: [""]), Throws.ArgumentException.With.Property("ParamName").EqualTo("stopSequences"));
            Assert.That(() => withoutTokenizer.Generate(Prompt, cache, 2), Throws.InvalidOperationException);
            Assert.That(
                () => _language.Generate(Prompt, cache, 2, cancellationToken: new CancellationToken(true)).Count(),
                Throws.InstanceOf<OperationCanceledException>());
            Assert.That(cache.Length, Is.Zero);
        }
    }

    private ModelCache NewCache(bool compressed) => compressed
        ? ModelCache.Mustafar(_language.Model, new MustafarOptions { LocalWindow = 8, GroupSize = 32 })
        : ModelCache.Dense(_language.Model);
}
