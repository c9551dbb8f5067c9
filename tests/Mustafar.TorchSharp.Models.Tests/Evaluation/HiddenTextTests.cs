using System.Globalization;
using System.Text.RegularExpressions;
using Mustafar.Models.Evaluation;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using Mustafar.Tests.Llama;
using static TorchSharp.torch;

namespace Mustafar.Tests.Evaluation;

/// <summary>Tasks that hide lines in a text: what they hide, where, and how answers are scored.</summary>
[TestFixture]
public sealed partial class HiddenTextTests : TinyLanguageFixture
{
    private const int Length = 700;

    private static readonly string s_text = string.Concat(
        Enumerable.Range(0, 400).Select(i => string.Create(CultureInfo.InvariantCulture, $"value {i} of many\n")));

    [Test]
    public void RecallHidesTheNoteThatItAsksFor()
    {
        RecallTask task = new(Language, s_text, contexts: 20, Length);
        for (int i = 0; i < task.Samples; i++)
        {
            PromptSample sample = task.MakeSample(i);
            string[] lines = Text(sample.Context).Split('\n');
            string name = Text(sample.Question)["\n# recall ".Length..^" =".Length];
            using (Assert.EnterMultipleScope())
            {
                Assert.That(sample.Context, Has.Count.EqualTo(Length));
                Assert.That(lines, Has.Exactly(1).EqualTo($"# note {name} = {sample.Answers[0]}"));
                Assert.That(lines.Count(line => line.StartsWith("# note ", StringComparison.Ordinal)), Is.EqualTo(4));
                Assert.That(task.Score(sample, $" {sample.Answers[0]}\n"), Is.EqualTo(1));
                Assert.That(task.Score(sample, $" {sample.Answers[0][..5]}"), Is.Zero);
            }
        }
    }

    [Test]
    public void TheNeedleStandsAtItsDepth()
    {
        double[] depths = [0, 0.25, 1];
        NeedleTask task = new(Language, s_text, [400, Length], depths, samples: 2);
        Assert.That(task.Samples, Is.EqualTo(12));
        for (int i = 0; i < task.Samples; i++)
        {
            PromptSample sample = task.MakeSample(i);
            (int length, double depth) = (i < 6 ? 400 : Length, depths[i / 2 % 3]);
            string text = Text(sample.Context);
            string question = Text(sample.Question)[1..];
            int place = text.IndexOf($"{question} {sample.Answers[0]}.\n", StringComparison.Ordinal);
            using (Assert.EnterMultipleScope())
            {
                Assert.That(sample.Context, Has.Count.EqualTo(length));
                Assert.That((double)place / (length - 40), Is.EqualTo(depth).Within(20.0 / length), "a line has up to 18 characters");
                Assert.That(sample.Group, Is.EqualTo(NeedleTask.GroupOf(length, depth)));
                Assert.That(sample.Candidates.Select(Text).Distinct().Count(), Is.EqualTo(10));
                Assert.That(Text(sample.Candidates[0]), Is.EqualTo($"\n{question} {sample.Answers[0]}"));
                Assert.That(task.Score(sample, $" {sample.Answers[0]}."), Is.EqualTo(1));
                Assert.That(task.Score(sample, $" not {sample.Answers[0]}."), Is.Zero);
            }
        }

        Assert.That(Enumerable.Range(0, 12).Select(i => task.MakeSample(i).Answers[0]).Distinct().Count(), Is.EqualTo(12));
    }

    [TestCase(RulerKind.MultiKey, 1)]
    [TestCase(RulerKind.MultiValue, 4)]
    [TestCase(RulerKind.VariableTracking, 5)]
    public void RulerHidesWhatItAsksFor(RulerKind kind, int answers)
    {
        RulerTask task = new(Language, kind, s_text, [Length], samples: 10);
        for (int i = 0; i < task.Samples; i++)
        {
            PromptSample sample = task.MakeSample(i);
            string text = Text(sample.Context);
            string question = Text(sample.Question);
            string[] expected = kind switch
            {
                RulerKind.MultiKey => [Number().Match(text, text.IndexOf(question[1..], StringComparison.Ordinal)).Value],
                RulerKind.MultiValue => [.. Regex.Matches(text, "One of the secret numbers of (\\w+) is (\\d{6})\\.\n").Select(line => line.Groups[2].Value)],
                _ => Traced(text, Number().Match(question).Value),
            };
            using (Assert.EnterMultipleScope())
            {
                Assert.That(sample.Context, Has.Count.EqualTo(Length));
                Assert.That(sample.Answers, Is.EquivalentTo(expected).And.Count.EqualTo(answers));
                Assert.That(task.Score(sample, string.Join(" and ", sample.Answers)), Is.EqualTo(1));
                Assert.That(task.Score(sample, sample.Answers[^1].ToLowerInvariant()), Is.EqualTo(1.0 / answers).Within(1e-12));
                Assert.That(task.Score(sample, "none"), Is.Zero);
            }
        }
    }

    [Test]
    public void TextsAndContextsThatDoNotDoAreRefused()
    {
        using (Assert.EnterMultipleScope())
        {
            Assert.That(
                () => new NeedleTask(Language, "short\n", [400], [0.5]),
                Throws.ArgumentException.With.Message.Contains("at least").And.Property("ParamName").EqualTo("text"));
            Assert.That(() => new NeedleTask(Language, new string('x', 900), [400], [0.5]), Throws.ArgumentException.With.Message.Contains("ends of lines"));
            Assert.That(() => new NeedleTask(Language, s_text, [30], [0.5]), Throws.ArgumentException.With.Message.Contains("room"));
            Assert.That(() => new NeedleTask(Language, s_text, [2040], [0.5]), Throws.ArgumentException.With.Message.Contains("2048"));
            Assert.That(() => new NeedleTask(Language, s_text, [400], [1.5]), Throws.InstanceOf<ArgumentOutOfRangeException>());
            Assert.That(() => new RulerTask(Language, RulerKind.MultiKey, s_text, [100]), Throws.ArgumentException.With.Message.Contains("room"));
            Assert.That(() => new RecallTask(Language, s_text, context: 20), Throws.ArgumentException.With.Message.Contains("room"));
        }
    }

    // Against a forward pass over context and candidate as one text.
    [Test]
    public void TheRankIsThatOfTheProbabilities()
    {
        using LlamaForCausalLM model = RandomModel.New(vocabSize: 40, seed: 3);
        int[] context = RandomModel.Prompt(model, 30);
        int[][] candidates = [.. Enumerable.Range(0, 6).Select(i => (int[])[7, 8, .. RandomModel.Prompt(model, 2 + (i % 3), seed: 10 + i)])];
        double[] expected = [.. candidates.Select(candidate => Enumerable.Range(2, candidate.Length - 2)
            .Sum(i => RandomModel.LogProbabilities(model, context, candidate[..i])[candidate[i]]))];
        using IDisposable mode = inference_mode();
        using ModelCache cache = ModelCache.Dense(model, 2);
        model.Hidden(TokenIds.ToTensor([RandomModel.Prompt(model, 30, seed: 5), context], CPU), cache).Dispose();
        for (int i = 0; i < candidates.Length; i++)
        {
            int[][] turned = [candidates[i], .. candidates.Where((_, other) => other != i)];
            Assert.That(CandidateRank.OfFirst(model, cache, 1, turned), Is.EqualTo(expected.Count(score => score > expected[i]) + 1));
        }

        Assert.That(cache.Lengths, Is.EqualTo(new[] { 30, 30 }));
        Assert.That(() => CandidateRank.OfFirst(model, cache, 0, [[1, 2], [2, 2]]), Throws.ArgumentException.With.Message.Contains("alike"));
    }

    // The model says kkkkk to everything, on any cache: scores are 0, and each answer is kept.
    [TestCase(true)]
    [TestCase(false)]
    public void AnswersAndGroupsAreKept(bool dense)
    {
        NeedleTask task = new(Language, s_text, [200, 300], [0.5], samples: 2, batch: 3);
        CacheSetting setting = dense ? CacheSetting.Dense : new("half", MustafarPresets.HalfInFourBits);
        TaskResult result = task.Summarize(
            [.. Enumerable.Range(0, task.Parts).Select(part => task.MeasurePart(setting, part, new Progress<double>(), default))]);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(task.Parts, Is.EqualTo(2));
            Assert.That(result.Metrics["score"], Is.Zero);
            Assert.That(result.Metrics["likeliest"], Is.InRange(0, 1));
            Assert.That(result.Details!["answers"]!.AsArray().Select(answer => (string)answer!["got"]!), Is.All.EqualTo("kkkkkkkk"));
            Assert.That(
                result.Details["groups"]!.AsObject().Select(group => group.Key),
                Is.EqualTo(new[] { "200 tokens, depth 0.5", "300 tokens, depth 0.5" }));
        }
    }

    // Variables with a value, found by running the lines as a program.
    private static string[] Traced(string text, string value)
    {
        Dictionary<string, string> values = [];
        foreach (Match line in Regex.Matches(text, "VAR (\\w+) = (VAR )?(\\w+)\n"))
        {
            values.Add(line.Groups[1].Value, line.Groups[2].Success ? values[line.Groups[3].Value] : line.Groups[3].Value);
        }

        Assert.That(values, Has.Count.EqualTo(10));
        return [.. values.Where(item => item.Value == value).Select(item => item.Key)];
    }

    private string Text(IReadOnlyList<int> ids) => Language.Tokenizer.Decode(ids);

    [GeneratedRegex("[0-9]{6}")]
    private static partial Regex Number();
}
